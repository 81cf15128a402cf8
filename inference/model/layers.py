"""Layers over the compiled kernels, to stand in for Hugging Face's own."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inference.model.kernels import cpu

PANEL = 64  # output columns that lie together in memory, as cpu.cpp wants them
NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


class PackedLinear(nn.Module):
    """One or more linear layers over the same input, in the order in which memory is read.

    With `gated` there are two, x and y, and the answer is silu(x) * y. With `quantize` weights are
    int8 with a scale per output column, and inputs become int8 with a scale per row. `out_dtype`
    is that of the weights, or float32.
    """

    def __init__(
        self,
        linears: Sequence[nn.Linear],
        *,
        gated: bool = False,
        quantize: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        weights = [linear.weight.detach() for linear in linears]
        self.in_features = linears[0].in_features
        self.out_features = sum(len(weight) for weight in weights) // (2 if gated else 1)
        self.dtype = weights[0].dtype
        self.is_quantized = quantize
        self._out_dtype = out_dtype or self.dtype
        kernel = kernel_for(self.dtype, quantize, self._out_dtype)
        assert kernel is not None, "only what can_pack is packed"
        self._kernel = kernel
        arrange = interleave if gated else stack
        self._bias = self._scales = self._column_sums = None
        if quantize:
            pairs = [quantized(weight) for weight in weights]
            weights = [weight for weight, _ in pairs]
            self._scales = arrange([scale for _, scale in pairs])
            self._column_sums = arrange([weight.sum(1, dtype=torch.int32) for weight in weights])
        if linears[0].bias is not None:
            self._bias = arrange([linear.bias.detach().float() for linear in linears])
        self._panels = panels(arrange(weights))
        self.arguments = cpu.LinearArguments(
            panels=self._panels.data_ptr(),
            bias=address(self._bias),
            scales=address(self._scales),
            column_sums=address(self._column_sums),
            columns=self._panels.shape[0] * PANEL,
            depth=self._panels.shape[1],
            out_stride=self.out_features,
            gated=gated,
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        if x.dtype != self.dtype or x.shape[-1] != self.in_features:
            raise TypeError(f"{x.dtype} {tuple(x.shape)} for a layer of {self.dtype}")
        x = x.contiguous()
        out = torch.empty(*x.shape[:-1], self.out_features, dtype=self._out_dtype)
        arguments = cpu.LinearArguments.from_buffer_copy(self.arguments)  # threads share the layer
        arguments.input, arguments.out = x.data_ptr(), out.data_ptr()
        arguments.rows = x.numel() // self.in_features
        arguments.num_threads = torch.get_num_threads()
        self._kernel(arguments)
        return out


def can_pack(linear: nn.Module, *, quantize: bool = False) -> bool:
    """Whether a PackedLinear can replace it."""
    return (
        type(linear) is nn.Linear
        and linear.weight.device.type == "cpu"
        and linear.in_features % (16 if quantize else 2) == 0
        and kernel_for(linear.weight.dtype, quantize) is not None
    )


def kernel_for(
    dtype: torch.dtype, quantize: bool, out_dtype: torch.dtype | None = None
) -> cpu.Kernel | None:
    """The kernel for weights of that kind, if this CPU has the instructions for it."""
    name = NAMES.get(dtype, "none")
    weights = "int8" if quantize else name
    return cpu.kernel(f"linear_{weights}_{name}_{NAMES.get(out_dtype or dtype)}")


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[N, K]` int8 and the scale of each row, `[N]`."""
    scale = weight.abs().amax(1).float().clamp_min(1e-12) / 127
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


def stack(parts: Sequence[Tensor]) -> Tensor:
    """`[sum of N, ...]`, with zeros up to a whole number of panels."""
    return padded(torch.cat(list(parts)), PANEL)


def interleave(parts: Sequence[Tensor]) -> Tensor:
    """Half a panel of the first, half a panel of the second, and so on."""
    halves = [padded(part, PANEL // 2).unflatten(0, (-1, PANEL // 2)) for part in parts]
    return torch.cat(halves, dim=1).flatten(0, 1)


def padded(part: Tensor, step: int) -> Tensor:
    missing = -len(part) % step
    return torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part


def panels(weight: Tensor) -> Tensor:
    """`[N, K]` as `[N / 64, K in int32, 64]`: each lane's dword beside the next column's."""
    dwords = weight.contiguous().view(torch.int32)
    columns = dwords.view(-1, PANEL, dwords.shape[1]).transpose(1, 2)
    return cpu.zeros(columns.shape, torch.int32).copy_(columns)


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class SharedLinear:
    """Linear layers that are computed together when the first of them is called."""

    def __init__(self, linears: Sequence[nn.Linear], *, quantize: bool = False) -> None:
        self.packed = PackedLinear(linears, quantize=quantize)
        self._sizes = [linear.out_features for linear in linears]
        self._kept = threading.local()  # of each thread: the input, and the outputs for it

    def part(self, x: Tensor, index: int) -> Tensor:
        """Output of layer `index`. Nothing is kept once the last layer has its own."""
        known, outputs = getattr(self._kept, "of", (None, ()))
        if known is not x:
            outputs = self.packed(x).split(self._sizes, dim=-1)
        self._kept.of = (x, outputs) if index < len(self._sizes) - 1 else (None, ())
        return outputs[index]


class LinearPart(nn.Module):
    """Stands where one of the layers of a SharedLinear was."""

    def __init__(self, shared: SharedLinear, index: int) -> None:
        super().__init__()
        self.shared, self._index = shared, index

    def forward(self, x: Tensor) -> Tensor:
        return self.shared.part(x, self._index)


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self, mlp: nn.Module, *, quantize: bool = False) -> None:
        super().__init__()
        self.gate_up = PackedLinear([mlp.gate_proj, mlp.up_proj], gated=True, quantize=quantize)
        self.down = PackedLinear([mlp.down_proj], quantize=quantize)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gate_up(x))


class RMSNorm(nn.Module):
    """x / rms(x) * (weight + offset), computed in float32."""

    def __init__(self, weight: Tensor, eps: float, offset: float) -> None:
        super().__init__()
        kernel = cpu.kernel("rms_norm")
        assert kernel is not None, "layers are only replaced where there are kernels"
        self._kernel = kernel
        self.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
        self.arguments = cpu.NormArguments(
            weight=self.weight.data_ptr(),
            size=len(weight),
            is_bf16=weight.dtype == torch.bfloat16,
            eps=eps,
            offset=offset,
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[..., size]`; rows may lie apart, as the heads of a fused projection do."""
        if x.dtype != self.weight.dtype:
            raise TypeError(f"{x.dtype} for a layer of {self.weight.dtype}")
        rows = x.flatten(0, -3) if x.dim() > 3 else x  # [outer, inner, size] without a copy
        rows = rows if x.dim() > 2 else x.view(-1, 1, x.shape[-1])
        if rows.stride(-1) != 1:
            rows = rows.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype)
        arguments = cpu.NormArguments.from_buffer_copy(self.arguments)
        arguments.input, arguments.out = rows.data_ptr(), out.data_ptr()
        arguments.outer, arguments.inner, _ = rows.shape
        arguments.outer_stride, arguments.inner_stride, _ = rows.stride()
        arguments.num_threads = torch.get_num_threads()
        self._kernel(arguments)
        return out


class Rotary:
    """transformers' `apply_rotary_pos_emb`, but in place."""

    def __init__(self, original: Callable[..., Any]) -> None:
        kernel = cpu.kernel("rotary")
        assert kernel is not None, "layers are only replaced where there are kernels"
        self._kernel, self._original = kernel, original

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: Any, **others: Any
    ) -> tuple[Tensor, Tensor]:
        """`q` and `k` are `[1, heads, T, D]`, `cos` and `sin` `[1, T, D]`; others are not ours."""
        _, num_heads, num_tokens, dim = q.shape
        tensors = (q, k, cos, sin)
        if (
            more
            or others
            or dim % 32
            or cos.shape != (1, num_tokens, dim)
            or any(tensor.dtype != cos.dtype or tensor.stride(-1) != 1 for tensor in tensors)
        ):
            return self._original(q, k, cos, sin, *more, **others)
        cos, sin = cos.contiguous(), sin.contiguous()
        _, query_head, query_token, _ = q.stride()
        _, key_head, key_token, _ = k.stride()
        self._kernel(
            cpu.RotaryArguments(
                *(tensor.data_ptr() for tensor in (q, k, cos, sin)),
                num_tokens,
                num_heads,
                k.shape[1],
                dim,
                query_token,
                query_head,
                key_token,
                key_head,
                cos.dtype == torch.bfloat16,
                torch.get_num_threads(),
            )
        )
        return q, k
