"""The compiled kernels for tensors on the CPU.

A call releases the GIL and uses torch's OpenMP threads. Where the kernels cannot be had (no
compiler, say) `library` is None, and whoever asks does without: slower, with the same results.
"""

import ctypes
import functools
import logging
import math
import mmap
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from inference.model.kernels import build

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16)
LANES = 16  # head dims are multiples of it
HUGE_PAGE = 2**21  # bytes

_lock = threading.Lock()


def library() -> ctypes.CDLL | None:
    """The kernels, built at first use; None, with one warning, where that fails."""
    with _lock:
        return _library()


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        kernels = ctypes.CDLL(str(build.built_library()))
        check(kernels)
    except (build.BuildError, OSError, AttributeError) as error:
        logger.warning("No compiled CPU kernels, torch's slower operations do: %s.", error)
        return None
    return kernels


Kernel = Callable[[ctypes.Structure], None]


def kernel(symbol: str) -> Kernel | None:
    """The function of cpu.cpp with that name, if there are kernels and this CPU can run it."""
    function = getattr(library(), symbol, None)
    if function is None:
        return None
    function.restype = None
    return lambda arguments: function(ctypes.byref(arguments))


def structure(name: str, pointers: str, integers: str, doubles: str = "") -> Any:
    """The type of a struct of cpu.cpp: all have their pointers first, then int64, then double."""
    kinds = ((pointers, ctypes.c_void_p), (integers, ctypes.c_int64), (doubles, ctypes.c_double))
    fields = [(field, kind) for names, kind in kinds for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """As `torch.zeros`. Large ones take memory when they are written to, and in huge pages where
    there are any: those are read a fifth faster.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


AttentionArguments = structure(
    "Attention",
    "query key value keys values out block_tables cu_seqlens context_lens slot_blocks slot_offsets "
    "sinks",
    "query_token query_head key_token key_head value_token value_head num_seqs table_width "
    "num_heads num_kv_heads block_size k_dim v_dim window num_threads is_bf16",
    "scaling softcap",
)
LinearArguments = structure(
    "Linear",
    "input panels bias scales column_sums out",
    "rows columns depth out_stride num_threads gated",
)
NormArguments = structure(
    "RmsNorm",
    "input weight out",
    "outer inner outer_stride inner_stride size is_bf16 num_threads",
    "eps offset",
)
RotaryArguments = structure(
    "Rotary",
    "query key cos sin",
    "num_tokens num_heads num_kv_heads dim query_token query_head key_token key_head "
    "is_bf16 num_threads",
)

DecoderArguments = structure(
    "Decoder",
    "qkv o gate_up down input_norm post_norm q_norm k_norm keys values",
    "window",
    "scaling",
)
StackArguments = structure(
    "Stack",
    "layers run cos sin hidden normed qkv attended gated wanted",
    "num_layers num_tokens num_wanted hidden_size num_heads num_kv_heads dim is_bf16 bits "
    "num_threads",
)
NucleusArguments = structure(
    "Nucleus", "scaled top_k top_p noise tokens", "num_rows size num_threads"
)


def can_attend(keys: Tensor, values: Tensor) -> bool:
    """Whether `PagedAttention` can work on caches like these."""
    dims = (keys.shape[-1], values.shape[-1])
    return (
        keys.device.type == "cpu"
        and keys.dtype in DTYPES
        and all(dim % LANES == 0 for dim in dims)
        and library() is not None
    )


class PagedAttention:
    """The kernel, told of one model run; called once for each layer.

    `block_tables` `[S, B]`, `cu_seqlens` `[S + 1]`, `context_lens` `[S]`, `slot_blocks` and
    `slot_offsets` `[T]` are those of `AttentionContext`: int64 and contiguous.
    """

    def __init__(self, kernels: ctypes.CDLL, **tensors: Tensor) -> None:
        self._attend = kernels.paged_attention
        self._tensors = tensors  # alive as long as their addresses are in use
        self._arguments = AttentionArguments(num_threads=torch.get_num_threads())
        for name, tensor in tensors.items():
            setattr(self._arguments, name, tensor.data_ptr())
        self._arguments.num_seqs, self._arguments.table_width = tensors["block_tables"].shape

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scaling: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        out: Tensor,
    ) -> None:
        """Store `key` and `value` `[KH, T, D]` in the caches; attention of `query` `[H, T, K]`.

        The answer is written into `out`, `[T, H, V]` and contiguous.
        """
        rounded = out if out.dtype == keys.dtype else out.to(keys.dtype)
        query, key, value = (self._dense(tensor, keys.dtype) for tensor in (query, key, value))
        arguments = self._arguments
        arguments.query, arguments.key, arguments.value = map(Tensor.data_ptr, (query, key, value))
        arguments.keys, arguments.values, arguments.out = map(
            Tensor.data_ptr, (keys, values, rounded)
        )
        arguments.query_head, arguments.query_token, _ = query.stride()
        arguments.key_head, arguments.key_token, _ = key.stride()
        arguments.value_head, arguments.value_token, _ = value.stride()
        arguments.num_heads = query.shape[0]
        _, arguments.num_kv_heads, arguments.block_size, arguments.k_dim = keys.shape
        arguments.v_dim = values.shape[-1]
        arguments.is_bf16 = keys.dtype == torch.bfloat16
        arguments.scaling, arguments.softcap = scaling, softcap or 0.0
        arguments.window = sliding_window or 0
        floats = None if sinks is None else sinks.float().contiguous()
        arguments.sinks = None if floats is None else floats.data_ptr()
        self._attend(ctypes.byref(arguments))
        if rounded is not out:
            out.copy_(rounded)

    def described(self, keys: Tensor, values: Tensor, num_heads: int) -> Any:
        """The arguments of the run for layers with such caches, without their own."""
        arguments = AttentionArguments.from_buffer_copy(self._arguments)
        arguments.num_heads = num_heads
        _, arguments.num_kv_heads, arguments.block_size, arguments.k_dim = keys.shape
        arguments.v_dim = values.shape[-1]
        arguments.is_bf16 = keys.dtype == torch.bfloat16
        return arguments

    @staticmethod
    def _dense(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        tensor = tensor.to(dtype)
        return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def draw_from_nucleus(scaled: Tensor, top_k: Tensor, top_p: Tensor, noise: Tensor) -> Tensor | None:
    """Tokens `[n, 1]` from what top_k and top_p leave of rows `[n, vocab_size]` of logits, 0 the
    best; `noise` is a share of that, the likeliest first. None without kernels.
    """
    draw = kernel("draw_from_nucleus")
    if draw is None:
        return None
    tensors = [tensor.float().contiguous() for tensor in (scaled, top_k, top_p, noise)]
    tokens = torch.empty(len(scaled), 1, dtype=torch.long)
    places = [tensor.data_ptr() for tensor in (*tensors, tokens)]
    draw(NucleusArguments(*places, *scaled.shape, torch.get_num_threads()))
    return tokens


def check(kernels: ctypes.CDLL) -> None:
    """Raises BuildError if the kernels compute something else than torch does."""
    for dtype in DTYPES:
        generator = torch.Generator().manual_seed(0)
        query, key, value = torch.randn(3, 2, 5, 32, generator=generator).to(dtype)
        caches = torch.zeros(2, 1, 2, 8, 32, dtype=dtype)
        tables = {"block_tables": [[0]], "cu_seqlens": [0, 5], "context_lens": [5]}
        slots = {"slot_blocks": [0] * 5, "slot_offsets": list(range(5))}
        tensors = {name: torch.tensor(numbers) for name, numbers in {**tables, **slots}.items()}
        attend = PagedAttention(kernels, **tensors)
        out = query.new_empty(5, 2, 32)
        attend(query, key, value, *caches, scaling=32**-0.5, out=out)
        wanted = torch.nn.functional.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), is_causal=True
        )
        if not torch.allclose(out.float().transpose(0, 1), wanted, atol=0.05):
            raise build.BuildError("they fail their self check")
