"""What the server did in the last minutes: a sample every two seconds, in a ring.

A thread takes them from what the engine and the history count anyway, so tokens cost nothing more.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from inference.service import EngineClient
from openai_api import history
from openai_api.history import End

INTERVAL_S = 2.0
KEPT_S = 300.0
WINDOW_S = 60.0  # of requests that ended, for what is a rate or a quantile of them


class Quantiles(NamedTuple):
    """Of some seconds."""

    p50: float
    p95: float


class Sample(NamedTuple):
    """Rates of tokens are those since the sample before; what is None, there was nothing to count.

    Requests are those of the last minute.
    """

    generation_per_s: float = 0.0
    prompt_per_s: float = 0.0
    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    hit_rate: float | None = None
    first_token_s: Quantiles | None = None
    between_tokens_s: Quantiles | None = None
    ended_per_min: float = 0.0
    errors_per_min: float = 0.0
    refused_per_min: float = 0.0  # with 429


class Sampler:
    """The ring, and the engine that it looks at; `begin` starts the thread that fills it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine: EngineClient | None = None
        self.samples: deque[Sample] = deque(maxlen=round(KEPT_S / INTERVAL_S))
        self.started_at = clock()
        self._clock = clock
        self._ends: deque[End] = deque()
        self._before: tuple[float, tuple[int, ...]] = clock(), ()

    def begin(self, engine: EngineClient) -> None:
        self.engine = engine
        threading.Thread(target=self._run, name="samples", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(INTERVAL_S)
            self.take()

    @property
    def uptime_s(self) -> float:
        return self._clock() - self.started_at

    @property
    def latest(self) -> Sample:
        return self.samples[-1] if self.samples else Sample()

    def take(self) -> None:
        """Add a sample of now."""
        if self.engine is None:
            return
        now, stats = self._clock(), self.engine.stats
        grown, elapsed_s = self._growth(
            now,
            stats.num_generated_tokens,
            stats.num_prompt_tokens,
            stats.num_hit_tokens,
            stats.num_queried_tokens,
        )
        self._collect_ends(now)
        ends = list(self._ends)
        refused = sum(end.status == 429 for end in ends)
        self.samples.append(
            Sample(
                generation_per_s=grown[0] / elapsed_s,
                prompt_per_s=grown[1] / elapsed_s,
                num_running=stats.num_running,
                num_waiting=stats.num_waiting,
                kv_cache_usage=stats.kv_cache_usage,
                hit_rate=grown[2] / grown[3] if grown[3] else None,
                first_token_s=quantiles(end.first_token_s for end in ends),
                between_tokens_s=quantiles([*_paces(), *(end.between_tokens_s for end in ends)]),
                ended_per_min=len(ends) * 60 / WINDOW_S,
                errors_per_min=(sum(end.is_failed for end in ends) - refused) * 60 / WINDOW_S,
                refused_per_min=refused * 60 / WINDOW_S,
            )
        )

    def _growth(self, now: float, *counters: int) -> tuple[list[int], float]:
        """How much has been counted since the last time, and how long that was ago.

        An engine that was begun anew counts from zero.
        """
        then, before = self._before
        self._before = now, counters
        before = before or counters
        grown = [
            new - old if new >= old else new for new, old in zip(counters, before, strict=True)
        ]
        return grown, max(now - then, 0.001)

    def _collect_ends(self, now: float) -> None:
        while history.ends:
            self._ends.append(history.ends.popleft())
        while self._ends and self._ends[0].at < now - WINDOW_S:
            self._ends.popleft()


def _paces() -> list[float | None]:
    """Of what is running: an answer of ten minutes should not be seen only when it has ended."""
    return [record.between_tokens_s for record in list(history.running.values())]


def quantiles(values: Iterable[float | None]) -> Quantiles | None:
    """The nearest ranks. None of nothing."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None
    ranks = (max(math.ceil(part * len(ordered)), 1) - 1 for part in (0.5, 0.95))
    return Quantiles(*(ordered[rank] for rank in ranks))


sampler = Sampler()
