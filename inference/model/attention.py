"""Paged attention for unmodified Hugging Face modules.

A module whose attention implementation is "nano" hands its queries, keys and values to
`nano_attention`. What they do not know (which sequence a row belongs to, where the cache is) comes
from the context that the runner sets around the model run.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache as cached
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from inference.model.context import AttentionContext, LayerCache

logger = logging.getLogger(__name__)

NAME = "nano"


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


def current_context() -> AttentionContext:
    if _current.context is None:
        raise RuntimeError("a model with paged attention ran outside of attending()")
    return _current.context


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
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    run = compiled_attention if torch.compiler.is_compiling() else attention
    features = (scaling, sliding_window, softcap, s_aux)
    run(query[0], key[0], value[0], out, int(module.layer_idx), *features)
    return out[None], None


AttentionInterface.register(NAME, nano_attention)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    layer: int,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> None:
    """Fill `out`, `[T, H, V]`, with what `nano_attention` answers, by the device's kernels."""
    context = current_context()
    cache = context.layers[layer]
    features: dict[str, Any] = {
        "scaling": scaling,
        "sliding_window": sliding_window,
        "softcap": softcap,
        "sinks": sinks,
    }
    if cache.has_kernel:
        context.kernel(query, key, value, cache.keys, cache.values, **features, out=out)
    elif query.is_cuda and (kernel := gpu_attention()):
        kernel(query.transpose(0, 1), key, value, cache, context, **features, out=out)
    else:
        store(cache, key, value, context)
        rows = query.transpose(0, 1)
        out.copy_(paged_attention_reference(rows, cache, context, **features))


# Compilers do not look inside: the caches, which change with every run, are no part of their graph.
compiled_attention = torch.library.custom_op("nano::attention", attention, mutates_args=("out",))


@cached
def gpu_attention() -> Callable[..., Tensor] | None:
    """The attention of GPUs, if triton is there. torch brings it, but not on every system."""
    try:
        from inference.model.kernels.triton_attention import paged_attention_triton
    except ImportError as error:
        logger.warning("There is no triton (%s): attention on the GPU will be slow.", error)
        return None
    return paged_attention_triton


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
