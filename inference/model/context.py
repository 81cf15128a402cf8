"""Where a run's tokens and their cached keys and values are, as attention kernels want it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.model.inputs import ModelInputs
from inference.model.kernels import cpu
from inference.model.transfer import upload

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
    max_model_len: int
    positions: Tensor  # [T]
    cu_seqlens: Tensor  # [S + 1] where each sequence's rows start
    context_lens: Tensor  # [S]
    block_tables: Tensor  # [S, B], padded with block 0
    slot_blocks: Tensor  # [T] block of each new token
    slot_offsets: Tensor  # [T] and its place in there
    _query_tiles: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, inputs: ModelInputs, layers: list[LayerCache], max_model_len: int | None = None
    ) -> Self:
        """Lay out a run. Every block table must reach up to its context length.

        `max_model_len` is the longest context of any run, this one's if not given.
        """
        device = layers[0].keys.device
        tensors = lay_out(inputs, layers[0].block_size)
        uploaded = (upload(tensor, device) for tensor in tensors)
        return cls(inputs, layers, max_model_len or max(inputs.context_lens), *uploaded)

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
    def decode_only(self) -> bool:
        """Whether every sequence brings one token."""
        return max(self.inputs.counts) == 1

    def query_tiles(self, length: int) -> Tensor:
        """`[N, 2]` int32: sequence and first new token of every `length` new tokens.

        Made and moved to the device once per run, because layers ask for the same length.
        """
        if length not in self._query_tiles:
            starts = [
                (seq, start)
                for seq, count in enumerate(self.inputs.counts)
                for start in range(0, count, length)
            ]
            self._query_tiles[length] = upload(starts, self.positions.device, torch.int32)
        return self._query_tiles[length]

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


def lay_out(inputs: ModelInputs, block_size: int) -> tuple[Tensor, ...]:
    """The tensors of an AttentionContext, in its order, on the CPU."""
    counts, context_lens = np.array(inputs.counts), np.array(inputs.context_lens)
    cu_seqlens = np.concatenate([[0], counts.cumsum()])
    seqs = np.repeat(np.arange(len(counts)), counts)
    positions = np.arange(len(seqs)) + (context_lens - cu_seqlens[1:])[seqs]
    block_tables = pad_tables(inputs, block_size)
    blocks, offsets = positions // block_size, positions % block_size
    arrays = positions, cu_seqlens, context_lens, block_tables, block_tables[seqs, blocks], offsets
    return tuple(map(torch.from_numpy, arrays))


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
