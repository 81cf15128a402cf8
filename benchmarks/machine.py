"""What a run costs the machine, and what else runs on it: Linux's /proc, standard library only."""

import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Processor time of one process; 0 if it is gone."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children = defaultdict(list)
    for path in PROC.glob("[0-9]*/stat"):
        try:
            children[int(path.read_text().rpartition(")")[2].split()[1])].append(
                int(path.parent.name)
            )
        except OSError:
            continue  # ended just now
    found = [pid]
    for member in found:  # grows as it goes
        found += children[member]
    return found


def memory_mib(pid: int) -> float:
    """Memory of a process and its descendants; what they share with others counts in parts."""
    total = 0
    for member in family(pid):
        try:
            lines = (PROC / str(member) / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


@dataclass(frozen=True, slots=True)
class Moment:
    """Clocks at one time. `server_s` is None where no process was named."""

    wall_s: float
    busy_s: float
    stolen_s: float
    client_s: float
    server_s: float | None

    @classmethod
    def now(cls, pid: int | None) -> "Moment":
        busy, stolen = machine_seconds()
        server = None if pid is None else sum(map(cpu_seconds, family(pid)))
        return cls(time.perf_counter(), busy, stolen, time.process_time(), server)


def machine_seconds() -> tuple[float, float]:
    """Of all processors: busy, and taken away by the host. Zeros where there is no /proc."""
    try:
        line = (PROC / "stat").read_text().partition("\n")[0]
    except OSError:
        return 0.0, 0.0
    user, nice, system, idle, waiting, irq, softirq, stolen = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq) / TICKS, stolen / TICKS


def cost(before: Moment, after: Moment) -> dict[str, float | None]:
    """What happened between two moments. Shares are of all processors' time."""
    wall = after.wall_s - before.wall_s
    capacity = wall * (os.cpu_count() or 1)
    client = after.client_s - before.client_s
    server = foreign = None
    if before.server_s is not None and after.server_s is not None:
        server = max(after.server_s - before.server_s, 0.0)
        foreign = max((after.busy_s - before.busy_s - server - client) / capacity, 0.0)
    return {
        "seconds": wall,
        "client_cpu_s": client,
        "server_cpu_s": server,
        "foreign_share": foreign,
        "steal_share": (after.stolen_s - before.stolen_s) / capacity,
    }
