"""Whole models: the paged runner, in random chunks, against transformers' own `generate`."""

import random

import pytest
import torch

from inference.config import EngineConfig
from inference.model import parity
from inference.model.inputs import ModelInputs
from inference.model.loader import LoadedModel, load_model
from inference.model.paged import allocate_caches, forward_paged
from inference.model.runner import ModelRunner, SequentialRunner, make_runner
from tests.inference.tiny_models import FAMILIES, RECURRENT, VOCAB_SIZE, make_model, save_model

NUM_NEW = 10


def silent(_: str) -> None: ...


def random_prompt(length: int) -> list[int]:
    return random.Random(length).choices(range(3, VOCAB_SIZE), k=length)


def generate(model, prompt: list[int]) -> list[int]:
    """The oracle: greedy tokens of transformers."""
    model.generation_config.eos_token_id = None
    output = model.generate(torch.tensor([prompt]), max_new_tokens=NUM_NEW, do_sample=False)
    return output[0, len(prompt) :].tolist()


def continue_in_chunks(
    runner: ModelRunner, prompts: list[list[int]], block_size: int
) -> list[list[int]]:
    """Greedy tokens of all prompts together, some sequences resting while others advance."""
    rng = random.Random(1)
    seqs = [list(prompt) for prompt in prompts]
    targets = [len(prompt) + NUM_NEW for prompt in prompts]
    blocks = list(range(1, runner.num_blocks))
    rng.shuffle(blocks)
    tables = [[blocks.pop() for _ in range(-(-target // block_size))] for target in targets]
    computed = [0] * len(seqs)
    while any(len(seq) < target for seq, target in zip(seqs, targets, strict=True)):
        active = [i for i in range(len(seqs)) if len(seqs[i]) < targets[i] and rng.random() < 0.8]
        if not active:
            continue
        counts = [min(len(seqs[i]) - computed[i], rng.randint(1, 15)) for i in active]
        ends = [computed[i] + count for i, count in zip(active, counts, strict=True)]
        tokens = [
            t for i, end in zip(active, ends, strict=True) for t in seqs[i][computed[i] : end]
        ]
        due = [n for n, i in enumerate(active) if ends[n] == len(seqs[i])]
        rows = [sum(counts[: n + 1]) - 1 for n in due]
        inputs = ModelInputs(tokens, counts, ends, [tables[i] for i in active], rows, active)
        logits = runner.forward(inputs)
        assert logits.shape == (len(rows), VOCAB_SIZE)
        assert logits.dtype == torch.float32
        for i, end in zip(active, ends, strict=True):
            computed[i] = end
        for n, token in zip(due, logits.argmax(-1).tolist(), strict=True):
            seqs[active[n]].append(token)
    return [seq[len(prompt) :] for seq, prompt in zip(seqs, prompts, strict=True)]


def load(
    folder, family: str, changes: dict | None = None, **settings
) -> tuple[LoadedModel, object]:
    """A loaded checkpoint, and the model that it was made from."""
    oracle = save_model(folder, family, **(changes or {}))
    return load_model(EngineConfig(model=str(folder), **settings), silent), oracle


@pytest.mark.parametrize("family", FAMILIES)
def test_paged_runner_equals_generate(family, tmp_path):
    block_size = 4 if family in ("qwen3", "mistral") else 16
    config = EngineConfig(model=str(tmp_path), block_size=block_size, kv_cache_memory=2**22)
    loaded, oracle = load(tmp_path, family, block_size=block_size)
    assert loaded.paged
    prompts = [random_prompt(length) for length in (1, 7, 20, 41)]
    runner = make_runner(loaded, config, silent)
    runner.warmup()
    assert continue_in_chunks(runner, prompts, block_size) == [
        generate(oracle, prompt) for prompt in prompts
    ]


def test_layers_are_found_by_a_probe(tmp_path):
    loaded, _ = load(tmp_path, "deepseek_v3")
    kinds = [(spec.num_kv_heads, spec.k_head_dim, spec.v_head_dim) for spec in loaded.layers]
    assert kinds == [(4, 24, 12)] * 3
    loaded, _ = load(tmp_path, "gpt_oss")
    assert [spec.sliding_window for spec in loaded.layers] == [9, None, 9]


@pytest.mark.parametrize("family", [*RECURRENT, "bloom"])
def test_what_cannot_be_paged_runs_sequentially(family, tmp_path, caplog):
    loaded, oracle = load(tmp_path, family)
    assert not loaded.paged
    assert "answers one request at a time" in caplog.text
    runner = make_runner(loaded, EngineConfig(model=str(tmp_path)), silent)
    assert isinstance(runner, SequentialRunner)
    runner.warmup()
    for sequence_id, length in enumerate((3, 17)):
        tokens = random_prompt(length)
        expected = generate(oracle, tokens)
        start = 0
        for _ in range(NUM_NEW):
            new = tokens[start:]
            inputs = ModelInputs(
                new, [len(new)], [len(tokens)], [[]], [len(new) - 1], [sequence_id]
            )
            start = len(tokens)
            tokens.append(int(runner.forward(inputs).argmax()))
        assert tokens[length:] == expected
    with pytest.raises(RuntimeError, match="not the one"):
        runner.forward(ModelInputs([5], [1], [30], [[]], [0], [99]))


def test_batch_dependent_rope_is_not_paged(tmp_path):
    rope = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 64}
    rope["rope_theta"] = 10000.0
    changes = {"rope_parameters": rope}
    assert not load(tmp_path, "llama", changes)[0].paged
    assert load(tmp_path, "llama", changes, max_model_len=64)[0].paged


def test_sliding_window_that_attention_is_not_told_of_is_not_paged():
    model = make_model("gemma2")
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    sample = parity.plain_logits(model, 8)  # too few to see the window
    assert "only in the mask" in parity.enter_paged(model, 128, sample)[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gate_tells_wrong_logits_from_rounding(dtype):
    model = make_model("qwen3").to(dtype)
    plain = model.config._attn_implementation
    sample = parity.plain_logits(model)
    for layer in model.model.layers:
        layer.self_attn.scaling *= 1.5
    layers, reason = parity.enter_paged(model, 128, sample)
    assert "off by" in reason
    assert model.config._attn_implementation == plain
    for layer in model.model.layers:
        layer.self_attn.scaling /= 1.5
    layers, reason = parity.enter_paged(model, 128, sample)
    assert reason is None
    assert model.config._attn_implementation == "nano"
    assert len(layers) == 3


def test_a_compiler_takes_the_whole_model_as_one_graph():
    """Attention is an operation to it, so that runs of any kind are the same graph."""
    model = make_model("qwen3", num_hidden_layers=2)
    sample = parity.plain_logits(model)
    layers, _ = parity.enter_paged(model, 128, sample)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled_caches, caches = (allocate_caches(layers, 5, 16, model) for _ in range(2))
    for inputs in (
        ModelInputs(list(range(5, 21)), [9, 7], [9, 7], [[2], [4]], [8, 15], [0, 1]),
        ModelInputs([3, 4], [1, 1], [10, 8], [[2], [4]], [0, 1], [0, 1]),
        ModelInputs(list(range(7, 16)), [1, 8], [11, 16], [[2], [4]], [0, 5, 8], [0, 1]),
    ):
        found = forward_paged(compiled, inputs, compiled_caches)
        torch.testing.assert_close(found, forward_paged(model, inputs, caches))


def test_threads_do_not_share_a_context(tmp_path):
    """Two engines in one process, each in its thread."""
    from concurrent.futures import ThreadPoolExecutor

    loaded, oracle = load(tmp_path, "qwen3")
    config = EngineConfig(model=str(tmp_path), kv_cache_memory=2**22)
    runners = [make_runner(loaded, config, silent) for _ in range(2)]
    prompts = [[random_prompt(30)], [random_prompt(9)]]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(continue_in_chunks, runners, prompts, [32, 32]))
    assert answers == [[generate(oracle, prompt)] for (prompt,) in prompts]
