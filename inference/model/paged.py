"""A Hugging Face model run over a paged KV cache."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inference.model.attention import attending
from inference.model.context import AttentionContext, LayerCache
from inference.model.inputs import ModelInputs
from inference.model.kernels import cpu
from inference.model.transfer import upload


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What one attention layer keeps of each token. `sliding_window` None sees everything."""

    num_kv_heads: int
    k_head_dim: int
    v_head_dim: int
    sliding_window: int | None = None
    scaling: float = 1.0
    is_special: bool = False  # it caps its scores or has sinks

    @property
    def elements_per_token(self) -> int:
        return self.num_kv_heads * (self.k_head_dim + self.v_head_dim)


def allocate_caches(
    layers: Sequence[LayerSpec], num_blocks: int, block_size: int, model: PreTrainedModel
) -> list[LayerCache]:
    """Empty caches in the model's dtype and on its device.

    Two tensors per layer rather than views of one, because a compiler that functionalizes writes
    would copy the whole of what they share. Zeros, because a masked slot is still read.
    """

    def empty(layer: LayerSpec, head_dim: int) -> Tensor:
        shape = (num_blocks, layer.num_kv_heads, block_size, head_dim)
        return lazy_zeros(shape, model.dtype, model.device)

    return [
        LayerCache(empty(spec, spec.k_head_dim), empty(spec, spec.v_head_dim)) for spec in layers
    ]


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU they take memory only once they are written to, unlike torch's own."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return cpu.zeros(shape, dtype)


@torch.inference_mode()
def forward_paged(
    model: PreTrainedModel,
    inputs: ModelInputs,
    caches: list[LayerCache],
    max_model_len: int | None = None,
) -> Tensor:
    """Float32 logits `[len(inputs.logit_rows), vocab_size]`; the new keys and values are cached."""
    context = AttentionContext.of(inputs, caches, max_model_len)
    with attending(context):
        output = model(
            input_ids=inputs.tokens(model.device)[None],
            position_ids=context.positions[None],
            use_cache=False,
            logits_to_keep=upload(inputs.logit_rows, model.device, torch.long),
        )
    return output.logits[0].float()
