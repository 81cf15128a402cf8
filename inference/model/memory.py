"""How much memory there is, and how much of it the KV cache may take."""

import ctypes
import os
import re
from pathlib import Path

import torch

from inference.config import EngineConfig

CGROUP = Path("/sys/fs/cgroup")


def available_memory(device: torch.device) -> int:
    """Free bytes on the device; on CPU what the system could free, within the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(min(_system_memory(), _container_memory()))


def cache_memory(config: EngineConfig, device: torch.device, reserve: int) -> int:
    """Bytes for the KV cache: as configured, or a share of what is free once the model is loaded.

    A CPU server shares its machine and takes a quarter. A GPU server takes its share of the card,
    less what is in use and less `reserve` bytes for activations.
    """
    if config.kv_cache_memory is not None:
        return config.kv_cache_memory
    if device.type != "cuda":
        return available_memory(device) // 4
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(total * config.gpu_memory_utilization) - (total - free) - reserve)


def trim() -> None:
    """Give back what C's allocator keeps of what was freed, where it can be told to."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def readable(num_bytes: float) -> str:
    """A size as the messages to the operator give it."""
    if num_bytes < 2**30:
        return f"{num_bytes / 2**20:.1f} MiB"
    return f"{num_bytes / 2**30:.1f} GiB"


def _system_memory() -> int:
    try:
        found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _container_memory() -> float:
    """What a cgroup v2 limit leaves; page cache counts as free because the kernel drops it."""
    try:
        limit, used = ((CGROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        found = re.search(r"^file (\d+)", (CGROUP / "memory.stat").read_text(), re.MULTILINE)
        return int(limit) - int(used) + (int(found[1]) if found else 0)
    except (OSError, ValueError):  # no limit reads "max"
        return float("inf")
