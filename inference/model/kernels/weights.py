"""Weights as cpu.cpp reads them: rounded, if they are to be, and in the order of its panels."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from inference.model.kernels import cpu

PANEL = 64  # output columns that are computed together
HALF = PANEL // 2
GROUP = 32  # weights of a column that have an int4 scale in common


def packed(
    weights: Sequence[Tensor], arrange: Callable[..., Tensor], quantization: str | None
) -> dict[str, Tensor]:
    """The weights as the kernels want them, and what belongs to them."""
    if quantization == "int4":
        codes, scales = (arrange(parts) for parts in zip(*map(to_int4, weights), strict=True))
        return {"panels": int4_panels(codes, scales)}
    if quantization == "int8":
        rounded, scales = zip(*map(to_int8, weights), strict=True)
        sums = [weight.sum(1, dtype=torch.int32) for weight in rounded]
        tensors = {"panels": panels(arrange(rounded)), "scales": arrange(scales)}
        return tensors | {"column_sums": arrange(sums)}
    return {"panels": panels(arrange(weights))}


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[N, K]` int8 and the scale of each row, `[N]`."""
    scale = weight.abs().amax(1).float().clamp_min(1e-12) / 127
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


def to_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`[N, K]` codes 0 to 15 and bfloat16 scales `[N, K / 32]`: (code - 8) * scale.

    A group's largest weight is -8 times its scale, as in llama.cpp's q4_0.
    """
    groups = weight.float().unflatten(1, (-1, GROUP))
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scales = (largest / -8).bfloat16()
    codes = (groups / scales.float()).nan_to_num_(0).round_().add_(8).clamp_(0, 15)
    return codes.to(torch.uint8).flatten(1), scales[..., 0]


def stack(parts: Sequence[Tensor]) -> Tensor:
    """`[sum of N, ...]`, with zeros up to a whole number of panels."""
    return padded(torch.cat(list(parts)), PANEL)


def interleave(parts: Sequence[Tensor]) -> Tensor:
    """Half a panel of the first, half a panel of the second, and so on."""
    halves = [padded(part, HALF).unflatten(0, (-1, HALF)) for part in parts]
    return torch.cat(halves, dim=1).flatten(0, 1)


def padded(part: Tensor, step: int) -> Tensor:
    missing = -len(part) % step
    return torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part


def panels(weight: Tensor) -> Tensor:
    """`[N, K]` as `[N / 64, K in int32, 64]`: each lane's dword beside the next column's."""
    dwords = weight.contiguous().view(torch.int32)
    columns = dwords.view(-1, PANEL, dwords.shape[1]).transpose(1, 2)
    return cpu.zeros(columns.shape, torch.int32).copy_(columns)


def int4_panels(codes: Tensor, scales: Tensor) -> Tensor:
    """`[N / 32, K / 32, 4 * 32 + 16]` in int32: of 32 columns a group's nibbles, and its scales."""
    low, high = codes.unflatten(1, (-1, 2, 4)).unbind(2)
    dwords = (low | high << 4).flatten().view(torch.int32).view(-1, HALF, scales.shape[1], 4)
    halves = scales.view(-1, HALF, scales.shape[1]).transpose(1, 2)
    blocks = cpu.zeros((*halves.shape[:2], 4 * HALF + HALF // 2), torch.int32)
    blocks[..., : 4 * HALF] = dwords.permute(0, 2, 3, 1).flatten(2)
    blocks[..., 4 * HALF :] = halves.flatten().view(torch.int32).view(*halves.shape[:2], -1)
    return blocks
