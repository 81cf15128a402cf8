"""The Triton kernels against the reference, on the GPU if there is one, else interpreted."""

import pytest
import torch

from inference.model.attention import paged_attention_reference, store
from inference.model.context import AttentionContext, LayerCache
from inference.model.paged import lazy_zeros
from tests.inference.test_attention import make_inputs, scattered_tables

pytest.importorskip("triton")
triton_attention = pytest.importorskip("inference.model.kernels.triton_attention")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BLOCK_SIZE = 16
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
BORDERS = [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1]


def random_tensor(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


def check(
    counts: list[int],
    context_lens: list[int],
    *,
    group: int = 2,
    num_kv_heads: int = 2,
    dims: tuple[int, int] = (32, 32),
    dtype: torch.dtype = torch.float32,
    max_model_len: int | None = None,
    **features,
) -> None:
    """Attend with the last `counts` rows of sequences whose other rows are cached already.

    All slots that hold nothing hold NaN, those of the padding block included.
    """
    torch.manual_seed(0)
    tables, num_blocks = scattered_tables(context_lens, BLOCK_SIZE)
    shapes = [(num_blocks, num_kv_heads, BLOCK_SIZE, dim) for dim in dims]
    cache, expected_cache = (
        LayerCache(*(torch.full(shape, fill, dtype=dtype, device=DEVICE) for shape in shapes))
        for fill in (torch.nan, 0.0)
    )
    num_rows = sum(context_lens)
    # As a model's projections leave them: heads beside each other, in one row per token
    key, value = (random_tensor(num_rows, num_kv_heads, dim, dtype=dtype) for dim in dims)
    key, value = key.transpose(0, 1), value.transpose(0, 1)
    everything = AttentionContext.of(make_inputs(context_lens, context_lens, tables), [cache])
    store(expected_cache, key, value, everything)
    store(cache, key, value, everything)
    inputs = make_inputs(counts, context_lens, tables)
    context = AttentionContext.of(inputs, [cache], max_model_len)
    cache.keys[context.slot_blocks, :, context.slot_offsets] = torch.nan
    cache.values[context.slot_blocks, :, context.slot_offsets] = torch.nan
    ends = torch.tensor(context_lens).cumsum(0).tolist()
    new = [row for end, count in zip(ends, counts, strict=True) for row in range(end - count, end)]
    query = random_tensor(len(new), num_kv_heads * group, dims[0], dtype=dtype)
    features = {"scaling": dims[0] ** -0.5, **features}

    out = triton_attention.paged_attention_triton(
        query, key[:, new], value[:, new], cache, context, **features
    )

    expected = paged_attention_reference(query, expected_cache, context, **features)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(cache.keys.nan_to_num(), expected_cache.keys, rtol=0, atol=0)
    torch.testing.assert_close(cache.values.nan_to_num(), expected_cache.values, rtol=0, atol=0)


@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("dim", [64, 128])
def test_ragged_decode(group, dim):
    check([1] * 5, [*BORDERS, 150], group=group, dims=(dim, dim))


@pytest.mark.parametrize("group", [1, 3, 8])
def test_prompts_and_chunks(group):
    check(BORDERS, BORDERS, group=group)
    check([150, 40], [150, 200], group=group, num_kv_heads=1)


def test_decodes_between_chunks():
    check([1, 17, 1, 1, 5, 70, 2], [90, 30, 1, 40, 5, 100, 200])


@pytest.mark.parametrize("dims", [(80, 80), (96, 96), (256, 256), (24, 12), (192, 128)])
def test_head_dims(dims):
    check([1, 1], [40, 5], dims=dims)
    check([20, 1], [40, 5], dims=dims)


BFLOAT16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(DEVICE.type == "cpu", reason="the interpreter's dot takes it for int"),
)


@pytest.mark.parametrize("dtype", [torch.float16, BFLOAT16])
def test_low_precision(dtype):
    check([1, 1], [40, 150], dims=(64, 64), dtype=dtype, max_model_len=512)
    check([20, 1], [40, 150], dims=(64, 64), dtype=dtype)


FEATURES = [
    {"sliding_window": 1},
    {"sliding_window": 16},
    {"sliding_window": 100},
    {"softcap": 0.5},
    {"softcap": 2.0, "sliding_window": 33},
    {"sinks": [-1.0, 0.0, 1.0, 3.0]},
    {"sinks": [-1.0, 0.0, 1.0, 3.0], "sliding_window": 10},
]


def with_tensors(features: dict) -> dict:
    if "sinks" not in features:
        return features
    return {**features, "sinks": torch.tensor(features["sinks"], device=DEVICE)}


@pytest.mark.parametrize("features", FEATURES)
def test_features(features):
    check([1, 1], [9, 150], **with_tensors(features))
    check([3, 1, 70], [3, 90, 140], **with_tensors(features))


@pytest.mark.parametrize("features", [{}, *FEATURES])
def test_splits_of_which_some_are_empty(features):
    check([1, 1, 1], [256, 3, 700], max_model_len=1000, num_kv_heads=2, **with_tensors(features))


@pytest.mark.parametrize("features", [{}, {"sinks": [-1.0, 3.0]}, {"sliding_window": 300}])
def test_splits_of_which_some_tokens_see_nothing(features):
    features = with_tensors(features)
    check([1, 4], [257, 514], max_model_len=1000, num_kv_heads=1, **features)


def test_splits_of_decode_depend_on_the_longest_context_only():
    def num_splits(counts: list[int], context_len: int, max_model_len: int) -> int:
        inputs = make_inputs(counts, [context_len] * len(counts), [[1]] * len(counts))
        shape = (2, 1, 1024, 16)
        cache = LayerCache(torch.zeros(shape), torch.zeros(shape))
        context = AttentionContext.of(inputs, [cache], max_model_len)
        return triton_attention.choose_num_splits(context, sum(counts))

    limits = (16, 256, 257, 3000, 10**6)
    assert [num_splits([1], 5, limit) for limit in limits] == [1, 1, 2, 16, 32]
    assert num_splits([1] * 300, 900, 3000) == 16
    assert num_splits([1, 200], 200, 3000) == 16
    assert num_splits([1, 300], 300, 3000) == 1


def test_values_become_finite():
    shape = (2, 1, BLOCK_SIZE, 16)
    cache = LayerCache(torch.zeros(shape, device=DEVICE), torch.zeros(shape, device=DEVICE))
    context = AttentionContext.of(make_inputs([4], [4], [[1]]), [cache])
    value = torch.tensor([torch.inf, -torch.inf, torch.nan, 2.0], device=DEVICE)
    value = value[None, :, None].expand(1, 4, 16)
    triton_attention.store_triton(cache, torch.ones_like(value), value, context)
    assert cache.values[1, 0, :4].equal(value[0].nan_to_num())


def test_a_cache_of_more_than_two_to_the_31_elements():
    """Only the pages in use take memory."""
    num_blocks = 2**31 // (BLOCK_SIZE * 128) + 2
    shape = (num_blocks, 1, BLOCK_SIZE, 128)
    cache = LayerCache(*(lazy_zeros(shape, torch.float16, DEVICE) for _ in range(2)))
    context = AttentionContext.of(make_inputs([3], [3], [[num_blocks - 1]]), [cache])
    rows = random_tensor(1, 3, 128, dtype=torch.float16)
    out = triton_attention.paged_attention_triton(
        rows.transpose(0, 1), rows, rows, cache, context, scaling=1.0
    )
    assert cache.values[num_blocks - 1, 0, :3].equal(rows[0])
    assert out[0].equal(rows[:, 0])
