"""What is older than the retention setting says is deleted, a little at a time.

SQLite has one writer: between two of these writes, everybody else has a turn.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import NamedTuple

from django.db.models import Count, Model, Q
from django.utils.timezone import now

from openai_api.database import write
from openai_api.models import (
    Conversation,
    ConversationItem,
    EventBatch,
    RequestLog,
    StoredChatCompletion,
    StoredItem,
    StoredResponse,
)

MAX_DAYS = 36500  # beyond a hundred years, dates could overflow
MAX_ROWS = 100  # that one write deletes, events included
PAUSE_S = 0.01


class Kind(NamedTuple):
    """One sort of rows: the keys of those that ended before a time, the oldest first."""

    name: str
    model: type[Model]
    ended_before: Callable[[datetime], Iterator[str]]
    parts: tuple[tuple[type[Model], str], ...] = ()  # what goes with them, and its owner's field


def ended_responses(before: datetime) -> Iterator[str]:
    rows = StoredResponse.objects.exclude(status__in=StoredResponse.ACTIVE)
    rows = rows.filter(Q(completed_at=None) | Q(completed_at__lt=before), created_at__lt=before)
    return rows.order_by("created_at").values_list("pk", flat=True).iterator()


def ended_chats(before: datetime) -> Iterator[str]:
    rows = StoredChatCompletion.objects.filter(created_at__lt=before)  # when it was finished
    return rows.order_by("created_at").values_list("pk", flat=True).iterator()


def unused_conversations(before: datetime) -> Iterator[str]:
    rows = Conversation.objects.filter(used_at__lt=before, run_id="")
    return rows.order_by("used_at").values_list("pk", flat=True).iterator()


def ended_requests(before: datetime) -> Iterator[str]:
    rows = RequestLog.objects.filter(created_at__lt=before)
    rows = rows.exclude(outcome=RequestLog.Outcome.RUNNING).order_by("created_at")
    for key, created_at, duration_s in rows.values_list(
        "pk", "created_at", "duration_s"
    ).iterator():
        if created_at + timedelta(seconds=duration_s or 0) < before:
            yield key


KINDS = (
    Kind(
        "responses",
        StoredResponse,
        ended_responses,
        ((EventBatch, "response_id"), (StoredItem, "response_id")),
    ),
    Kind("chat completions", StoredChatCompletion, ended_chats),
    Kind(
        "conversations",
        Conversation,
        unused_conversations,
        ((ConversationItem, "conversation_id"),),
    ),
    Kind("requests", RequestLog, ended_requests),
)


def days_ago(days: int) -> datetime:
    return now() - timedelta(days=min(days, MAX_DAYS))


def count(before: datetime) -> Counter[str]:
    """How many rows of each kind would be deleted."""
    return Counter({kind.name: sum(1 for _ in kind.ended_before(before)) for kind in KINDS})


def delete_some(kind: Kind, before: datetime) -> int:
    """Delete a few of the oldest rows; 0 means that none is left."""
    keys = _with_few_parts(kind, list(islice(kind.ended_before(before), MAX_ROWS)))
    # Only the keys are read: Django looks at the rows before it deletes what belongs to them.
    kind.model.objects.filter(pk__in=keys).only("pk").delete()
    return len(keys)


def _with_few_parts(kind: Kind, keys: list[str]) -> list[str]:
    """As many as have not too many rows of their own together, but at least one."""
    sizes: Counter[str] = Counter()
    for part, owner in kind.parts:
        rows = part.objects.filter(**{f"{owner}__in": keys}).order_by()
        sizes.update(dict(rows.values_list(owner).annotate(Count("pk"))))
    num_rows = 0
    for number, key in enumerate(keys):
        num_rows += 1 + sizes[key]
        if num_rows > MAX_ROWS and number:
            return keys[:number]
    return keys


async def sweep(days: int) -> Counter[str]:
    """Delete what is too old, among the other work of the database's thread."""
    before, deleted = days_ago(days), Counter()
    for kind in KINDS:
        while num_rows := await write(delete_some, kind, before):
            deleted[kind.name] += num_rows
            await asyncio.sleep(PAUSE_S)
    return deleted


def told(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[kind.name]} {kind.name}" for kind in KINDS)
