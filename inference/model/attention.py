"""Paged attention for unmodified Hugging Face modules.

A module whose attention implementation is "nano" hands its queries, keys and values to
`nano_attention`. What they do not know (which sequence a row belongs to, where the cache is) comes
from the context that the runner sets around the model run.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface

from inference.model.inputs import ModelInputs
from inference.model.kernels import cpu

NAME = "nano"
IntArray = NDArray[np.int64]
MAX_TILE_SCORES = 2**22  # per head: bounds the score matrix of the reference


class Tile(NamedTuple):
    """Equally many query rows of several sequences, attended to in one go."""

    rows: Tensor  # [S * C] rows of the flattened input
    positions: Tensor  # [S, C] of these rows in their sequences
    block_tables: Tensor  # [S, B]


@dataclass
class LayerCache:
    """Keys and values of one layer: `[num_blocks, num_kv_heads, block_size, head_dim]` each."""

    keys: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        self.has_kernel = cpu.can_attend(self.keys, self.values)

    @property
    def block_size(self) -> int:
        return int(self.keys.shape[2])


@dataclass
class AttentionContext:
    """One model run over T new tokens of S sequences, as tensors on the model's device."""

    inputs: ModelInputs
    layers: list[LayerCache]
    positions: Tensor  # [T]
    cu_seqlens: Tensor  # [S + 1] where each sequence's rows start
    context_lens: Tensor  # [S]
    block_tables: Tensor  # [S, B], padded with block 0
    slot_blocks: Tensor  # [T] block of each new token
    slot_offsets: Tensor  # [T] and its place in there

    @classmethod
    def of(cls, inputs: ModelInputs, layers: list[LayerCache]) -> Self:
        """Lay out a run. Every block table must reach up to its context length."""
        block_size, device = layers[0].block_size, layers[0].keys.device
        counts, context_lens = np.array(inputs.counts), np.array(inputs.context_lens)
        cu_seqlens = np.concatenate([[0], counts.cumsum()])
        seqs = np.repeat(np.arange(len(counts)), counts)
        positions = np.arange(len(seqs)) + (context_lens - cu_seqlens[1:])[seqs]
        block_tables = pad_tables(inputs, block_size)
        arrays = (
            positions,
            cu_seqlens,
            context_lens,
            block_tables,
            block_tables[seqs, positions // block_size],
            positions % block_size,
        )
        tensors = (torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)
        return cls(inputs, layers, *tensors)

    @cached_property
    def kernel(self) -> cpu.PagedAttention:
        """The compiled attention of this run, for layers whose cache has one."""
        kernels = cpu.library()
        assert kernels is not None, "no cache has a kernel without kernels"
        return cpu.PagedAttention(
            kernels,
            block_tables=self.block_tables,
            cu_seqlens=self.cu_seqlens,
            context_lens=self.context_lens,
            slot_blocks=self.slot_blocks,
            slot_offsets=self.slot_offsets,
        )

    @cached_property
    def tiles(self) -> list[Tile]:
        """The run cut into pieces for `paged_attention_reference`."""
        return [self._tile(*bounds) for bounds in tile_bounds(self.inputs)]

    def _tile(self, first: int, last: int, start: int, stop: int) -> Tile:
        starts = self.cu_seqlens[first:last, None]
        rows = starts + torch.arange(start, stop, device=starts.device)
        num_blocks = -(-max(self.inputs.context_lens[first:last]) // self.layers[0].block_size)
        return Tile(
            rows.flatten(), self.positions[rows], self.block_tables[first:last, :num_blocks]
        )


def tile_bounds(inputs: ModelInputs) -> Iterator[tuple[int, int, int, int]]:
    """Sequences [first, last) and of each the new tokens [start, stop).

    Neighbours with equally many new tokens go together, so all decode rows are one tile, as long
    as their scores stay within `MAX_TILE_SCORES`.
    """
    first = 0
    for count, members in groupby(inputs.counts):
        end = first + len(list(members))
        longest = max(inputs.context_lens[first:end])
        num_seqs = max(1, MAX_TILE_SCORES // (longest * count))
        num_rows = max(1, MAX_TILE_SCORES // longest)
        for begin in range(first, end, num_seqs):
            for start in range(0, count, num_rows):
                yield begin, min(begin + num_seqs, end), start, min(start + num_rows, count)
        first = end


def pad_tables(inputs: ModelInputs, block_size: int) -> IntArray:
    """Block tables as one array, `[S, most blocks in use]`."""
    used = [-(-context_len // block_size) for context_len in inputs.context_lens]
    width = max(used)
    tables = zip(inputs.block_tables, used, strict=True)
    return np.array([table[:num] + [0] * (width - num) for table, num in tables], dtype=np.int64)


class _Current(threading.local):
    """The context of the run in progress; models on different threads do not see each other."""

    context: AttentionContext | None = None


_current = _Current()


@contextmanager
def attending(context: AttentionContext) -> Iterator[None]:
    """Let the attention layers of the models run inside use `context`."""
    _current.context = context
    try:
        yield
    finally:
        _current.context = None


def nano_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **unused: object,
) -> tuple[Tensor, None]:
    """Store the new keys and values, attend to all of them; the signature is transformers'.

    `query` is `[1, H, T, D]`, `key` and `value` `[1, KH, T, D]`; the answer is `[1, T, H, D]`.
    There is no mask: transformers builds none for an implementation it does not know.
    """
    context = _current.context
    if context is None:
        raise RuntimeError("a model with paged attention ran outside of attending()")
    cache = context.layers[int(module.layer_idx)]
    features: Any = {
        "scaling": query.shape[-1] ** -0.5 if scaling is None else scaling,
        "sliding_window": sliding_window,
        "softcap": softcap,
        "sinks": s_aux,
    }
    if cache.has_kernel:
        out = context.kernel(query[0], key[0], value[0], cache.keys, cache.values, **features)
    else:
        store(cache, key[0], value[0], context)
        out = paged_attention_reference(query[0].transpose(0, 1), cache, context, **features)
    return out[None].to(query.dtype), None


AttentionInterface.register(NAME, nano_attention)


def store(cache: LayerCache, key: Tensor, value: Tensor, context: AttentionContext) -> None:
    """Write the keys and values of the new tokens, `[KH, T, D]`, into their slots."""
    blocks, offsets = context.slot_blocks, context.slot_offsets
    cache.keys[blocks, :, offsets] = key.transpose(0, 1).to(cache.keys.dtype)
    # A masked slot has weight 0, and 0 * inf would carry one sequence's overflow to whoever
    # gets its block next.
    cache.values[blocks, :, offsets] = value.transpose(0, 1).nan_to_num().to(cache.values.dtype)


def paged_attention_reference(
    query: Tensor,
    cache: LayerCache,
    context: AttentionContext,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of new tokens to everything cached of their sequences.

    `query` is `[T, H, K]`, the answer `[T, H, V]`, with K and V the head dims of the caches. A
    query sees `sliding_window` positions, its own included. `softcap` c squashes a score x to
    c * tanh(x / c). `sinks` `[H]` are logits that take part in the softmax and have no value.
    """
    out = query.new_empty(*query.shape[:2], cache.values.shape[-1])
    for tile in context.tiles:
        keys = gather_blocks(cache.keys, tile.block_tables)
        values = gather_blocks(cache.values, tile.block_tables)
        packed = pack_heads(query[tile.rows], len(tile.positions), keys.shape[1])
        scores = torch.matmul(packed.flatten(2, 3), keys.transpose(-1, -2)).float() * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.view(*packed.shape[:-1], -1)  # [S, KH, G, C, L]
        hidden = hidden_positions(tile.positions, keys.shape[2], sliding_window)
        scores.masked_fill_(hidden[:, None, None], -torch.inf)
        weights = softmax_with_sinks(scores, sinks).to(values.dtype)
        attended = torch.matmul(weights.flatten(2, 3), values).view(*packed.shape[:-1], -1)
        out[tile.rows] = attended.permute(0, 3, 1, 2, 4).reshape(-1, *out.shape[1:])
    return out


def gather_blocks(cache: Tensor, block_tables: Tensor) -> Tensor:
    """`[S, KH, B * block_size, D]`: the cached rows of each sequence, in one copy."""
    _, num_heads, block_size, head_dim = cache.shape
    heads = torch.arange(num_heads, device=cache.device)[:, None]
    index = block_tables[:, None] * num_heads + heads  # [S, KH, B]
    rows = cache.view(-1, block_size * head_dim).index_select(0, index.flatten())
    return rows.view(len(block_tables), num_heads, -1, head_dim)


def pack_heads(query: Tensor, num_seqs: int, num_kv_heads: int) -> Tensor:
    """`[S * C, H, K]` as `[S, KH, G, C, K]`: the heads of a group become rows over shared keys.

    torch's own `enable_gqa` is several times slower on CPU.
    """
    split = query.view(num_seqs, -1, num_kv_heads, query.shape[1] // num_kv_heads, query.shape[2])
    return split.permute(0, 2, 3, 1, 4)


def hidden_positions(positions: Tensor, num_keys: int, sliding_window: int | None) -> Tensor:
    """`[S, C, num_keys]`: the keys that the queries at `positions` must not see."""
    keys = torch.arange(num_keys, device=positions.device)
    ahead = keys - positions[..., None]
    if sliding_window is None:
        return ahead > 0
    return (ahead > 0) | (ahead <= -sliding_window)


def softmax_with_sinks(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over the last dim of `[S, KH, G, C, L]`, with one more logit per head if given."""
    if sinks is None:
        return scores.softmax(-1)
    sink = sinks.float().view(1, scores.shape[1], scores.shape[2], 1, 1)
    column = sink.expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]
