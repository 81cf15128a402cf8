"""What is older than the operator wants is deleted: by the command, and by the server itself."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from openai_api import background, retention
from openai_api.models import (
    Conversation,
    ConversationItem,
    EventBatch,
    RequestLog,
    StoredChatCompletion,
    StoredResponse,
)

OLD, NEW = 8, 6  # days, where 7 are kept
EPOCH = now()
KINDS = {kind.name: kind for kind in retention.KINDS}


def days_ago(days: float):
    return EPOCH - timedelta(days=days)


def response(name: str, days: float, ended: float | None = None, **values) -> StoredResponse:
    """`ended` days ago, or nobody knows when."""
    values = {"status": "completed", "model": "m", "request": {}} | values
    completed_at = None if ended is None else days_ago(ended)
    return StoredResponse.objects.create(
        id=name, created_at=days_ago(days), completed_at=completed_at, **values
    )


def events(row: StoredResponse, num_batches: int) -> None:
    EventBatch.objects.bulk_create(
        EventBatch(response=row, first=first, events="{}") for first in range(num_batches)
    )


def chat(name: str, days: float) -> None:
    StoredChatCompletion.objects.create(
        id=name, created_at=days_ago(days), model="m", messages=[], completion={}
    )


def conversation(name: str, used: float, run_id: str = "") -> None:
    row = Conversation.objects.create(
        id=name, created_at=days_ago(OLD), used_at=days_ago(used), run_id=run_id
    )
    row.items.create(item_id=f"msg of {name}", item={})


def request(name: str, days: float, hours: float | None = 0, outcome: str = "succeeded") -> None:
    """It took some hours, or nobody knows how long."""
    duration_s = None if hours is None else hours * 3600
    RequestLog.objects.create(
        id=name, created_at=days_ago(days), duration_s=duration_s, outcome=outcome
    )


def left() -> set[str]:
    models = (StoredResponse, StoredChatCompletion, Conversation, RequestLog)
    return {key for model in models for key in model.objects.values_list("pk", flat=True)}


def prune(**options) -> str:
    output = StringIO()
    call_command("prune", stdout=output, **options)
    return output.getvalue()


@pytest.fixture
def rows(transactional_db):
    """The names say what is to become of them."""
    for status in ("completed", "incomplete", "failed", "cancelled"):
        events(response(f"gone {status}", OLD, OLD, status=status), 2)
        events(response(f"kept {status}", NEW, NEW, status=status), 2)
    response("gone, end unknown", OLD, status="cancelled")
    response("kept, just ended", OLD, NEW)
    response("kept, queued", OLD, status="queued", background=True)
    response("kept, in progress", OLD, status="in_progress")
    chat("gone chat", OLD)
    chat("kept chat", NEW)
    conversation("gone conversation", OLD)
    conversation("kept conversation", NEW)
    conversation("kept, running conversation", OLD, run_id="kept, in progress")
    request("gone request", OLD)
    request("gone, lost", OLD, None, "lost")
    request("kept request", NEW)
    request("kept, took long", 7.1, 24)
    request("kept, running", OLD, None, "running")


class TestCommand:
    def test_what_ended_long_ago_is_deleted_with_its_events(self, rows):
        kept = {name for name in left() if name.startswith("kept")}
        said = prune(days=7)

        assert left() == kept
        assert "5 responses, 1 chat completions, 1 conversations, 2 requests" in said
        assert EventBatch.objects.count() == 4 * 2
        assert ConversationItem.objects.count() == 2

    def test_a_dry_run_only_tells(self, rows):
        before = left()
        said = prune(days=7, dry_run=True)

        assert left() == before
        assert (
            "would be deleted: 5 responses, 1 chat completions, 1 conversations, 2 requests" in said
        )

    def test_the_setting_is_the_default(self, rows, settings):
        settings.API = replace(settings.API, retention_days=7)
        assert "older than 7 days" in prune()
        assert not [name for name in left() if name.startswith("gone")]

    def test_the_flag_wins_over_the_setting(self, rows, settings):
        settings.API = replace(settings.API, retention_days=7)
        before = left()
        prune(days=10**9)
        assert left() == before

    def test_without_an_age_nothing_is_deleted(self, rows):
        before = left()
        with pytest.raises(CommandError, match="NANOLLM_RETENTION_DAYS"):
            prune()
        with pytest.raises(CommandError, match="at least 1"):
            prune(days=0)
        assert left() == before


def test_a_conversation_stays_without_its_responses(transactional_db):
    conversation = Conversation.objects.create(created_at=days_ago(OLD))
    conversation.items.create(item_id="msg_1", item={"id": "msg_1"}, response_id="resp")
    response("resp", OLD, OLD, conversation=conversation, conversation_position=0)
    prune(days=7)

    assert left() == {conversation.pk}
    assert conversation.items.count() == 1


def test_a_continuation_stays_without_what_it_continued(transactional_db):
    response("first", OLD, OLD)
    response("second", NEW, NEW, previous_id="first")
    prune(days=7)

    assert StoredResponse.objects.get().to_dict()["previous_response_id"] == "first"


class TestSizeOfAWrite:
    def delete_all(self, kind) -> list[int]:
        sizes = []
        while size := retention.delete_some(kind, days_ago(7)):
            sizes.append(size)
        return sizes

    def test_many_rows_are_deleted_a_few_at_a_time(self, transactional_db):
        old = [RequestLog(id=str(n), created_at=days_ago(OLD)) for n in range(retention.MAX_ROWS)]
        RequestLog.objects.bulk_create(old)
        RequestLog.objects.update(outcome="succeeded")
        request("one more", OLD)

        assert self.delete_all(KINDS["requests"]) == [retention.MAX_ROWS, 1]

    def test_events_count_as_rows(self, transactional_db):
        for number, num_batches in enumerate([60, 38, 1, 1000, 5]):
            events(response(str(number), OLD - number / 100), num_batches)

        assert self.delete_all(KINDS["responses"]) == [2, 1, 1, 1]
        assert not EventBatch.objects.exists()

    def test_texts_are_not_read(self, transactional_db):
        response("old", OLD, OLD)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            self.delete_all(KINDS["responses"])

        assert queries.captured_queries
        assert not [query for query in queries.captured_queries if '"output"' in query["sql"]]


class TestServer:
    async def test_it_deletes_by_itself(self, rows):
        sweeping = asyncio.run_coroutine_threadsafe(background.sweep_hourly(7), background.loop())
        try:
            async with asyncio.timeout(10):
                while await RequestLog.objects.filter(id__startswith="gone").aexists():
                    await asyncio.sleep(0.005)
        finally:
            sweeping.cancel()
        names = {row.pk async for row in StoredResponse.objects.only("pk")}

        assert names == {name for name in names if name.startswith("kept")}

    async def test_a_sweep_tells_what_it_deleted(self, rows):
        deleted = await retention.sweep(7)

        assert deleted == {
            "responses": 5,
            "chat completions": 1,
            "conversations": 1,
            "requests": 2,
        }
        assert await retention.sweep(7) == {}
