"""Many more clients than there is room for: who is refused hears of it at once."""

from collections import Counter

from tests.helpers import LiveServer
from tests.reliability.crowd import crowd
from tests.reliability.programme import (
    Check,
    a_server,
    chat,
    head,
    memory,
    percentile,
    post,
    result,
)

MIB = 2**20
MAX_REFUSED_S, MAX_HEALTH_S, MAX_GROWTH_MIB = 0.1, 0.25, 100
# The cache is memory that is there from the start, and used little by little
OPTIONS = {"NANOLLM_KV_CACHE_MEMORY": "64MiB"}


def run(
    clients: int = 500,
    queue: int = 64,
    spread_s: float = 0,
    num_tokens: int = 50,
    rounds: int = 3,
    watch_s: float = 2,
    server: LiveServer | None = None,
) -> dict:
    """All clients come within `spread_s` seconds, evenly; 0: in the same moment.

    /health is looked at meanwhile, and for `watch_s` seconds more.
    """
    room = {"NANOLLM_MAX_NUM_SEQS": str(queue // 2), "NANOLLM_MAX_NUM_QUEUED_REQS": str(queue // 2)}
    found: list[dict] = []
    with a_server(server, serve=True, **room, **OPTIONS) as live:
        wave(live, queue, 0, num_tokens, 0)  # what is made once
        before = peak = memory(live)
        delays_s = []
        for _ in range(rounds):
            seen = wave(live, clients, spread_s, num_tokens, spread_s + watch_s)
            found += seen["clients"]
            delays_s.append(seen["own_delay_s"])
            peak = max(peak, memory(live))
    figures = {
        "clients": clients,
        "queue": queue,
        "spread_s": spread_s,
        "rounds": rounds,
        **figures_of(found),
        "growth_mib": round((peak - before) / MIB, 1),
        "own_delay_s": round(max(delays_s), 4),
    }
    return result("overload", figures, checks_of(found, figures, num_tokens))


def wave(
    server: LiveServer, clients: int, spread_s: float, num_tokens: int, watch_s: float
) -> dict:
    """What becomes of so many clients, and of a look at /health every 20 ms."""
    request = post("/v1/chat/completions", chat(num_tokens, stream=False))
    plan = [(i * spread_s / clients, "chat", request) for i in range(clients)]
    times = [i * 0.02 for i in range(round(watch_s / 0.02))]
    plan += [(at, "health", head("/health", 0, "GET")) for at in times]
    return crowd(server.port, plan)


def figures_of(found: list[dict]) -> dict:
    """Times are from before a connection is opened until its first answer."""
    figures: dict = {"statuses": dict(Counter(str(c["status"]) for c in found))}
    groups = {
        "refused": [c["answer_s"] for c in found if c["status"] == 429],
        "health": [c["answer_s"] for c in found if c["kind"] == "health"],
        "connect": [c["connect_s"] for c in found],
    }
    for name, seconds in groups.items():
        for percent in (50, 99):
            time_s = round(percentile(seconds, percent), 3) if seconds else 0.0
            figures[f"{name}_p{percent}_s"] = time_s
    return figures


def checks_of(found: list[dict], figures: dict, num_tokens: int) -> dict:
    refused = [c for c in found if c["status"] == 429]
    served = [c for c in found if c["status"] == 200 and c["kind"] == "chat"]
    return {
        "all are served or refused": {c["status"] for c in found} == {200, 429},
        "who is admitted gets all": all(
            f'"completion_tokens":{num_tokens}' in c["body"] for c in served
        ),
        "429 says why and when to come back": all(
            '"queue_full"' in c["body"] and 1 <= int(c["headers"]["retry-after"]) <= 120
            for c in refused
        ),
        "seconds to a 429, p99": Check(figures["refused_p99_s"], MAX_REFUSED_S),
        "seconds to /health, p99": Check(figures["health_p99_s"], MAX_HEALTH_S),
        "memory grows by MiB": Check(figures["growth_mib"], MAX_GROWTH_MIB),
    }
