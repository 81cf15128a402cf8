"""The reference attention against a dense masked softmax, one sequence and head at a time."""

import random

import pytest
import torch
from torch import Tensor

from inference.model import attention, context
from inference.model.attention import paged_attention_reference
from inference.model.context import AttentionContext, LayerCache
from inference.model.inputs import ModelInputs

K_DIM, V_DIM = 8, 6


def dense(query: Tensor, keys: Tensor, values: Tensor, first: int, **features) -> Tensor:
    """One head: queries `[C, K]` at positions from `first` on, over keys and values `[L, ...]`."""
    out = []
    for position, row in enumerate(query.double(), start=first):
        low = max(0, position + 1 - (features.get("sliding_window") or 10**9))
        scores = keys[low : position + 1].double() @ row * 0.25
        if features.get("softcap"):
            scores = features["softcap"] * torch.tanh(scores / features["softcap"])
        weights = scores.exp()
        sink = features["sink"].double().exp() if features.get("sink") is not None else 0
        out.append(weights @ values[low : position + 1].double() / (weights.sum() + sink))
    return torch.stack(out).float()


def make_inputs(counts: list[int], context_lens: list[int], tables: list[list[int]]) -> ModelInputs:
    num_tokens = sum(counts)
    ids = list(range(len(counts)))
    return ModelInputs([0] * num_tokens, counts, context_lens, tables, [], ids)


def scattered_tables(context_lens: list[int], block_size: int) -> tuple[list[list[int]], int]:
    """Block tables in random order, without block 0; and the number of blocks."""
    sizes = [-(-length // block_size) for length in context_lens]
    free = list(range(1, sum(sizes) + 1))
    random.Random(0).shuffle(free)
    return [[free.pop() for _ in range(size)] for size in sizes], sum(sizes) + 1


def check(counts, context_lens, block_size=4, num_kv_heads=2, group=2, sinks=None, **features):
    """Cache random keys and values, attend with the last `counts` rows, compare."""
    torch.manual_seed(0)
    num_heads = num_kv_heads * group
    tables, num_blocks = scattered_tables(context_lens, block_size)
    keys = [torch.randn(num_kv_heads, length, K_DIM) for length in context_lens]
    values = [torch.randn(num_kv_heads, length, V_DIM) for length in context_lens]
    cache = LayerCache(
        torch.zeros(num_blocks, num_kv_heads, block_size, K_DIM),
        torch.zeros(num_blocks, num_kv_heads, block_size, V_DIM),
    )
    filling = AttentionContext.of(make_inputs(context_lens, context_lens, tables), [cache])
    attention.store(cache, torch.cat(keys, 1), torch.cat(values, 1), filling)
    context = AttentionContext.of(make_inputs(counts, context_lens, tables), [cache])
    query = torch.randn(sum(counts), num_heads, K_DIM)

    out = paged_attention_reference(query, cache, context, scaling=0.25, sinks=sinks, **features)

    assert out.shape == (sum(counts), num_heads, V_DIM)
    start = 0
    for i, count in enumerate(counts):
        for head in range(num_heads):
            sink = None if sinks is None else sinks[head]
            expected = dense(
                query[start : start + count, head],
                keys[i][head // group],
                values[i][head // group],
                context_lens[i] - count,
                sink=sink,
                **features,
            )
            torch.testing.assert_close(out[start : start + count, head], expected)
        start += count


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("block_size", [1, 4, 32])
def test_ragged_decode(group, block_size):
    check([1] * 6, [1, block_size, block_size + 1, 7, 33, 2], block_size, group=group)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9])
def test_block_boundaries(length):
    check([length], [length])
    check([1], [length])


@pytest.mark.parametrize(
    "features",
    [
        {"sliding_window": 1},
        {"sliding_window": 4},
        {"sliding_window": 5},
        {"sliding_window": 100},
        {"softcap": 0.5},
        {"softcap": 2.0, "sliding_window": 3},
    ],
)
def test_window_and_softcap(features):
    check([1, 1, 5, 17], [3, 14, 9, 17], **features)


def test_sinks():
    check([1, 1, 5, 17], [3, 14, 9, 17], sinks=torch.tensor([-1.0, 0.0, 1.0, 3.0]))
    check([4], [9], sinks=torch.tensor([-1.0, 0.0, 1.0, 3.0]), sliding_window=3)


def test_chunks_between_decodes():
    check([1, 5, 1, 1, 5, 5, 2], [9, 30, 1, 40, 5, 6, 2], num_kv_heads=3, group=1)


def test_long_runs_are_cut_into_tiles(monkeypatch):
    monkeypatch.setattr(context, "MAX_TILE_SCORES", 32)
    inputs = make_inputs([1, 1, 1, 8], [12, 12, 20, 8], [[]] * 4)
    tiles = list(context.tile_bounds(inputs))
    assert tiles == [(0, 1, 0, 1), (1, 2, 0, 1), (2, 3, 0, 1), (3, 4, 0, 4), (3, 4, 4, 8)]
    check([1, 1, 1, 1, 13, 13], [5, 6, 20, 3, 13, 40])


def test_overflow_of_one_sequence_does_not_reach_the_next_owner_of_its_block():
    cache = LayerCache(torch.zeros(2, 1, 4, K_DIM), torch.zeros(2, 1, 4, V_DIM))
    for length, value in ((4, torch.inf), (2, 1.0)):
        context = AttentionContext.of(make_inputs([length], [length], [[1]]), [cache])
        keys = torch.full((1, length, K_DIM), value)
        attention.store(cache, keys, torch.full((1, length, V_DIM), value), context)
    out = paged_attention_reference(torch.ones(2, 1, K_DIM), cache, context, scaling=1.0)
    torch.testing.assert_close(out, torch.ones(2, 1, V_DIM))


def test_a_paged_model_refuses_to_run_without_a_context():
    module = torch.nn.Identity()
    module.layer_idx = 0
    with pytest.raises(RuntimeError, match="outside of attending"):
        attention.nano_attention(module, *[torch.zeros(1, 1, 1, 4)] * 3)
