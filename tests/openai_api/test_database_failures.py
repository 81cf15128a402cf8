"""SQLite that cannot be written for a while: callers are told, and nothing stays half done."""

import asyncio
import sqlite3
import threading
import time

import openai
import pytest
from django.db import connection

from inference import service
from openai_api import database, runs
from openai_api.database import read, write
from openai_api.models import Conversation, RequestLog, StoredResponse
from tests.helpers import in_process_client, scripted_engine

pytestmark = pytest.mark.skipif(connection.vendor != "sqlite", reason="these are SQLite's failures")

HELLO = "Hello!"
MUCH = HELLO * 150


class Fault:
    """The database as its writing thread finds it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    async def begin(self) -> None:
        if self.kind == "read-only":
            await pragma("query_only=ON")
        else:
            await pragma("busy_timeout=200")
            name = str(connection.settings_dict["NAME"])
            self.other = sqlite3.connect(name, check_same_thread=False, isolation_level=None)
            self.other.execute("BEGIN IMMEDIATE")

    async def end(self) -> None:
        if self.kind == "read-only":
            await pragma("query_only=OFF")
        else:
            self.other.rollback()
            self.other.close()
            await pragma("busy_timeout=20000")


async def pragma(text: str) -> None:
    await write(lambda: connection.cursor().execute(f"PRAGMA {text}").close())


@pytest.fixture(params=["read-only", "locked"])
async def fault(request, transactional_db, monkeypatch):
    monkeypatch.setattr(database, "RETRY_S", 0.05)
    return Fault(request.param)


@pytest.fixture
def gate():
    """Shut, the model waits."""
    gate = threading.Event()
    gate.set()
    return gate


@pytest.fixture
def client(gate, transactional_db):
    engine = scripted_engine(
        lambda prompt: MUCH if "much" in prompt else HELLO, before_step=gate.wait
    )
    service.install(engine)
    yield in_process_client()
    gate.set()
    service.install(None)
    engine.close()


async def until(condition, timeout_s: float = 5.0):
    deadline = time.monotonic() + timeout_s
    while not (found := await read(condition)):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    return found


async def test_a_short_lock_is_waited_for(client):
    fault = Fault("locked")
    await fault.begin()
    await asyncio.gather(*(client.models.list() for _ in range(3)), later(0.05, fault.end))


async def later(delay_s: float, function) -> None:
    await asyncio.sleep(delay_s)
    await function()


async def test_a_request_is_told_to_come_back(client, fault):
    await fault.begin()
    with pytest.raises(openai.APIStatusError) as caught:
        await client.responses.create(model="m", input="Hi")
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "1"
    assert caught.value.body["type"] == "server_error"
    assert "database" not in str(caught.value).lower()

    await fault.end()
    assert (await client.responses.create(model="m", input="Hi")).output_text == HELLO
    rows = await read(lambda: list(RequestLog.objects.values_list("outcome", flat=True)))
    assert rows == ["succeeded"]  # what was refused is in the log alone


async def test_who_waits_behind_another_does_not_wait_as_well(client, monkeypatch):
    monkeypatch.setattr(database, "LONG_S", 0.1)
    fault = Fault("locked")
    await fault.begin()
    began = time.monotonic()
    answers = await asyncio.gather(
        *(client.models.list() for _ in range(20)), return_exceptions=True
    )
    waited_s = time.monotonic() - began
    await fault.end()

    assert {getattr(answer, "status_code", 200) for answer in answers} == {503}
    assert waited_s < 2.0  # and not 20 times 0.2 seconds


@pytest.mark.parametrize("stream", [False, True])
async def test_what_could_not_be_stored_has_failed_for_everyone(client, gate, fault, stream):
    talk = await client.conversations.create()
    gate.clear()
    asked = {"model": "m", "input": "Hi", "conversation": talk.id}
    answering = asyncio.create_task(ask(client, stream, **asked))
    row = await until(lambda: StoredResponse.objects.first())
    await fault.begin()
    gate.set()
    status = await answering
    await fault.end()

    assert status == "failed"
    active = StoredResponse.ACTIVE
    await until(lambda: not StoredResponse.objects.filter(status__in=active).exists())
    assert (await client.responses.retrieve(row.pk)).status == "failed"
    events = [event async for event in await client.responses.retrieve(row.pk, stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.failed"
    await until(lambda: not Conversation.objects.exclude(run_id="").exists())
    await until(lambda: not RequestLog.objects.filter(outcome="running").exists())


async def ask(client, stream: bool, **asked) -> str:
    """The status of which the client hears."""
    answer = await client.responses.create(**asked, stream=stream)
    if stream:
        last = [event async for event in answer][-1]
        assert last.type == f"response.{last.response.status}"
        return last.response.status
    return answer.status


async def test_an_answer_does_not_wait_for_its_history(client, gate, fault):
    gate.clear()
    messages = [{"role": "user", "content": "Hi"}]
    answering = asyncio.create_task(client.chat.completions.create(model="m", messages=messages))
    await until(lambda: RequestLog.objects.filter(outcome="running").first())
    await fault.begin()
    gate.set()
    answer = await answering
    await fault.end()

    assert answer.choices[0].message.content == HELLO
    row = await until(lambda: RequestLog.objects.exclude(outcome="running").first())
    assert (row.outcome, row.num_completion_tokens) == ("succeeded", len(HELLO) + 1)


async def test_a_background_response_is_complete_when_it_is_stored(client, gate, fault):
    gate.clear()
    begun = await client.responses.create(model="m", input="Hi", background=True)
    await fault.begin()
    gate.set()
    await asyncio.sleep(0.5)
    assert (await read(StoredResponse.objects.get)).status in StoredResponse.ACTIVE
    await fault.end()

    await until(lambda: StoredResponse.objects.filter(status="completed").exists())
    assert (await client.responses.retrieve(begun.id)).output_text == HELLO


async def test_events_that_were_not_kept_are_kept_with_the_next(client, gate, fault, monkeypatch):
    """The log has no hole from which a resumed stream would suffer."""
    monkeypatch.setattr(runs, "FLUSH_INTERVAL_S", 0.0)
    gate.clear()
    answering = asyncio.create_task(client.responses.create(model="m", input="much"))
    row = await until(lambda: StoredResponse.objects.first())
    await fault.begin()
    gate.set()
    await until(lambda: len(runs.running(row.pk).log) > 20)
    await fault.end()
    answer = await answering

    assert answer.output_text == MUCH
    events = [event async for event in await client.responses.retrieve(row.pk, stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == MUCH
