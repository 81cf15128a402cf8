"""All decoder layers of a model in one call of the CPU's kernels.

Between two kernels transformers and Python take longer than a small model computes. Layers of the
common kind (norm, attention with rotary embedding, norm, gated MLP, each added to its input) need
nothing in between; to the model around them they look like one layer.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inference.model.attention import current_context
from inference.model.context import AttentionContext, LayerCache
from inference.model.kernels import cpu
from inference.model.layers import GatedMLP, LinearPart, PackedLinear, RMSNorm, SharedLinear, needed
from inference.model.paged import LayerSpec

LAYER_PARTS = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
HEAD_NORMS = ("q_norm", "k_norm")


def fuse(model: nn.Module, specs: Sequence[LayerSpec]) -> "Fused | None":
    """Put one layer in the place of all, if they are of the known kind.

    Whether they also compute what that kind does has to be seen by comparing the model's logits.
    """
    for module in model.modules():
        layers = getattr(module, "layers", None)
        if not isinstance(layers, nn.ModuleList) or len(layers) != len(specs):
            continue
        if all(map(is_known, layers, specs)):
            return Fused(module, layers, DecoderStack(list(layers), specs))
    return None


class Fused:
    """A model part whose layers were replaced; they can be given back."""

    def __init__(self, owner: nn.Module, layers: nn.ModuleList, stack: "DecoderStack") -> None:
        self._owner, self._layers = owner, layers
        owner.layers = nn.ModuleList([stack])

    def undo(self) -> None:
        self._owner.layers = self._layers


def is_known(layer: nn.Module, spec: LayerSpec) -> bool:
    """Whether the layer has exactly the parts that `DecoderStack` computes, all of them packed."""
    if {name for name, _ in layer.named_children()} != LAYER_PARTS or spec.is_special:
        return False
    attention, dim = layer.self_attn, spec.k_head_dim
    names = {name for name, _ in attention.named_children()}
    norms = [getattr(attention, name, None) for name in HEAD_NORMS]
    return (
        isinstance(layer.mlp, GatedMLP)
        and isinstance(layer.input_layernorm, RMSNorm)
        and isinstance(layer.post_attention_layernorm, RMSNorm)
        and names in ({*PROJECTIONS, "o_proj"}, {*PROJECTIONS, "o_proj", *HEAD_NORMS})
        and all(isinstance(getattr(attention, name), LinearPart) for name in PROJECTIONS)
        and isinstance(attention.o_proj, PackedLinear)
        and all(norm is None or is_head_norm(norm, dim) for norm in norms)
        and dim == spec.v_head_dim
        and dim % 32 == 0
    )


def is_head_norm(norm: nn.Module, dim: int) -> bool:
    return isinstance(norm, RMSNorm) and len(norm.weight) == dim


class DecoderStack(nn.Module):
    """Decoder layers, in place of the first of them."""

    def __init__(self, layers: Sequence[nn.Module], specs: Sequence[LayerSpec]) -> None:
        super().__init__()
        self._kept = list(layers)  # whose memory is in use; no children: they are not run
        first, spec = layers[0], specs[0]
        if hasattr(first, "attention_type"):
            self.attention_type = first.attention_type
        self._kernel = needed(cpu.kernel("decoder_stack"))
        facts = (cpu.DecoderArguments * len(layers))(*map(described, layers, specs))
        self._known: tuple[Sequence[LayerCache], Any] = (), facts  # caches, layers that use them
        shared = shared_projection(first)
        self._sizes = {
            "normed": first.mlp.down.out_features,
            "qkv": max(shared.packed.out_features, first.mlp.down.out_features),
            "attended": first.self_attn.o_proj.in_features,
            "gated": first.mlp.gate_up.out_features,
        }
        self._arguments = cpu.StackArguments(
            num_layers=len(layers),
            hidden_size=first.mlp.down.out_features,
            num_heads=first.self_attn.o_proj.in_features // spec.k_head_dim,
            num_kv_heads=spec.num_kv_heads,
            dim=spec.k_head_dim,
            is_bf16=shared.packed.dtype == torch.bfloat16,
            bits=shared.packed.bits,
        )

    def forward(
        self,
        hidden_states: Tensor,
        *_: object,
        position_embeddings: tuple[Tensor, Tensor],
        **others: Any,
    ) -> Tensor:
        """`[1, T, hidden_size]` to the same; the new keys and values are cached.

        Only those rows are right whose logits the run wants.
        """
        context = current_context()
        wanted = torch.tensor(sorted({*context.inputs.logit_rows}), dtype=torch.long)
        arguments = cpu.StackArguments.from_buffer_copy(self._arguments)  # threads share the stack
        cos, sin = (part.contiguous() for part in position_embeddings)
        num_tokens = hidden_states.shape[1]
        if cos.shape != (1, num_tokens, arguments.dim) or cos.dtype != hidden_states.dtype:
            raise TypeError(f"rotary embeddings of {cos.dtype} {tuple(cos.shape)}")
        layers = self._layers_for(context)
        hidden = hidden_states.clone(memory_format=torch.contiguous_format)
        memory = {
            name: torch.empty(num_tokens, size, dtype=hidden.dtype)
            for name, size in self._sizes.items()
        }
        cache = context.layers[0]
        run = context.kernel.described(cache.keys, cache.values, arguments.num_heads)
        arguments.run, arguments.layers = ctypes.addressof(run), ctypes.addressof(layers)
        tensors = {"hidden": hidden, "cos": cos, "sin": sin, "wanted": wanted} | memory
        for name, tensor in tensors.items():
            setattr(arguments, name, tensor.data_ptr())
        arguments.num_tokens, arguments.num_wanted = num_tokens, len(wanted)
        arguments.num_threads = torch.get_num_threads()
        self._kernel(arguments)
        return hidden

    def _layers_for(self, context: AttentionContext) -> Any:
        """The layers with these caches. A thread that was given up may still be in the others'."""
        caches, layers = self._known
        if caches is not context.layers:
            layers = type(layers).from_buffer_copy(layers)
            for layer, cache in zip(layers, context.layers, strict=True):
                layer.keys, layer.values = cache.keys.data_ptr(), cache.values.data_ptr()
            self._known = context.layers, layers
        return layers


def described(layer: nn.Module, spec: LayerSpec) -> Any:
    """One layer for the kernel: where its parts are."""
    attention, mlp = layer.self_attn, layer.mlp
    parts = {
        "qkv": shared_projection(layer).packed,
        "o": attention.o_proj,
        "gate_up": mlp.gate_up,
        "down": mlp.down,
        "input_norm": layer.input_layernorm,
        "post_norm": layer.post_attention_layernorm,
        **{name: getattr(attention, name, None) for name in HEAD_NORMS},
    }
    places = {
        name: None if part is None else ctypes.addressof(part.arguments)
        for name, part in parts.items()
    }
    window = spec.sliding_window or 0
    return cpu.DecoderArguments(**places, window=window, scaling=spec.scaling)


def shared_projection(layer: nn.Module) -> SharedLinear:
    return layer.self_attn.q_proj.shared
