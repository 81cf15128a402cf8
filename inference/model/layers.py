"""Faster layers, most of them over the compiled kernels, to stand in for Hugging Face's own."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.model.kernels import cpu
from inference.model.kernels.weights import GROUP, PANEL, interleave, packed, stack

BITS: dict[str | None, int] = {"int4": 4, "int8": 8}
MULTIPLES = {"int4": GROUP, "int8": 16, "fp8": 16, None: 2}  # of the number of a layer's inputs
FP8 = torch.float8_e4m3fn
MOST_FP8 = torch.finfo(FP8).max
NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


class PackedLinear(nn.Module):
    """One or more linear layers over the same input, in the order in which memory is read.

    With `gated` there are two, x and y, and the answer is silu(x) * y. With quantization "int8"
    weights are int8 with a scale per output column, and inputs become int8 with a scale per row;
    with "int4" groups of 32 of either have a scale each. `out_dtype` is that of the weights, or
    float32, which int4 does not have.
    """

    def __init__(
        self,
        linears: Sequence[nn.Linear],
        *,
        gated: bool = False,
        quantization: str | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        weights = [linear.weight.detach() for linear in linears]
        self.in_features = linears[0].in_features
        self.out_features = sum(len(weight) for weight in weights) // (2 if gated else 1)
        self.dtype = weights[0].dtype
        self.bits = BITS.get(quantization, 8 * self.dtype.itemsize)
        self._out_dtype = out_dtype or self.dtype
        self._kernel = needed(kernel_for(self.dtype, quantization, self._out_dtype))
        arrange = interleave if gated else stack
        tensors = packed(weights, arrange, quantization)
        if linears[0].bias is not None:
            tensors["bias"] = arrange([linear.bias.detach().float() for linear in linears])
        self._tensors = tensors  # alive as long as their addresses are in use
        self.arguments = cpu.LinearArguments(
            **{name: tensor.data_ptr() for name, tensor in tensors.items()},
            columns=-(-self.out_features * (2 if gated else 1) // PANEL) * PANEL,
            depth=tensors["panels"].shape[1],
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


def can_pack(linear: nn.Module, quantization: str | None = None) -> bool:
    """Whether `faster` can replace it."""
    if type(linear) is not nn.Linear or linear.in_features % MULTIPLES[quantization]:
        return False
    if quantization == "fp8":
        return linear.out_features % MULTIPLES[quantization] == 0
    weight = linear.weight
    return weight.device.type == "cpu" and kernel_for(weight.dtype, quantization) is not None


def faster(
    linears: Sequence[nn.Linear],
    quantization: str | None = None,
    *,
    gated: bool = False,
    is_head: bool = False,
) -> "PackedLinear | Fp8Linear":
    if quantization == "fp8":
        return Fp8Linear(linears, gated=gated)
    # Logits are wanted as float32: rounding them would only be undone
    out_dtype = torch.float32 if is_head else None
    return PackedLinear(linears, gated=gated, quantization=quantization, out_dtype=out_dtype)


def kernel_for(
    dtype: torch.dtype, quantization: str | None = None, out_dtype: torch.dtype | None = None
) -> cpu.Kernel | None:
    """The kernel for weights of that kind, if this CPU has the instructions for it."""
    name = NAMES.get(dtype, "none")
    return cpu.kernel(f"linear_{quantization or name}_{name}_{NAMES.get(out_dtype or dtype)}")


def needed(kernel: cpu.Kernel | None) -> cpu.Kernel:
    assert kernel is not None, "layers are only replaced where there are kernels"
    return kernel


class Fp8Linear(nn.Module):
    """One or more linear layers over the same input, in float8, which GPUs multiply fastest.

    Each output has a scale, and each row of inputs gets one. With `gated` as PackedLinear. Nothing
    here waits for results, so it can be compiled and recorded.
    """

    def __init__(self, linears: Sequence[nn.Linear], *, gated: bool = False) -> None:
        super().__init__()
        self._gated = gated
        weights = [linear.weight.detach() for linear in linears]
        quantized = [to_fp8(weight) for weight in weights]
        self.register_buffer("weight", torch.cat([weight for weight, _ in quantized]))
        self.register_buffer("scales", torch.cat([scales for _, scales in quantized]).t())
        has_bias = linears[0].bias is not None
        biases = [linear.bias.detach().bfloat16() for linear in linears] if has_bias else None
        self.register_buffer("bias", torch.cat(biases) if biases else None)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        rows, scales = to_fp8(x.flatten(0, -2))
        out = torch._scaled_mm(
            rows,
            self.weight.t(),
            scale_a=scales,
            scale_b=self.scales,
            bias=self.bias,
            out_dtype=torch.bfloat16,  # the only one that there is with scales for rows
            use_fast_accum=True,
        )
        out = out.to(x.dtype).view(*x.shape[:-1], -1)
        if not self._gated:
            return out
        gate, up = out.chunk(2, dim=-1)
        return functional.silu(gate) * up


def to_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`[N, K]` in float8, and the scale of each row, `[N, 1]`."""
    scales = rows.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / MOST_FP8
    return (rows.float() / scales).to(FP8), scales


class SharedLinear:
    """Linear layers that are computed together when the first of them is called."""

    def __init__(self, linears: Sequence[nn.Linear], quantization: str | None = None) -> None:
        self.packed = faster(linears, quantization)
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

    def __init__(self, mlp: nn.Module, quantization: str | None = None) -> None:
        super().__init__()
        self.gate_up = faster([mlp.gate_proj, mlp.up_proj], quantization, gated=True)
        self.down = faster([mlp.down_proj], quantization)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gate_up(x))


class RMSNorm(nn.Module):
    """x / rms(x) * (weight + offset), computed in float32."""

    def __init__(self, weight: Tensor, eps: float, offset: float) -> None:
        super().__init__()
        self._kernel = needed(cpu.kernel("rms_norm"))
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
        self._kernel, self._original = needed(cpu.kernel("rotary")), original

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
