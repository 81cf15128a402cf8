"""One row of history for every API request, opened at its arrival and closed when it ends."""

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from django.db import transaction

from inference import service
from openai_api import keys, limits, metrics, usage
from openai_api.answers import Answer, Usage, sum_of, total_usage
from openai_api.database import FAILURES, write, write_until_done
from openai_api.limits import Lease
from openai_api.models import ApiKey, RequestLog
from openai_api.prompts import owner_name

logger = logging.getLogger("openai_api.request")

Outcome = RequestLog.Outcome
ABORTED = "request_aborted"
TURNED_AWAY = (401, 403, 429, 503)  # statuses of what was not even begun with


class End(NamedTuple):
    """How a request ended, for who draws it. Times are in seconds, `at` is `time.monotonic`."""

    at: float
    status: int | None
    is_failed: bool
    first_token_s: float | None  # since its arrival
    between_tokens_s: float | None  # on average


running: "dict[str, Record]" = {}  # what this process is at, by request
ends: deque[End] = deque(maxlen=10_000)  # the latest, of every request; its reader empties it


class Record:
    """The history of one request. However it ends, `close` is called once and the row says how.

    A request that was refused before `open` is in the log alone.
    """

    def __init__(self, request_id: str, endpoint: str, client: str, user_agent: str) -> None:
        self.id = request_id
        self.row = RequestLog(
            id=request_id, endpoint=endpoint, client=client, user_agent=user_agent[:200]
        )
        self.answers: list[Answer] = []
        self.lease, self._is_admitted = Lease(), False
        self._started = time.monotonic()
        self._place: service.Place | None = None
        self._is_open = self._closed = False
        self._aborted_by = ""

    async def open(self, key: ApiKey | None) -> None:
        self.row.key, self._is_open = key, True
        running[self.id] = self
        try:
            await write(self._insert)
        except Exception:
            self._is_open = False
            raise

    def _insert(self) -> None:
        self.row.save(force_insert=True)
        if self.row.key is not None:
            keys.touch(self.row.key)

    def describe(self, body: dict) -> None:
        """What the checked body tells of the request."""
        self.row.model, self.row.stream = body["model"][:200], body["stream"]

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def elapsed_ms(self) -> int:
        return round(self.elapsed_s * 1000)

    @property
    def num_tokens(self) -> int:
        """What has been generated so far."""
        return sum(answer.usage.num_output_tokens for answer in self.answers)

    @property
    def between_tokens_s(self) -> float | None:
        """How long its first answer takes, or took, for a token, once there is one."""
        for answer in self.answers[:1]:
            more = answer.usage.num_output_tokens - 1
            if answer.timing.first_token_at is not None and more > 0:
                return (time.monotonic() - answer.timing.first_token_at) / more
        return None

    def abort_answers(self) -> None:
        """What was queued for a request that will not be answered."""
        for answer in self.answers:
            answer.abort()

    def abort(self, who: str) -> bool:
        """End it from outside, from any thread: its caller gets an error. False if it is over."""
        answers = [answer for answer in self.answers if not answer.is_over]
        if answers:
            self._aborted_by = who
        for answer in answers:
            answer.cancel()
        return bool(answers)

    def take_place(self, owner: int | None) -> None:
        """Make sure that there is room for it in the queue. Raises what the engine raises."""
        if self._place is None:
            self._place = service.admit(owner_name(owner))

    def leave_place(self) -> None:
        """It is about to be queued, or will never be."""
        if self._place is not None:
            self._place.leave()

    async def admit(self) -> None:
        """Count it against its key's limits, once. Raises LimitReached."""
        if not self._is_admitted:
            self.lease, self._is_admitted = await limits.admit(self.row.key), True

    def expect(self, answers: list[Answer]) -> None:
        """These are what the request is answered with, and what it uses; they have been queued."""
        self.leave_place()
        self.answers = self.lease.answers = answers
        for answer in answers:
            answer.timing.arrived_at = self._started
        for num_choices in Counter(answer.prompt_index for answer in answers).values():
            metrics.params_n.observe(num_choices)

    def fail(self, status: int, error: dict) -> None:
        """Remember why it failed; the message is the one that the caller got."""
        self.row.outcome, self.row.status = Outcome.FAILED, status
        self.row.error_code = (error["code"] or error["type"])[:80]
        self.row.error_message = error["message"][:500]
        if status in TURNED_AWAY:
            metrics.rejected.labels(self.row.error_code).inc()

    async def close(self, outcome: str, status: int | None = None) -> None:
        if self._take_over(outcome, status):
            try:
                await write(self._finish)
            except BaseException as exc:
                write_until_done(self._finish)
                if not isinstance(exc, FAILURES):
                    raise
                logger.error("the history has to wait: %s", exc)  # and not the answer

    def close_later(self, outcome: str, status: int | None = None) -> None:
        """`close` for a task that is being cancelled."""
        if self._take_over(outcome, status):
            write_until_done(self._finish)

    def _finish(self) -> None:
        """To be called until it succeeds; what is called once more does nothing."""
        if not self._is_open:
            return
        used = self._used()
        lease, self.lease = self.lease, Lease()
        with settled(lease, used), transaction.atomic():
            self.row.save()
            usage.add(self.row.key_id, 1, used)
        self._is_open = False

    def _take_over(self, outcome: str, status: int | None) -> bool:
        if self._closed:
            return False
        self._closed, row = True, self.row
        running.pop(self.id, None)
        row.duration_s = self.elapsed_s
        if row.outcome == Outcome.RUNNING:
            row.outcome, row.status = outcome, status
        if self._aborted_by:
            row.outcome, row.error_code = Outcome.FAILED, ABORTED
            row.error_message = f"Ended by {self._aborted_by}."
        if row.outcome == Outcome.CANCELLED:
            metrics.disconnects.inc()
        if self.answers or self.lease.summaries:
            self._count_tokens(row)
        ends.append(
            End(
                time.monotonic(),
                row.status,
                row.outcome == Outcome.FAILED,
                row.time_to_first_token_s,
                self.between_tokens_s,
            )
        )
        logger.info(
            "%s%s %s %s in %.3f s, %s prompt + %s completion tokens%s",
            row.endpoint, f" by {row.key or row.user}" if row.key or row.user else "",
            row.status or "-", row.outcome, row.duration_s,
            row.num_prompt_tokens or 0, row.num_completion_tokens or 0,
            f": {row.error_code} {row.error_message}" if row.error_code else "",
            extra={"fields": facts_of(row)},
        )  # fmt: skip
        return self._is_open

    def _count_tokens(self, row: RequestLog) -> None:
        total = self._used()
        row.num_prompt_tokens = total.num_prompt_tokens
        row.num_cached_tokens = total.num_cached_tokens
        row.num_completion_tokens = total.num_output_tokens
        answers = self.answers or self.lease.summaries
        first = [a.timing.first_token_at for a in answers if a.timing.first_token_at is not None]
        if first:
            row.time_to_first_token_s = min(first) - self._started
        row.finish_reason = answers[0].finish_reason or ""

    def _used(self) -> Usage:
        summaries = (summary.usage for summary in self.lease.summaries)
        return sum_of([total_usage(self.answers), *summaries])


def facts_of(row: RequestLog) -> dict:
    """What structured logs have of a request, under the names of the history's columns."""
    names = ("endpoint", "model", "stream", "status", "outcome", "duration_s",
             "time_to_first_token_s", "num_prompt_tokens", "num_cached_tokens",
             "num_completion_tokens", "finish_reason", "error_code", "client")  # fmt: skip
    return {name: getattr(row, name) for name in names} | {"key": row.key and row.key.name}


def charge(owner: int | None, answer: Answer, lease: Lease) -> None:
    """What a background response has used. Its request was counted long ago."""
    used = answer.usage
    writing = write_until_done(usage.add, owner, 0, used)
    writing.add_done_callback(lambda _: _settle(lease, used))


@contextmanager
def settled(lease: Lease, used: Usage) -> Iterator[None]:
    """What the lease has reserved is given back when the block has ended, whatever became of it."""
    try:
        yield
    finally:
        _settle(lease, used)


def _settle(lease: Lease, used: Usage) -> None:
    lease.end(used.num_tokens)
