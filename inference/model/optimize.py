"""Put faster layers in the place of a loaded model's own, where they provably do the same.

Hugging Face's source stays as it is: modules are replaced from outside. The original weights are
freed as the packed ones are made, so this takes the memory of one more layer and no more.
"""

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from inference.model.kernels import cpu
from inference.model.layers import (
    GatedMLP,
    LinearPart,
    RMSNorm,
    Rotary,
    SharedLinear,
    can_pack,
    faster,
)

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # over the same input
MLP_PARTS = ("gate_proj", "up_proj", "down_proj")
# The error of the head shows most: it is spared what the layers have to bear
HEADS: dict[str | None, str | None] = {"int4": "int8", "fp8": None}
ROTARY = "apply_rotary_pos_emb"
EPS_NAMES = ("variance_epsilon", "eps")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@torch.inference_mode()
def optimize(model: PreTrainedModel, quantization: str | None = None) -> None:
    """Replace what can be replaced."""
    on_cpu = model.device.type == "cpu" and cpu.library() is not None
    head = model.get_output_embeddings()
    for module in model.modules():  # as it goes: what was replaced is not looked into
        for name, child in list(module.named_children()):
            if packable(child, MLP_PARTS, quantization) and is_gated_mlp(child):
                setattr(module, name, GatedMLP(child, quantization))
            elif on_cpu and (norm := fast_norm(child)) is not None:
                setattr(module, name, norm)
        share_siblings(module, quantization)
        if on_cpu:
            use_fast_rotary(module, model.dtype)
        for name, child in list(module.named_children()):
            own = HEADS.get(quantization, quantization) if child is head else quantization
            if can_pack(child, own):
                setattr(module, name, faster([child], own, is_head=child is head))


def leave_file(model: nn.Module) -> None:
    """Copy what is not packed: one tensor of a checkpoint's file keeps all of it in memory."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not (isinstance(module, nn.Linear) and name == "weight"):
                parameter.data = parameter.data.clone()


def packable(module: nn.Module, names: tuple[str, ...], quantization: str | None) -> bool:
    """Whether it has all these linear layers, all alike in dtype and in having a bias."""
    layers: list[Any] = [getattr(module, name, None) for name in names]
    if not all(can_pack(layer, quantization) for layer in layers):
        return False
    return len({(layer.weight.dtype, layer.bias is None) for layer in layers}) == 1


def share_siblings(module: nn.Module, quantization: str | None) -> None:
    """Fuse projections of the same input."""
    for names in SIBLINGS:
        if not packable(module, names, quantization):
            continue
        layers = [getattr(module, name) for name in names]
        if len({layer.in_features for layer in layers}) == 1:
            shared = SharedLinear(layers, quantization)
            for index, name in enumerate(names):
                setattr(module, name, LinearPart(shared, index))


def use_fast_rotary(module: nn.Module, dtype: torch.dtype) -> bool:
    """Let an attention module rotate with our kernel, if its own function computes the same.

    The function is a global of transformers' source. What the module gets is its own `forward`,
    over a copy of these globals: other models of the process keep theirs.
    """
    forward = type(module).forward
    original = getattr(forward, "__globals__", {}).get(ROTARY)
    if original is None or ROTARY not in forward.__code__.co_names or dtype not in TOLERANCE:
        return False
    rotary = Rotary(original)
    if not same_rotation(rotary, original, dtype):
        return False
    scope = forward.__globals__ | {ROTARY: rotary}
    code, name, defaults = forward.__code__, forward.__name__, forward.__defaults__
    ours = FunctionType(code, scope, name, defaults, forward.__closure__)
    ours.__kwdefaults__ = forward.__kwdefaults__
    module.forward = MethodType(ours, module)
    return True


def same_rotation(rotary: Rotary, original: Callable[..., Any], dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, 5, 64, generator=generator).to(dtype) for heads in (4, 2))
    cos, sin = torch.randn(2, 1, 5, 64, generator=generator).to(dtype)

    def rotated(rotate: Callable[..., Any]) -> Callable[..., torch.Tensor]:
        return lambda tensors: torch.cat(rotate(*tensors), dim=1)

    return same(rotated(rotary), rotated(original), (q, k, cos, sin))


def is_gated_mlp(module: nn.Module) -> bool:
    """Whether it computes down(silu(gate(x)) * up(x)) and nothing else: it is asked to."""
    if not all(type(getattr(module, name, None)) is nn.Linear for name in MLP_PARTS):
        return False

    def gated(x: torch.Tensor) -> torch.Tensor:
        return module.down_proj(F.silu(module.gate_proj(x)) * module.up_proj(x))

    weight = module.gate_proj.weight
    steps = torch.linspace(-10, 10, 101, dtype=weight.dtype, device=weight.device)
    x = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    return same(F.silu, getattr(module, "act_fn", None), steps) and same(gated, module, x)


def fast_norm(module: nn.Module) -> RMSNorm | None:
    """Its replacement, if it computes x / rms(x) * weight or * (1 + weight)."""
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or weight is None:
        return None
    eps = next((getattr(module, name) for name in EPS_NAMES if hasattr(module, name)), None)
    known = weight.dtype in TOLERANCE and weight.device.type == "cpu" and weight.dim() == 1
    if not isinstance(eps, float) or not known or len(weight) % 16:
        return None
    large = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0))
    rows = [(large * scale).to(weight.dtype) for scale in (1.0, 1e-3)]  # in the last, eps counts
    candidates = (RMSNorm(weight, eps, offset) for offset in (0.0, 1.0))
    return next((norm for norm in candidates if same(norm, module, *rows)), None)


def same(ours: Callable[..., Any], theirs: Any, *inputs: Any) -> bool:
    """Whether both make the same of each input, but for rounding, by the norm of the difference.

    Ours may write to its input, and comes second.
    """
    try:
        for x in inputs:
            wanted, found = theirs(x), ours(x)
            tolerance = TOLERANCE[wanted.dtype] * wanted.float().norm()
            if not (found.float() - wanted.float()).norm() <= tolerance:
                return False
    except Exception:  # whatever theirs wants, it is of another kind
        return False
    return True
