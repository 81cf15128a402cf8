"""When one answer was asked for, queued and generated, and how it ended: told to the metrics."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from inference.errors import EngineFailed
from inference.request import Delta
from openai_api import metrics


class Timed(Protocol):
    """What an Answer says of itself; `usage` is one of its module's."""

    timing: "Timing"
    usage: Any
    finish_reason: str | None
    is_cancelled: bool
    max_tokens: int


class Timing:
    """Times of `time.monotonic`. `arrived_at` is the request's, where there is one."""

    def __init__(self) -> None:
        self.arrived_at = self.queued_at = time.monotonic()
        self.first_token_at: float | None = None
        self._last_token_at = self._queue_s = 0.0
        self._is_counted = False

    def take(self, delta: Delta) -> None:
        """Called for each delta, so it must cost next to nothing."""
        now = time.monotonic()
        if self.first_token_at is None:
            self.first_token_at, self._queue_s = now, delta.queue_time_s
            metrics.time_to_first_token_s.observe(now - self.arrived_at)
        elif num_tokens := len(delta.token_ids):
            gap_s = (now - self._last_token_at) / num_tokens
            metrics.inter_token_latency_s.observe(gap_s, num_tokens)
        self._last_token_at = now

    def end(self, reason: str, answer: Timed) -> None:
        """Count the answer, once: the first reason is why it ended."""
        if self._is_counted:
            return
        self._is_counted = True
        metrics.count_end(reason)
        if reason in ("stop", "length") and self.first_token_at is not None:
            self._observe(self.first_token_at, answer)

    def _observe(self, first_token_at: float, answer: Timed) -> None:
        prefill_s = max(first_token_at - self.queued_at - self._queue_s, 0.0)
        decode_s, num_tokens = self._last_token_at - first_token_at, answer.usage.num_output_tokens
        metrics.e2e_s.observe(self._last_token_at - self.arrived_at)
        metrics.queue_s.observe(self._queue_s)
        metrics.prefill_s.observe(prefill_s)
        metrics.decode_s.observe(decode_s)
        metrics.inference_s.observe(prefill_s + decode_s)
        if num_tokens > 1:
            metrics.request_time_per_token_s.observe(decode_s / (num_tokens - 1))
        metrics.prompt_tokens.observe(answer.usage.num_prompt_tokens)
        metrics.generation_tokens.observe(num_tokens)
        metrics.max_tokens.observe(answer.max_tokens)


@asynccontextmanager
async def counted(answer: Timed) -> AsyncIterator[None]:
    """Around the reading of an answer: whoever leaves before its end has aborted it."""
    reason = "abort"
    try:
        yield
    except EngineFailed:
        reason = "abort" if answer.is_cancelled else "error"
        raise
    finally:
        answer.timing.end(answer.finish_reason or reason, answer)
