"""Put faster layers in the place of a loaded model's own, where they provably do the same.

Hugging Face's source stays as it is: modules are replaced from outside. The original weights are
freed as the packed ones are made, so this takes the memory of one more layer and no more.
"""

from collections.abc import Callable, Iterator
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
def optimize(model: PreTrainedModel, quantization: str | None = None) -> int:
    """Replace what can be replaced; how many modules that were."""
    on_cpu = model.device.type == "cpu" and cpu.library() is not None
    if not on_cpu and quantization != "fp8":
        return 0
    replaced = 0
    head = model.get_output_embeddings()
    for module in model.modules():  # as it goes: what was replaced is not looked into
        for name, child in list(module.named_children()):
            if is_gated_mlp(child) and packable(child, MLP_PARTS, quantization):
                setattr(module, name, GatedMLP(child, quantization))
            elif on_cpu and (norm := fast_norm(child)) is not None:
                setattr(module, name, norm)
            else:
                continue
            replaced += 1
        replaced += share_siblings(module, quantization)
        replaced += on_cpu and use_fast_rotary(module, model.dtype)
        for name, child in list(module.named_children()):
            own = HEADS.get(quantization, quantization) if child is head else quantization
            if can_pack(child, own):
                setattr(module, name, faster([child], own, is_head=child is head))
                replaced += 1
    return replaced


def leave_file(model: nn.Module) -> None:
    """Copy what is not packed: one tensor of a checkpoint's file keeps all of it in memory."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not (isinstance(module, nn.Linear) and name == "weight"):
                parameter.data = parameter.data.clone()


def packable(module: nn.Module, names: tuple[str, ...], quantization: str | None) -> bool:
    """Whether it has all these linear layers, all alike in dtype and in having a bias."""
    layers = [getattr(module, name, None) for name in names]
    kinds = {
        (layer.weight.dtype, layer.bias is None)
        for layer in layers
        if isinstance(layer, nn.Linear) and can_pack(layer, quantization)
    }
    return len(kinds) == 1 and all(can_pack(layer, quantization) for layer in layers)


def share_siblings(module: nn.Module, quantization: str | None) -> int:
    """Fuse projections of the same input."""
    replaced = 0
    for names in SIBLINGS:
        if not packable(module, names, quantization):
            continue
        layers = [getattr(module, name) for name in names]
        if len({layer.in_features for layer in layers}) == 1:
            shared = SharedLinear(layers, quantization)
            for index, name in enumerate(names):
                setattr(module, name, LinearPart(shared, index))
            replaced += len(names)
    return replaced


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
    try:
        wanted = original(q, k, cos, sin)
        return all(map(close, rotary(q, k, cos, sin), wanted))
    except Exception:  # it takes something else
        return False


def is_gated_mlp(module: nn.Module) -> bool:
    """Whether it computes down(silu(gate(x)) * up(x)) and nothing else: it is asked to."""
    if not all(type(getattr(module, name, None)) is nn.Linear for name in MLP_PARTS):
        return False
    weight = module.gate_proj.weight
    steps = torch.linspace(-10, 10, 101, dtype=weight.dtype, device=weight.device)
    x = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        gate, up = module.gate_proj(x), module.up_proj(x)
        return close(module.act_fn(steps), F.silu(steps)) and close(
            module(x), module.down_proj(F.silu(gate) * up)
        )
    except Exception:  # whatever its forward wants, it is another kind of module
        return False


def fast_norm(module: nn.Module) -> RMSNorm | None:
    """Its replacement, if it computes x / rms(x) * weight or * (1 + weight)."""
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or weight is None:
        return None
    eps = next((getattr(module, name) for name in EPS_NAMES if hasattr(module, name)), None)
    known = weight.dtype in TOLERANCE and weight.device.type == "cpu" and weight.dim() == 1
    if not isinstance(eps, float) or not known or len(weight) % 16:
        return None
    candidates = (RMSNorm(weight, eps, offset) for offset in (0.0, 1.0))
    return next((norm for norm in candidates if same_norm(norm, module)), None)


def same_norm(norm: RMSNorm, module: nn.Module) -> bool:
    """Compared on large rows, and on rows so small that eps counts."""
    try:
        return all(close(norm(x), module(x)) for x in probe_rows(norm.weight))
    except Exception:  # a norm that wants more than one argument
        return False


def probe_rows(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    rows = torch.randn(3, len(weight), generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 1e-3):
        yield (rows * scale).to(weight.dtype)


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal but for rounding, by the norm of the difference."""
    tolerance = TOLERANCE[wanted.dtype] * wanted.float().norm()
    return bool((found.float() - wanted.float()).norm() <= tolerance)
