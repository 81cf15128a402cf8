"""What the machine can do at most, measured: claims about speed are made against these.

python -m benchmarks.limits [--device cpu|cuda] [--quick]
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import linear

SIZES = {"cpu": 2**28, "cuda": 2**30}  # bytes, far beyond any cache
# rows, inputs, outputs: small enough for a CPU's cache, large enough to fill a GPU
PRODUCTS = {"cpu": (1024, 1024, 3072), "cuda": (8192, 8192, 8192)}


def read_bandwidth(device: str, seconds: float = 0.5) -> float:
    """GB/s. On a CPU bytes that a sum reads; on a GPU those that a copy reads and writes."""
    data = torch.ones(SIZES[device] // 4, device=device)
    if device == "cpu":
        return data.nbytes / fastest(data.sum, device, seconds) / 1e9
    other = torch.empty_like(data)
    return 2 * data.nbytes / fastest(lambda: other.copy_(data), device, seconds) / 1e9


def matmul_rate(device: str, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """GFLOP/s of a linear layer that suits the machine well."""
    rows, inputs, outputs = PRODUCTS[device]
    x = torch.randn(rows, inputs, device=device).to(dtype)
    weight = torch.randn(outputs, inputs, device=device).to(dtype)
    least = fastest(lambda: linear(x, weight), device, seconds)
    return 2 * rows * inputs * outputs / least / 1e9


def fastest(function: Callable[[], object], device: str, seconds: float) -> float:
    """Least time of a call, among those of so many seconds."""
    function()
    least, deadline = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        least = min(least, timed(function, device))
    return least


def timed(function: Callable[[], object], device: str) -> float:
    synchronize(device)
    began = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=SIZES, default=None)
    parser.add_argument("--quick", action="store_true", help="memory only, half a second")
    args = parser.parse_args()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    reads = [read_bandwidth(device) for _ in range(1 if args.quick else 5)]
    found: dict[str, object] = {"device": device, "threads": torch.get_num_threads()}
    found |= {"read_gb_s": statistics.median(reads), "read_gb_s_range": [min(reads), max(reads)]}
    if not args.quick:
        for dtype in (torch.float32, torch.bfloat16):
            name = f"matmul_{str(dtype).removeprefix('torch.')}_gflop_s"
            found[name] = matmul_rate(device, dtype)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
