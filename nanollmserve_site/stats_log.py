"""What the engine does, in a line every ten seconds, worded as vLLM's. An idle one is no news."""

import logging
import threading
import time

from inference.metrics import EngineStats
from inference.service import EngineClient

INTERVAL_S = 10.0

logger = logging.getLogger("nanollmserve.stats")


class StatsLog:
    """Averages of the time between two calls of `tell`."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine, self._before, self._at = engine, engine.stats, time.monotonic()
        self._was_busy, self._hit_rate = False, 0.0

    def start(self) -> None:
        threading.Thread(target=self._run, name="stats-log", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(INTERVAL_S)
            self.tell()

    def tell(self) -> None:
        """After the last tokens comes one more line, which shows that all is done."""
        stats, now = self._engine.stats, time.monotonic()
        seconds, self._at = now - self._at, now
        before, self._before = self._before, stats
        if stats.num_restarts != before.num_restarts or stats.num_steps < before.num_steps:
            before = EngineStats()  # a new core counts from the beginning
        num_prompt = stats.num_prompt_tokens - before.num_prompt_tokens
        num_generated = stats.num_generated_tokens - before.num_generated_tokens
        if num_prompt:
            self._hit_rate = (stats.num_hit_tokens - before.num_hit_tokens) / num_prompt
        is_busy = bool(num_prompt or num_generated or stats.num_running or stats.num_waiting)
        level = logging.INFO if is_busy or self._was_busy else logging.DEBUG
        self._was_busy = is_busy
        logger.log(
            level,
            "Avg prompt throughput: %.1f tokens/s, Avg generation throughput: %.1f tokens/s, "
            "Running: %d reqs, Waiting: %d reqs, KV cache usage: %.1f%%, "
            "Prefix cache hit rate: %.1f%%",
            num_prompt / seconds,
            num_generated / seconds,
            stats.num_running,
            stats.num_waiting,
            100 * stats.kv_cache_usage,
            100 * self._hit_rate,
        )
