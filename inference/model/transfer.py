"""Between host and device without waiting: what a copy is made from or into must be pinned."""

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(
    values: Tensor | Sequence[object], device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """What is on the host, on the device. A GPU fetches it when it gets there."""
    return pinned(torch.as_tensor(values, dtype=dtype), device).to(device, non_blocking=True)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor where the device can fetch it by itself."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


class Download:
    """A tensor on its way to the host, behind all that the device was given to do before."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)  # into pinned memory
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def wait(self) -> Tensor:
        """The tensor, when it is there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values
