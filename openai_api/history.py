"""One row of history for every API request, opened at its arrival and closed when it ends."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

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
TURNED_AWAY = (401, 403, 429, 503)  # statuses of what was not even begun with


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
        self.summaries: list[Answer] = []  # which the model wrote for itself, before it answered
        self.lease, self._is_admitted = Lease(), False
        self._started = time.monotonic()
        self._place: service.Place | None = None
        self._is_open = self._closed = False

    async def open(self, key: ApiKey | None) -> None:
        self.row.key, self._is_open = key, True
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
    def elapsed_ms(self) -> int:
        return round((time.monotonic() - self._started) * 1000)

    def abort_answers(self) -> None:
        """What was queued for a request that will not be answered."""
        for answer in self.answers:
            answer.abort()

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
        used = used_by(self.answers, self.summaries)
        lease, self.lease = self.lease, Lease()
        with settled(lease, used), transaction.atomic():
            self.row.save()
            if self.row.key_id is not None:
                usage.add(self.row.key_id, 1, used)
        self._is_open = False

    def _take_over(self, outcome: str, status: int | None) -> bool:
        if self._closed:
            return False
        self._closed, row = True, self.row
        row.duration_s = time.monotonic() - self._started
        if row.outcome == Outcome.RUNNING:
            row.outcome, row.status = outcome, status
        if row.outcome == Outcome.CANCELLED:
            metrics.disconnects.inc()
        if self.answers or self.summaries:
            self._count_tokens(row)
        logger.info(
            "%s%s %s %s in %.3f s, %s prompt + %s completion tokens%s",
            row.endpoint, f" by {row.key}" if row.key else "",
            row.status or "-", row.outcome, row.duration_s,
            row.num_prompt_tokens or 0, row.num_completion_tokens or 0,
            f": {row.error_code} {row.error_message}" if row.error_code else "",
            extra={"fields": facts_of(row)},
        )  # fmt: skip
        return self._is_open

    def _count_tokens(self, row: RequestLog) -> None:
        total = used_by(self.answers, self.summaries)
        row.num_prompt_tokens = total.num_prompt_tokens
        row.num_cached_tokens = total.num_cached_tokens
        row.num_completion_tokens = total.num_output_tokens
        first = [a.timing.first_token_at for a in self.answers if a.timing.first_token_at]
        if first:
            row.time_to_first_token_s = min(first) - self._started
        row.finish_reason = (self.answers[0].finish_reason if self.answers else None) or ""


def facts_of(row: RequestLog) -> dict:
    """What structured logs have of a request, under the names of the history's columns."""
    names = ("endpoint", "model", "stream", "status", "outcome", "duration_s",
             "time_to_first_token_s", "num_prompt_tokens", "num_cached_tokens",
             "num_completion_tokens", "finish_reason", "error_code", "client")  # fmt: skip
    return {name: getattr(row, name) for name in names} | {"key": row.key and row.key.name}


def used_by(answers: list[Answer], summaries: list[Answer]) -> Usage:
    return sum_of([total_usage(answers), *(summary.usage for summary in summaries)])


def charge(owner: int | None, answer: Answer, lease: Lease) -> None:
    """What a background response has used. Its request was counted long ago."""
    used = answer.usage
    if owner is None:
        return
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
    lease.end(used.num_prompt_tokens + used.num_output_tokens)
