"""Packed and fused layers against torch's and transformers' own, and what is replaced by them."""

import json
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from inference.config import EngineConfig
from inference.errors import ModelLoadError
from inference.model import loader, optimize, parity
from inference.model.kernels import cpu
from inference.model.layers import (
    Fp8Linear,
    GatedMLP,
    LinearPart,
    PackedLinear,
    Rotary,
    SharedLinear,
    can_pack,
    kernel_for,
)
from inference.model.loader import load_model
from inference.model.runner import make_runner
from tests.inference.test_parity import continue_in_chunks, generate, random_prompt, silent
from tests.inference.tiny_models import FAMILIES, make_config, make_model, save_model

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="needs a C++ compiler")

ERRORS = {torch.float32: 3e-6, torch.bfloat16: 3e-3}
SIZES = [(16, 1), (64, 64), (96, 100), (1040, 65), (2080, 33)]
NUM_ROWS = [0, 1, 2, 5, 6, 7, 121, 250]
ODD_MODEL = """
from transformers import Qwen3ForCausalLM


class OddForCausalLM(Qwen3ForCausalLM):
    def forward(self, *args, **kwargs):
        self.model.layers[0].self_attn.q_proj.weight
        return super().forward(*args, **kwargs)
"""


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.shape == wanted.shape
    if not wanted.numel():
        return 0.0
    return float((found.float() - wanted).norm() / wanted.norm())


def make_linears(dtype, sizes, *, bias=False) -> list[nn.Linear]:
    torch.manual_seed(0)
    layers = [nn.Linear(*sizes, bias=bias).to(dtype) for _ in range(2)]
    return [layer.requires_grad_(False) for layer in layers]


def exact(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Computed in float64, from the weights as the layer has them."""
    bias = None if layer.bias is None else layer.bias.double()
    return F.linear(x.double(), layer.weight.double(), bias).float()


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("bias", [False, True])
def test_packed_linear(dtype, sizes, bias):
    if kernel_for(dtype) is None:
        pytest.skip("needs AVX512-BF16")
    layers = make_linears(dtype, sizes, bias=bias)
    packed, gated = PackedLinear(layers), PackedLinear(layers, gated=True)
    for num_rows in NUM_ROWS:
        x = torch.randn(1, num_rows, sizes[0]).to(dtype)
        first, second = (exact(layer, x) for layer in layers)
        out = packed(x)
        assert out.dtype == dtype
        assert error(out, torch.cat([first, second], -1)) < ERRORS[dtype]
        assert error(gated(x), F.silu(first) * second) < ERRORS[dtype]


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("sizes", SIZES)
def test_int8_linear(dtype, sizes):
    if not can_pack(make_linears(dtype, sizes)[0], "int8"):
        pytest.skip("needs AVX512-VNNI")
    layers = make_linears(dtype, sizes, bias=True)
    packed = PackedLinear(layers, quantization="int8")
    for num_rows in NUM_ROWS:
        x = torch.randn(num_rows, sizes[0]).to(dtype)
        x[:1] = 0
        assert error(packed(x), torch.cat([exact(layer, x) for layer in layers], -1)) < 0.02


def dequantized(weight: torch.Tensor) -> torch.Tensor:
    """What 4 bits leave of each weight: one of 16 steps of its group, from -8 to 7 of them."""
    rounded = weight.float().clone()
    for row in rounded:
        for group in row.split(32):
            step = (group[group.abs().argmax()] / -8).bfloat16().float()
            group.copy_((group / step).round().clamp(-8, 7) * step)
    return rounded


def exact_in_int8(num_rows: int, num_columns: int) -> torch.Tensor:
    """Inputs that lose nothing as multiples of a 127th of the largest of 32."""
    x = torch.randint(-126, 127, (num_rows, num_columns // 32, 32)).float()
    x[..., 5] = 127
    return (x * 2.0 ** torch.randint(-3, 4, (num_rows, num_columns // 32, 1))).flatten(1)


@pytest.mark.parametrize("sizes", [(32, 1), (64, 64), (96, 100), (1056, 65), (2080, 33)])
def test_int4_linear(sizes):
    if kernel_for(torch.float32, "int4") is None:
        pytest.skip("needs AVX512-VNNI")
    layers = make_linears(torch.float32, sizes, bias=True)
    packed = PackedLinear(layers, quantization="int4")
    gated = PackedLinear(layers, quantization="int4", gated=True)
    for layer in layers:
        layer.weight.copy_(dequantized(layer.weight))
    for num_rows in NUM_ROWS:
        x = exact_in_int8(num_rows, sizes[0])
        first, second = (exact(layer, x) for layer in layers)
        assert error(packed(x), torch.cat([first, second], -1)) < 3e-6
        assert error(gated(x), F.silu(first) * second) < 3e-6
        x = torch.randn(num_rows, sizes[0])
        x[:, :3] *= 1000  # as models have them; other groups do not suffer
        x[:1] = 0
        assert error(packed(x), torch.cat([exact(layer, x) for layer in layers], -1)) < 0.01
        assert error(packed(x)[:1], packed(x[:1])) == 0  # whatever the rest of the batch


def test_int4_of_what_has_no_scale():
    if kernel_for(torch.bfloat16, "int4") is None:
        pytest.skip("needs AVX512-VNNI")
    layers = make_linears(torch.bfloat16, (64, 64))
    layers[0].weight[:, :32] = 0
    layers[0].weight[3] = 1e-30
    x = torch.ones(2, 64).bfloat16()
    out = PackedLinear(layers[:1], quantization="int4")(x)
    layers[0].weight.copy_(dequantized(layers[0].weight).nan_to_num())
    assert error(out, exact(layers[0], x)) < ERRORS[torch.bfloat16]


def test_logits_are_not_rounded():
    if kernel_for(torch.bfloat16) is None:
        pytest.skip("needs AVX512-BF16")
    (layer, _) = make_linears(torch.bfloat16, (1040, 130))
    x = torch.randn(3, 1040).bfloat16()
    out = PackedLinear([layer], out_dtype=torch.float32)(x)
    assert out.dtype == torch.float32
    assert error(out, exact(layer, x)) < 1e-6


def test_a_packed_layer_refuses_what_does_not_fit():
    packed = PackedLinear(make_linears(torch.float32, (64, 64)))
    for wrong in (torch.zeros(1, 64).bfloat16(), torch.zeros(1, 32)):
        with pytest.raises(TypeError, match="for a layer of"):
            packed(wrong)


def test_siblings_are_computed_once_per_input():
    layers = make_linears(torch.float32, (64, 48))
    shared = SharedLinear(layers)
    first, second = (LinearPart(shared, index) for index in range(2))
    x, y = torch.randn(2, 3, 64)
    torch.testing.assert_close(first(x), layers[0](x))
    torch.testing.assert_close(second(y), layers[1](y))  # not what was kept for x
    torch.testing.assert_close(first(y), layers[0](y))
    torch.testing.assert_close(second(y), layers[1](y))


@pytest.mark.parametrize("kind", [Qwen3RMSNorm, Gemma2RMSNorm])
@pytest.mark.parametrize("dtype", ERRORS)
def test_norms_are_replaced_by_what_they_compute(kind, dtype):
    norm = kind(64, eps=1e-5).requires_grad_(False).to(dtype)
    nn.init.normal_(norm.weight)
    fast = optimize.fast_norm(norm)
    for x in (
        torch.randn(7, 64),
        torch.randn(1, 5, 64),
        torch.randn(1, 5, 256)[..., :192].view(1, 5, 3, 64),  # heads of a fused projection
        torch.randn(1, 3, 5, 64).transpose(1, 2),
        torch.randn(1, 0, 64),
    ):
        x = x.to(dtype)
        assert error(fast(x), norm(x).float()) < 2 * ERRORS[dtype]


def test_norms_that_do_something_else_stay():
    class OddRMSNorm(Qwen3RMSNorm):
        def forward(self, x):
            return super().forward(x) * 1.1

    assert optimize.fast_norm(OddRMSNorm(64)) is None
    assert optimize.fast_norm(nn.LayerNorm(64)) is None
    norm = Qwen3RMSNorm(64)
    norm.variance_epsilon, norm.eps = 1e-6, 1e-3
    assert optimize.fast_norm(norm) is not None
    del norm.variance_epsilon
    norm.forward = lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
    assert optimize.fast_norm(norm) is None  # its eps is not the one that counts


@pytest.mark.parametrize("dtype", ERRORS)
def test_rotary_embedding(dtype):
    rotary = Rotary(apply_rotary_pos_emb)
    for num_tokens, dim in ((1, 64), (40, 128), (3, 96), (3, 80)):  # 80 is left to the original
        fused = torch.randn(1, num_tokens, 7, dim).to(dtype).transpose(1, 2)
        q, k = fused[:, :4], fused[:, 4:6]
        cos, sin = torch.randn(2, 1, num_tokens, dim).to(dtype)
        wanted = apply_rotary_pos_emb(*(tensor.float() for tensor in (q, k, cos, sin)))
        rest = fused[:, 6:].clone()
        for found, exact_value in zip(rotary(q, k, cos, sin), wanted, strict=True):
            assert error(found, exact_value) < 2 * ERRORS[dtype]
        assert torch.equal(fused[:, 6:], rest)


def test_only_the_rotation_that_we_know_is_replaced():
    qwen, glm = make_model("qwen3"), AutoModelForCausalLM.from_config(make_config("glm"))
    known, own = qwen.model.layers[0].self_attn, glm.model.layers[0].self_attn
    assert optimize.use_fast_rotary(known, torch.float32)
    assert "forward" in vars(known)
    assert not optimize.use_fast_rotary(own, torch.float32)  # of pairs of neighbours
    assert not optimize.use_fast_rotary(qwen.model.layers[0].mlp, torch.float32)


def test_mlps_that_do_something_else_stay():
    mlp = make_model("gemma2").model.layers[0].mlp
    assert not optimize.is_gated_mlp(mlp)  # GELU
    mlp = make_model("qwen3").model.layers[0].mlp
    assert optimize.is_gated_mlp(mlp)
    mlp.forward = lambda x: mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x)) * 2
    assert not optimize.is_gated_mlp(mlp)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_linear_layer_of_a_family_is_left(family):
    """That they still compute the same is tested where models are loaded, by test_parity.py."""
    model = make_model(family)
    optimize.optimize(model)
    assert not any(type(module) is nn.Linear for module in model.modules())
    if family in ("qwen3", "llama", "mistral"):
        layer = model.model.layers[0]
        assert isinstance(layer.mlp, GatedMLP)
        assert isinstance(layer.self_attn.q_proj, LinearPart)


@pytest.mark.parametrize(("quantization", "bits"), [("int8", 8), ("int4", 4)])
def test_a_whole_model_quantized(tmp_path, quantization, bits):
    save_model(tmp_path, "qwen3")
    config = EngineConfig(model=str(tmp_path), device="cpu", quantization=quantization)
    if kernel_for(torch.float32, quantization) is None:
        with pytest.raises(ModelLoadError, match="this takes a CPU with AVX512-VNNI"):
            load_model(config, silent)
        return
    model = load_model(config, silent).model
    layers = [m for m in model.modules() if isinstance(m, PackedLinear)]
    assert len(layers) == 3 * 3 + 1  # o_proj, gate and up, down; the head
    assert {layer.bits for layer in layers if layer is not model.lm_head} == {bits}
    assert model.lm_head.bits == 8


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"family": "mamba"}, "it keeps recurrent state"),
        ({"dtype": "float16"}, "none of its layers has the shape and dtype for it"),
        ({"quantization": "fp8"}, "and has int8 and int4"),
    ],
)
def test_what_cannot_be_quantized_is_refused(changes, reason, tmp_path):
    save_model(tmp_path, changes.pop("family", "qwen3"))
    config = EngineConfig(
        **{"model": str(tmp_path), "device": "cpu", "quantization": "int8"} | changes
    )
    problem = f"cannot be served with quantization {config.quantization}: .*{reason}"
    with pytest.raises(ModelLoadError, match=problem):
        load_model(config, silent)


def test_a_model_that_does_not_bear_it_is_refused(tmp_path, monkeypatch):
    if kernel_for(torch.float32, "int4") is None:
        pytest.skip("needs AVX512-VNNI")
    save_model(tmp_path, "qwen3")
    monkeypatch.setitem(parity.QUANTIZED_TOLERANCE, "int4", 0.05)
    config = EngineConfig(model=str(tmp_path), device="cpu", quantization="int4")
    with pytest.raises(ModelLoadError, match=r"quantization int4: the logits .* are off by"):
        load_model(config, silent)


@pytest.mark.parametrize(
    ("quantization", "capability", "problem"),
    [
        ("int4", (9, 0), "this is for CPUs, and a GPU has fp8"),
        ("fp8", (8, 6), "capability 8.9 or more"),
        ("fp8", (8, 9), None),
        ("fp8", (9, 0), None),
        (None, (8, 6), None),
    ],
)
def test_which_gpu_takes_which_quantization(monkeypatch, quantization, capability, problem):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    config = EngineConfig(quantization=quantization)
    with nullcontext() if problem is None else pytest.raises(ModelLoadError, match=problem):
        loader.check_quantization(config, torch.device("cuda"))


def in_fp8(rows: torch.Tensor) -> torch.Tensor:
    """What float8 leaves of each row, the largest of which becomes 448."""
    scales = rows.float().abs().amax(-1, keepdim=True) / 448
    return (rows.float() / scales).to(torch.float8_e4m3fn).float() * scales


class InFp8(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.linear(in_fp8(x), in_fp8(self.weight), bias).bfloat16()


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])  # without biases, and with
def test_fp8_of_a_whole_model(family, monkeypatch):
    """As a GPU would have it: float8 layers, fused, beside the model's own for everything else."""
    monkeypatch.setattr(cpu, "library", lambda: None)
    model, oracle, plain = (make_model(family).bfloat16() for _ in range(3))
    for module in oracle.model.modules():
        if type(module) is nn.Linear:
            module.__class__ = InFp8
    optimize.optimize(model, "fp8")
    for layer in model.model.layers:  # o, gate with up, down; q, k and v share another
        assert sum(isinstance(module, Fp8Linear) for module in layer.modules()) == 3
        assert isinstance(layer.self_attn.v_proj, LinearPart)
    assert type(model.lm_head) is nn.Linear

    token_ids = torch.tensor([random_prompt(20)])
    wanted = oracle(token_ids).logits.float()
    assert error(model(token_ids).logits, wanted) < 0.01
    assert error(plain(token_ids).logits, wanted) > 0.1


def test_fp8_can_be_compiled_as_one_graph(monkeypatch):
    monkeypatch.setattr(cpu, "library", lambda: None)
    model = make_model("qwen2", num_hidden_layers=1).bfloat16()
    optimize.optimize(model, "fp8")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for length in (7, 12):
        token_ids = torch.tensor([random_prompt(length)])
        assert torch.equal(compiled(token_ids).logits, model(token_ids).logits)


def test_a_model_that_needs_its_own_layers_gets_them_back(tmp_path, caplog):
    save_model(tmp_path, "qwen3")
    (tmp_path / "odd.py").write_text(ODD_MODEL)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "odd.OddForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    engine_config = EngineConfig(model=str(tmp_path), device="cpu", trust_remote_code=True)
    loaded = load_model(engine_config, silent)
    assert "runs with its own, slower layers: the paged path failed with AttributeE" in caplog.text
    assert loaded.paged
    assert type(loaded.model.model.layers[0].self_attn.q_proj) is nn.Linear
    assert loaded.model.config._attn_implementation == "nano"


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_whole_model_with_heads_that_all_kernels_take(family, tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "fuse", lambda *args: None)
    oracle = save_model(tmp_path, family, head_dim=64)
    config = EngineConfig(model=str(tmp_path), device="cpu", kv_cache_memory=2**22)
    loaded = load_model(config, silent)
    assert "forward" in vars(loaded.model.model.layers[0].self_attn)
    prompts = [random_prompt(length) for length in (1, 9, 40)]
    answers = continue_in_chunks(make_runner(loaded, config, silent), prompts, config.block_size)
    assert answers == [generate(oracle, prompt) for prompt in prompts]
