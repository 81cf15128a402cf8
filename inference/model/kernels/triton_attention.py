"""Paged attention on GPUs: one kernel for decode rows, prefill chunks and mixtures of both.

Online softmax over tiles of keys (FlashAttention-2, arXiv 2307.08691). The query heads that share
a key head are rows of one tile, and a long context is cut into splits that are attended to side by
side and merged (Flash-Decoding); see "The Anatomy of a Triton Attention Kernel", arXiv 2511.11581.
Logits are kept in units of log 2, because GPUs have an instruction for exp2 and none for exp.
Products of float32 are taken as three of its tf32 parts each, which is as exact and much faster.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference.model.context import AttentionContext, LayerCache

LOG2_E = tl.constexpr(1.4426950408889634)
MIN_SPLIT_LEN = tl.constexpr(256)  # keys: below, a merge costs more than it gains
MAX_NUM_SPLITS = 32
MAX_SPLIT_TOKENS = 256  # a larger run that prefills fills the GPU without splits


@triton.constexpr_function
def padded(dim: int) -> int:
    """The extent of a tile that holds `dim`: tl.dot wants powers of two from 16 on."""
    return max(16, triton.next_power_of_2(dim))


def choose_launch(group: int, cache: LayerCache, *, decode_only: bool) -> dict[str, int]:
    """Tiles for `group` query heads per key head, within 96 KiB of shared memory."""
    itemsize = cache.keys.itemsize
    width = itemsize * padded(max(cache.keys.shape[-1], cache.values.shape[-1]))  # of a row
    block_n = 64 if width <= 256 else 32 if width <= 512 else 16
    block_m = 16 if decode_only else 128 if width <= 256 else 64
    if itemsize == 4:  # takes three multiplications, and registers for their parts
        block_m = min(block_m, 32 if width <= 512 else 16)
    return {
        "BLOCK_M": max(block_m, triton.next_power_of_2(group)),
        "BLOCK_N": block_n,
        "num_warps": 8 if block_m == 128 else 4,
        "num_stages": 3 if decode_only else 2,
    }


def choose_num_splits(context: AttentionContext, num_tokens: int) -> int:
    """Of decode by nothing but the longest context: CUDA graphs need a grid that stays."""
    if not context.decode_only and num_tokens > MAX_SPLIT_TOKENS:
        return 1
    useful = triton.cdiv(context.max_model_len, MIN_SPLIT_LEN.value)
    return min(MAX_NUM_SPLITS, triton.next_power_of_2(useful))


def paged_attention_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache: LayerCache,
    context: AttentionContext,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """What `store` and then `paged_attention_reference` do.

    `query` is `[T, H, K]`, `key` `[KH, T, K]`, `value` `[KH, T, V]`; the answer is `[T, H, V]`, and
    `out`, which is contiguous, where given.
    """
    num_tokens, num_heads, key_dim = query.shape
    _, num_kv_heads, _, value_dim = cache.values.shape
    group = num_heads // num_kv_heads
    num_splits = choose_num_splits(context, num_tokens)
    launch = choose_launch(group, cache, decode_only=context.decode_only)
    # A decode tile is a sequence, so nothing has to be looked up.
    tiles = None if context.decode_only else context.query_tiles(launch["BLOCK_M"] // group)
    if out is None:
        out = query.new_empty(num_tokens, num_heads, value_dim)
    parts, logsums = workspace(out, num_splits)
    with torch.cuda.device_of(query):  # triton launches on the current one
        store_triton(cache, key, value, context)
        _paged_attention[num_tokens if tiles is None else len(tiles), num_kv_heads, num_splits](
            *(query.contiguous(), cache.keys, cache.values, sinks, parts, logsums),
            *(tiles, context.cu_seqlens, context.context_lens, context.block_tables),
            *(context.block_tables.stride(0), scaling, softcap, sliding_window),
            *(group, cache.block_size, key_dim, value_dim, num_splits),
            **launch,
        )
        if logsums is not None:
            _merge_splits[num_tokens * num_heads,](parts, logsums, out, value_dim, num_splits)
    return out


def workspace(out: Tensor, num_splits: int) -> tuple[Tensor, Tensor | None]:
    """Where splits leave what they attended to, `[T, H, num_splits, V]`, and its log-sum-exp."""
    if num_splits == 1:
        return out, None
    num_tokens, num_heads, value_dim = out.shape
    parts = out.new_empty(num_tokens, num_heads, num_splits, value_dim, dtype=torch.float32)
    return parts, parts.new_empty(parts.shape[:-1])


def store_triton(cache: LayerCache, key: Tensor, value: Tensor, context: AttentionContext) -> None:
    """Write the keys and values of the new tokens, `[KH, T, D]` in any layout, into their slots."""
    _store_kv[key.shape[1], key.shape[0]](
        *(key, value, cache.keys, cache.values, context.slot_blocks, context.slot_offsets),
        *(*key.stride(), *value.stride(), torch.finfo(cache.values.dtype).max),
        *(cache.block_size, key.shape[2], value.shape[2]),
        num_warps=1,
    )


# fmt: off
@triton.jit
def _store_kv(
    key, value, keys, values, slot_blocks, slot_offsets,
    key_head_stride, key_stride, key_dim_stride,
    value_head_stride, value_stride, value_dim_stride, largest,
    BLOCK_SIZE: tl.constexpr, K_DIM: tl.constexpr, V_DIM: tl.constexpr,
):
    """Grid (new tokens, KV heads). Values become finite, for the reason that `store` gives."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    block, offset = tl.load(slot_blocks + token).to(tl.int64), tl.load(slot_offsets + token)
    slot = (block * tl.num_programs(1) + head) * BLOCK_SIZE + offset
    dims = tl.arange(0, padded(K_DIM))
    source = key + token * key_stride + head * key_head_stride + dims * key_dim_stride
    tl.store(keys + slot * K_DIM + dims, tl.load(source, mask=dims < K_DIM), mask=dims < K_DIM)
    dims = tl.arange(0, padded(V_DIM))
    source = value + token * value_stride + head * value_head_stride + dims * value_dim_stride
    loaded = tl.load(source, mask=dims < V_DIM).to(tl.float32)
    finite = tl.where(loaded == loaded, tl.clamp(loaded, -largest, largest), 0.0)
    tl.store(values + slot * V_DIM + dims, finite, mask=dims < V_DIM)


# A value that needs no variant of its own: compiling one would hold up every stream for seconds.
@triton.jit(do_not_specialize=["table_stride", "window"])
def _paged_attention(
    query, keys, values, sinks, out, logsums,
    tiles, cu_seqlens, context_lens, block_tables, table_stride, scaling, softcap, window,
    GROUP: tl.constexpr, BLOCK_SIZE: tl.constexpr, K_DIM: tl.constexpr, V_DIM: tl.constexpr,
    NUM_SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """Grid (query tiles, KV heads, splits): a few new tokens of a sequence, a part of its keys.

    Lane i of a tile is head i % GROUP of the group, at the tile's token i // GROUP.
    """
    seq, first = tl.program_id(0), 0
    if tiles is not None:
        seq, first = tl.load(tiles + 2 * seq), tl.load(tiles + 2 * seq + 1)
    start = tl.load(cu_seqlens + seq)
    count = (tl.load(cu_seqlens + seq + 1) - start).to(tl.int32)
    num_cached = tl.load(context_lens + seq).to(tl.int32) - count
    end = tl.minimum(first + BLOCK_M // GROUP, count)
    tokens = first + tl.arange(0, BLOCK_M) // GROUP
    heads = tl.program_id(1) * GROUP + tl.arange(0, BLOCK_M) % GROUP
    rows = (start + tokens) * (tl.num_programs(1) * GROUP) + heads
    parts = rows * NUM_SPLITS + tl.program_id(2)
    low, high = _key_range(num_cached + first, num_cached + end, window, NUM_SPLITS, BLOCK_N)
    if NUM_SPLITS > 1:  # noqa: SIM102 (known when compiling: without splits nothing is stored)
        if low >= high:
            tl.store(logsums + parts, float("-inf"), mask=tokens < end)
            return
    dims = tl.arange(0, padded(K_DIM))
    inside = (tokens < end)[:, None] & (dims < K_DIM)
    queries = tl.load(query + rows[:, None] * K_DIM + dims, mask=inside, other=0.0)
    attended, logsum = _attend(
        queries, keys, values, sinks, block_tables + seq * table_stride, heads,
        num_cached + tokens, low, high, scaling, softcap, window,
        BLOCK_SIZE, K_DIM, V_DIM, BLOCK_M, BLOCK_N,
    )
    dims = tl.arange(0, padded(V_DIM))
    inside = (tokens < end)[:, None] & (dims < V_DIM)
    tl.store(out + parts[:, None] * V_DIM + dims, attended, mask=inside)
    if NUM_SPLITS > 1:
        tl.store(logsums + parts, logsum, mask=tokens < end)


@triton.jit
def _key_range(first, end, window, NUM_SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """The keys [low, high) of this split that queries at positions [first, end) can see."""
    low = 0
    if window is not None:
        low = tl.maximum(first - window + 1, 0) // BLOCK_N * BLOCK_N
    share = tl.cdiv(tl.cdiv(end - low, NUM_SPLITS), BLOCK_N) * BLOCK_N
    share = tl.maximum(share, MIN_SPLIT_LEN)
    low += tl.program_id(2) * share
    return low, tl.minimum(low + share, end)


@triton.jit
def _attend(
    queries, keys, values, sinks, block_table, heads, positions, low, high,
    scaling, softcap, window, BLOCK_SIZE: tl.constexpr, K_DIM: tl.constexpr, V_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):
    """What the queries attend to among keys [low, high), and the logarithm of their weight."""
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)  # of weights, in units of exp2(top)
    if sinks is not None:  # each counts once, in the first split
        sink = tl.load(sinks + heads).to(tl.float32) * LOG2_E
        top = tl.where(tl.program_id(2) == 0, sink, top)
        total = tl.where(tl.program_id(2) == 0, 1.0, total)
    attended = tl.zeros([BLOCK_M, padded(V_DIM)], tl.float32)
    k_dims, v_dims = tl.arange(0, padded(K_DIM)), tl.arange(0, padded(V_DIM))
    for begin in range(low, high, BLOCK_N):
        ahead = begin + tl.arange(0, BLOCK_N)
        filled = ahead < high  # a slot beyond may hold anything, also NaN
        slots = _slots(block_table, ahead, filled, BLOCK_SIZE)
        inside = (k_dims < K_DIM)[:, None] & filled
        key = tl.load(keys + slots * K_DIM + k_dims[:, None], mask=inside, other=0.0)
        inside = filled[:, None] & (v_dims < V_DIM)
        value = tl.load(values + slots[:, None] * V_DIM + v_dims, mask=inside, other=0.0)
        scores = tl.dot(queries, key, input_precision="tf32x3") * scaling
        scores = _visible(_capped(scores, softcap) * LOG2_E, ahead, positions[:, None], window)
        new_top = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)  # nothing visible so far
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(top - base)
        total = total * decay + tl.sum(weights, 1)
        attended *= decay[:, None]
        attended += tl.dot(weights.to(value.dtype), value, input_precision="tf32x3")
        top = new_top
    total = tl.where(total == 0.0, 1.0, total)
    return attended / total[:, None], top + tl.log2(total)


@triton.jit
def _slots(block_table, positions, filled, BLOCK_SIZE: tl.constexpr):
    """Rows of the cache, seen as `[num_blocks * KH * BLOCK_SIZE, D]`, of cached positions."""
    blocks = tl.load(block_table + positions // BLOCK_SIZE, mask=filled, other=0).to(tl.int64)
    return (blocks * tl.num_programs(1) + tl.program_id(1)) * BLOCK_SIZE + positions % BLOCK_SIZE


@triton.jit
def _capped(scores, softcap):
    if softcap is not None:  # tanh(x) by exp, which may overflow to infinity and is right then too
        scores = softcap * (1.0 - 2.0 / (tl.exp(scores * (2.0 / softcap)) + 1.0))
    return scores


@triton.jit
def _visible(scores, ahead, positions, window):
    visible = ahead <= positions
    if window is not None:
        visible &= ahead > positions - window
    return tl.where(visible, scores, float("-inf"))


@triton.jit
def _merge_splits(parts, logsums, out, V_DIM: tl.constexpr, NUM_SPLITS: tl.constexpr):
    """Grid (T * H): weigh a head's parts by what was attended to in each."""
    row = tl.program_id(0).to(tl.int64)
    splits = row * NUM_SPLITS + tl.arange(0, NUM_SPLITS)
    logsum = tl.load(logsums + splits)
    weights = tl.exp2(logsum - tl.max(logsum, 0))
    dims = tl.arange(0, padded(V_DIM))
    written = (logsum != float("-inf"))[:, None] & (dims < V_DIM)
    part = tl.load(parts + splits[:, None] * V_DIM + dims, mask=written, other=0.0)
    merged = tl.sum(part * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + row * V_DIM + dims, merged, mask=dims < V_DIM)
# fmt: on
