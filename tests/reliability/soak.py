"""The same as `mixed` for long: memory, descriptors and threads do not grow."""

import asyncio
import statistics

from tests.helpers import LiveServer
from tests.reliability.mixed import Crowd
from tests.reliability.programme import (
    Check,
    a_server,
    awake,
    idle_after,
    memory,
    num_descriptors,
    num_threads,
    result,
)

MIB = 2**20
NUM_LOOKS = 180
# So small that all of it is in use before memory is looked at
OPTIONS = {"NANOLLM_KV_CACHE_MEMORY": "64MiB"}


async def run(
    seconds: float = 1800, clients: int = 12, max_slope: float = 1, server: LiveServer | None = None
) -> dict:
    """Memory is looked at from a sixth of the time on, when all that is made once has been."""
    with a_server(server, **OPTIONS) as live:
        crowd, samples = Crowd(live), []
        working = asyncio.create_task(crowd.work(clients, seconds))
        for look in range(NUM_LOOKS):
            await awake(seconds / NUM_LOOKS)
            at_min = look * seconds / NUM_LOOKS / 60
            samples.append((at_min, memory(live) / MIB, num_descriptors(live), num_threads(live)))
        await working
        await idle_after(live)
    late = samples[len(samples) // 6 :]
    minutes, sizes, descriptors, threads = zip(*late, strict=True)
    figures = {
        "seconds": seconds,
        "clients": clients,
        "requests": sum(crowd.ended.values()),
        "failures": crowd.failures[:10],
        "memory_mib": [round(sizes[0], 1), round(max(sizes), 1), round(sizes[-1], 1)],
        "mib_per_min": round(statistics.linear_regression(minutes, sizes).slope, 3),
        "more_descriptors": growth(descriptors),
        "more_threads": growth(threads),
    }
    return result(
        "soak",
        figures,
        {
            "requests that failed": Check(len(crowd.failures), 0),
            "memory grows by MiB a minute": Check(figures["mib_per_min"], max_slope),
            "descriptors grow by": Check(figures["more_descriptors"], 5),
            "threads grow by": Check(figures["more_threads"], 2),
        },
    )


def growth(counts: tuple[int, ...]) -> float:
    """From the median of the first third to that of the last: connections come and go."""
    third = max(len(counts) // 3, 1)
    return statistics.median(counts[-third:]) - statistics.median(counts[:third])
