"""All layers in one call against the same layers one by one."""

import sys
from pathlib import Path

import pytest
import torch

from inference.config import EngineConfig
from inference.model import attention, parity
from inference.model.inputs import ModelInputs
from inference.model.kernels import cpu
from inference.model.layers import kernel_for
from inference.model.loader import load_model
from inference.model.optimize import optimize
from inference.model.paged import allocate_caches, forward_paged
from inference.model.runner import make_runner
from inference.model.stack import DecoderStack, fuse
from tests.inference.test_parity import continue_in_chunks, generate, random_prompt, silent
from tests.inference.tiny_models import FAMILIES, VOCAB_SIZE, make_model, save_model

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="needs a C++ compiler")

KNOWN = ("qwen3", "llama", "qwen2", "mistral")
KINDS: dict[str, tuple[torch.dtype, str | None]] = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "int8": (torch.bfloat16, "int8"),
    "int4": (torch.bfloat16, "int4"),
    "int4 of float32": (torch.float32, "int4"),
}


def make_fast(family: str, kind: str = "float32", **changes):
    """A model with fast layers, still apart, and what is known of them."""
    facts = {} if family == "deepseek_v3" else {"head_dim": 32}
    dtype, quantization = KINDS[kind]
    model = make_model(family, **facts | changes).to(dtype)
    specs = parity.find_layers(model)
    model.set_attn_implementation(attention.NAME)
    optimize(model, quantization)
    return model, specs


def runs() -> list[ModelInputs]:
    """A prompt, the rest of it beside another one and a decoding sequence, whose logits are wanted
    in any order; then a part of a prompt, of which nothing is wanted, and what follows it.
    """
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        return torch.randint(VOCAB_SIZE, (count,), generator=generator).tolist()

    first = ModelInputs(tokens(30), [20, 10], [20, 10], [[3, 1], [5]], [19, 29], [0, 1])
    tables = [[3, 1, 6], [2], [5]]
    second = ModelInputs(tokens(25), [17, 7, 1], [37, 7, 11], tables, [24, 0, 23, 16, 0], [0, 2, 1])
    third = ModelInputs(tokens(3), [3], [14], [[5]], [], [1])
    return [first, second, third, ModelInputs(tokens(1), [1], [15], [[5]], [0], [1])]


def logits_of(model, specs) -> torch.Tensor:
    caches = allocate_caches(specs, 7, 16, model)
    return torch.cat([forward_paged(model, inputs, caches) for inputs in runs()])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", KNOWN)
def test_nothing_changes(family, kind):
    if kernel_for(*KINDS[kind]) is None:
        pytest.skip("this CPU lacks the instructions")
    model, specs = make_fast(family, kind)
    wanted = logits_of(model, specs)
    fused = fuse(model, specs)
    assert isinstance(model.model.layers[0], DecoderStack)
    assert torch.equal(logits_of(model, specs), wanted)
    assert torch.equal(logits_of(model, specs), wanted)  # over another cache

    fused.undo()
    assert len(model.model.layers) == 3
    assert torch.equal(logits_of(model, specs), wanted)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(KNOWN)))
def test_other_families_stay_as_they_are(family):
    model, specs = make_fast(family)
    assert fuse(model, specs) is None


def test_heads_that_do_not_fill_vectors_stay_as_they_are():
    model, specs = make_fast("qwen3", head_dim=16)
    assert fuse(model, specs) is None


@pytest.mark.parametrize("family", KNOWN)
def test_a_served_model_answers_as_transformers_does(tmp_path, family):
    plain = save_model(tmp_path, family, head_dim=32)
    config = EngineConfig(model=str(tmp_path), device="cpu", kv_cache_memory=2**22)
    loaded = load_model(config, silent)
    assert isinstance(loaded.model.model.layers[0], DecoderStack)

    if sys.platform == "linux":  # all of it is laid out anew, so the file is no longer in memory
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    prompts = [random_prompt(length) for length in (1, 30, 45)]
    runner = make_runner(loaded, config, silent)
    answers = continue_in_chunks(runner, prompts, config.block_size)
    assert answers == [generate(plain, prompt) for prompt in prompts]


def test_a_family_that_does_more_gets_its_layers_back(tmp_path, monkeypatch):
    """Granite multiplies what is added to the hidden states; the parts are the same."""
    save_model(tmp_path, "granite", head_dim=32, residual_multiplier=0.3)
    loaded = load_model(EngineConfig(model=str(tmp_path), device="cpu"), silent)

    assert loaded.paged
    assert not isinstance(loaded.model.model.layers[0], DecoderStack)
