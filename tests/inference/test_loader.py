"""Every way that loading fails names its cause and its cure; what loads says what it is."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertForMaskedLM

from inference.config import EngineConfig
from inference.errors import ModelLoadError
from inference.model import loader
from inference.model.loader import load_model, pick_dtype
from inference.model.runner import make_runner
from tests.inference.tiny_models import make_config, make_tokenizer, save_model

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path, "llama")
    return tmp_path


def load(folder: Path | str, **settings):
    return load_model(EngineConfig(model=str(folder), **settings), lambda _: None)


def change_json(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def assert_refused(folder: Path | str, *parts: str, **settings) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load(folder, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for part in parts:
        assert part in message


def test_facts_of_a_loaded_model(folder):
    change_json(folder / "generation_config.json", eos_token_id=[1, 5], top_p=0.8, max_length=20)
    loaded = load(folder, max_model_len=100)
    assert loaded.paged
    assert loaded.name == str(folder)
    assert loaded.eos_token_ids == {1, 5}
    assert loaded.generation_defaults == {"top_p": 0.8}
    assert (loaded.max_model_len, loaded.vocab_size) == (100, 160)
    assert (loaded.device, loaded.dtype) == (torch.device("cpu"), torch.float32)
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert loaded.tokenizer.decode([7]) == "w7"


def test_progress_is_reported(folder):
    said: list[str] = []
    load_model(EngineConfig(model=str(folder)), said.append)
    assert any("float32 on cpu" in line for line in said)


def test_no_folder(tmp_path):
    assert_refused(tmp_path / "none", "There is no folder")
    assert_refused("./none", "There is no folder")


def test_not_on_this_machine():
    assert_refused(
        "nobody/none", "nobody/none", "without --local-files-only", local_files_only=True
    )
    assert_refused("no such id!", "no such id!", "HF_TOKEN", "name a local folder")


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert_refused(folder, "has no config.json")


def test_broken_config(folder):
    (folder / "config.json").write_text("{")
    assert_refused(folder, "config.json", "cannot be read")


def test_pickled_weights_are_not_opened(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    assert_refused(folder, "no *.safetensors files", "save_pretrained")


def test_unknown_architecture(folder):
    change_json(folder / "config.json", model_type="novel", architectures=["NovelForCausalLM"])
    assert_refused(folder, "not supported by this version of transformers", "novel")


def test_remote_code_is_not_run(folder):
    trap = folder / "trap.py"
    trap.write_text("raise SystemExit('remote code ran')")
    auto_map = {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}
    change_json(folder / "config.json", model_type="novel", auto_map=auto_map)
    assert_refused(folder, "--trust-remote-code")
    with pytest.raises(SystemExit, match="remote code ran"):
        load(folder, trust_remote_code=True)


def test_not_a_causal_model(tmp_path):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForMaskedLM(BertConfig(vocab_size=160, num_hidden_layers=1, **sizes))
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert_refused(tmp_path, "BertForMaskedLM", "not a causal language model")


def test_headless_checkpoint(tmp_path):
    AutoModel.from_config(make_config("llama")).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert_refused(tmp_path, "LlamaModel", "not a causal language model")


def test_no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert_refused(folder, "no usable tokenizer", "tokenizer.json")


def test_missing_weights(folder):
    weights = load_file(folder / WEIGHTS)
    del weights["lm_head.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert_refused(folder, "does not fit its config.json", "lm_head.weight")


def test_weights_of_another_shape(folder):
    change_json(folder / "config.json", intermediate_size=32)
    assert_refused(folder, "does not fit its config.json", "model.layers.0.mlp")


def test_damaged_weights(folder):
    (folder / WEIGHTS).write_bytes(b"x" * 100)
    assert_refused(folder, "cannot be loaded")


def test_too_large_for_memory(folder):
    os.truncate(folder / WEIGHTS, 2**43)  # a hole: takes no space
    assert_refused(folder, "8192.2 GiB", "choose a smaller model")


def test_weights_are_measured_in_the_dtype_they_will_have(folder, monkeypatch):
    size = (folder / WEIGHTS).stat().st_size + loader.NUM_ACTIVATION_BYTES
    monkeypatch.setattr(loader, "available_memory", lambda device: size - 1)
    assert_refused(folder, "only")
    assert load(folder, dtype="bfloat16").dtype == torch.bfloat16


def test_context_beyond_the_models_own(folder):
    assert_refused(folder, "max_model_len 129", "128 tokens", max_model_len=129)


def test_missing_device(folder):
    assert_refused(folder, "no device cuda:99", device="cuda:99")


def test_model_that_cannot_run(folder, monkeypatch):
    monkeypatch.setattr(loader.parity, "plain_logits", lambda *_: 1 / 0)
    assert_refused(folder, "not supported", "division by zero")


@pytest.mark.parametrize("supported", [True, False])
def test_auto_dtype_avoids_what_the_cpu_emulates(supported, monkeypatch):
    mkldnn = torch.ops.mkldnn
    monkeypatch.setattr(mkldnn, "_is_mkldnn_bf16_supported", lambda: supported, raising=False)
    fast = torch.bfloat16 if supported else torch.float32
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    half = make_config("llama", dtype="float16")
    assert pick_dtype("auto", half, cpu) == fast
    assert pick_dtype("auto", half, cuda) == torch.float16
    assert pick_dtype("auto", make_config("llama", dtype="bfloat16"), cpu) == fast
    assert pick_dtype("auto", make_config("llama"), cpu) == torch.float32
    assert pick_dtype("float16", half, cpu) == torch.float16


def test_cache_is_no_larger_than_the_sequences_can_fill(folder):
    config = EngineConfig(model=str(folder), max_num_seqs=2, block_size=32)
    runner = make_runner(load_model(config, lambda _: None), config, lambda _: None)
    assert runner.num_blocks == 2 * 128 // 32 + 1
    assert runner.max_model_len == 128
    # 3 layers, keys and values, 1 head of 16, float32
    assert runner.kv_cache_bytes == runner.num_blocks * 32 * 3 * 2 * 16 * 4


def test_small_cache_lowers_the_context_or_refuses(folder):
    memory = 3 * 32 * 3 * 2 * 16 * 4  # three blocks, of which one is padding
    said: list[str] = []
    config = EngineConfig(model=str(folder), kv_cache_memory=memory)
    loaded = load_model(config, said.append)
    runner = make_runner(loaded, config, said.append)
    assert (runner.num_blocks, runner.max_model_len) == (3, 64)
    assert any("lowered to 64" in line for line in said)
    for settings in ({"max_model_len": 100}, {"kv_cache_memory": 1000}):
        config = EngineConfig(**{"model": str(folder), "kv_cache_memory": memory} | settings)
        with pytest.raises(ModelLoadError, match="raise kv_cache_memory"):
            make_runner(load_model(config, said.append), config, said.append)
