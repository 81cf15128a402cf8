"""Readers that come, go and come again; and what happens to a response meanwhile."""

import asyncio
import time

import pytest
from django.db.backends.utils import CursorWrapper

from inference import service
from openai_api import background, database, runs
from openai_api.models import EventBatch, RequestLog, StoredResponse
from tests.helpers import scripted_engine
from tests.openai_api.wire import DONE, Reins, event_of, exchange, is_step, read_stream

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
WORDS = [
    "<think>Let ",
    "me",
    "</think>Hi",
    " there",
    '\n<tool_call>\n{"name": "weather", "arguments": ',
    '{"city":',
    '"Paris"}}\n</tool_call>',
]
ASKING = {"model": "m", "input": "Hi", "tools": [WEATHER], "stream": True}


@pytest.fixture
def reins():
    reins = Reins()
    yield reins
    reins.let_go()


@pytest.fixture
def engine(reins):
    engine = scripted_engine(
        lambda prompt: "".join(WORDS), words=WORDS, before_step=reins.before_step
    )
    service.install(engine)
    yield engine
    service.install(None)
    reins.let_go()
    engine.close()


async def read(answer, reins: Reins, until: int | None = None) -> list[bytes]:
    """The writes up to event `until`; the model goes on when what it said last has arrived."""
    writes = []
    async for write in answer.writes():
        writes.append(write)
        if until is not None and event_of(write)["sequence_number"] == until:
            break
        if is_step(write):
            reins.allow()
    return writes


async def whole_stream(reins: Reins, **fields) -> list[bytes]:
    reins.allow()
    async with exchange("/v1/responses", ASKING | fields) as answer:
        assert await answer.status() == 200
        return await read(answer, reins)


def id_of(writes: list[bytes]) -> str:
    return event_of(writes[0])["response"]["id"]


def path_after(response_id: str, number: int) -> str:
    return f"/v1/responses/{response_id}?stream=true&starting_after={number}"


def keep_every(interval_s: float, monkeypatch) -> None:
    for name in ("FLUSH_INTERVAL_S", "BACKGROUND_FLUSH_INTERVAL_S"):
        monkeypatch.setattr(runs, name, interval_s)


@pytest.mark.parametrize("background", [False, True])
async def test_a_stream_that_has_ended_is_read_again_from_every_event_on(client, reins, background):
    live = await whole_stream(reins, background=background)

    assert [item["type"] for item in event_of(live[-2])["response"]["output"]] == [
        "reasoning",
        "message",
        "function_call",
    ]
    assert await read_stream(f"/v1/responses/{id_of(live)}?stream=true") == live
    for number in range(len(live) - 1):
        assert await read_stream(path_after(id_of(live), number)) == live[number + 1 :]


async def test_a_stream_that_is_cut_at_any_event_goes_on_after_it(client, reins):
    whole = await whole_stream(reins, background=True)
    last_step = max(number for number, write in enumerate(whole) if is_step(write))
    for number in range(len(whole) - 1):
        reins.allow()
        async with exchange("/v1/responses", ASKING | {"background": True}) as answer:
            await answer.status()
            head = await read(answer, reins, until=number)
        response_id = id_of(head)
        assert runs.running(response_id) or number > last_step
        if is_step(head[-1]):
            reins.allow()
        async with exchange(path_after(response_id, number)) as answer:
            assert await answer.status() == 200
            rest = await read(answer, reins)

        assert head + rest == await read_stream(f"/v1/responses/{response_id}?stream=true")
        assert len(head + rest) == len(whole)


async def test_several_readers_of_a_running_response_get_the_same(client, reins):
    reins.allow()
    async with exchange("/v1/responses", ASKING | {"background": True}) as answer:
        await answer.status()
        head = await read(answer, reins, until=8)
        path = f"/v1/responses/{id_of(head)}?stream=true"
        readers = [asyncio.create_task(read_stream(path)) for _ in range(3)]
        if is_step(head[-1]):
            reins.allow()
        whole = head + await read(answer, reins)

    assert await asyncio.gather(*readers) == [whole] * 3


async def test_events_that_another_process_makes_are_followed(client, reins, monkeypatch):
    monkeypatch.setattr(runs, "POLL_INTERVAL_S", 0.01)
    keep_every(1000, monkeypatch)
    live = await whole_stream(reins)
    batch = await EventBatch.objects.aget()
    lines = batch.events.split("\n")
    await StoredResponse.objects.aupdate(status="in_progress")
    await EventBatch.objects.aupdate(events="\n".join(lines[:5]))
    async with exchange(path_after(id_of(live), 1)) as answer:
        await answer.status()
        seen = await read(answer, reins, until=4)
        rest = {"first": 5, "events": "\n".join(lines[5:])}
        await EventBatch.objects.acreate(response_id=batch.response_id, **rest)
        await StoredResponse.objects.aupdate(status="completed")
        seen += await read(answer, reins)

    assert seen == live[2:]


@pytest.fixture
def queries(client, monkeypatch):
    """All that any thread asks of the database."""
    queries, execute = [], CursorWrapper._execute_with_wrappers

    def remember(self, sql, *args, **kwargs):
        queries.append(sql)
        return execute(self, sql, *args, **kwargs)

    monkeypatch.setattr(CursorWrapper, "_execute_with_wrappers", remember)
    return queries


async def test_nothing_is_asked_of_the_database_between_two_tokens(queries, reins, monkeypatch):
    keep_every(1000, monkeypatch)
    counts = []
    reins.allow()
    async with exchange("/v1/responses", ASKING) as answer:
        await answer.status()
        async for write in answer.writes():
            if is_step(write):
                counts.append(len(queries))
                reins.allow()

    assert len(counts) == len(WORDS)
    assert len(set(counts)) == 1
    assert len(queries) > counts[-1]


class TestDatabase:
    """It is never between a token and its reader: what is new is kept once in an interval."""

    @pytest.fixture
    def engine(self):
        engine = scripted_engine(lambda prompt: "a" * int(prompt.split()[1].split("<")[0]))
        service.install(engine)
        yield engine
        service.install(None)
        engine.close()

    @staticmethod
    async def answer_of(num_tokens: int, **fields) -> None:
        body = {"model": "m", "input": str(num_tokens), **fields}
        async with exchange("/v1/responses", body) as answer:
            assert await answer.status() == 200
            text = b"".join([write async for write in answer.writes()]).decode()
        assert f'"text":"{"a" * num_tokens}"' in text
        while background._tasks:  # until its use is counted
            await asyncio.sleep(0.001)
        await database.write(int)

    @pytest.mark.parametrize(
        "fields",
        [{"stream": True}, {"stream": False}, {"stream": True, "background": True}],
        ids=["streamed", "whole", "in the background"],
    )
    async def test_four_times_the_tokens_need_no_more_queries(self, queries, monkeypatch, fields):
        keep_every(1000, monkeypatch)
        counts = []
        for num_tokens in (1, 50, 200):
            queries.clear()
            await self.answer_of(num_tokens, **fields)
            counts.append(len(queries))

        assert counts[1] == counts[2] > 0

    async def test_what_is_new_is_kept_when_the_interval_has_passed(self, queries, monkeypatch):
        keep_every(0, monkeypatch)
        await self.answer_of(50, stream=True)
        num_inserts = sum("INSERT" in sql and "eventbatch" in sql for sql in queries)
        num_batches = await EventBatch.objects.acount()
        response = await StoredResponse.objects.aget()
        stream = await read_stream(f"/v1/responses/{response.pk}?stream=true")

        assert num_inserts == num_batches > 2
        numbers = [event_of(write)["sequence_number"] for write in stream[:-1]]
        assert numbers == list(range(len(numbers)))
        assert stream[-1] == DONE


PATHS = {
    "/v1/responses": {"input": "Hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 1500},
}


class TestLeaving:
    """Nothing is generated for a caller who has gone."""

    @pytest.fixture
    def engine(self):
        """It answers one at a time, for seconds."""
        engine = scripted_engine(
            lambda prompt: "a" * 1500, max_num_seqs=1, before_step=lambda: time.sleep(0.002)
        )
        service.install(engine)
        yield engine
        service.install(None)
        engine.close()

    @staticmethod
    async def until(condition, timeout_s: float = 1) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.002)

    @pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
    @pytest.mark.parametrize("path", PATHS)
    async def test_the_answer_ends_that_was_running(self, client, engine, path, stream):
        async with exchange(path, {"model": "m", "stream": stream, **PATHS[path]}):
            await self.until(lambda: engine.stats.num_generated_tokens > 3, timeout_s=10)
        await self.until(lambda: not engine.stats.num_running)

        assert not engine._generations
        log = await self.closed_log()
        assert (log.outcome, log.stream) == ("cancelled", stream)

    @pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
    @pytest.mark.parametrize("path", PATHS)
    async def test_the_answer_is_not_begun_that_was_waiting(self, client, engine, path, stream):
        async with exchange("/v1/completions", {"model": "m", **PATHS["/v1/completions"]}):
            await self.until(lambda: engine.stats.num_running == 1, timeout_s=10)
            async with exchange(path, {"model": "m", "stream": stream, **PATHS[path]}):
                await self.until(lambda: engine.stats.num_waiting == 1, timeout_s=10)
            await self.until(lambda: not engine.stats.num_waiting)

            assert engine.stats.num_running == 1

    @pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
    async def test_a_response_keeps_what_was_said(self, client, engine, stream):
        async with exchange("/v1/responses", {"model": "m", "input": "Hi", "stream": stream}):
            await self.until(self.something_is_said, timeout_s=10)
        row = await self.ended_row()
        [item] = row.output
        events = await read_stream(f"/v1/responses/{row.pk}?stream=true")
        last = event_of(events[-2])

        assert (row.status, row.incomplete_details) == ("cancelled", {"reason": "cancelled"})
        assert item["status"] == "incomplete"
        assert item["content"][0]["text"].strip("a") == "" < item["content"][0]["text"]
        assert last["type"] == "response.incomplete"
        assert last["response"] == row.to_dict()

    @pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
    async def test_a_response_that_was_waiting_is_cancelled_and_empty(self, client, engine, stream):
        async with exchange("/v1/completions", {"model": "m", **PATHS["/v1/completions"]}):
            await self.until(lambda: engine.stats.num_running == 1, timeout_s=10)
            async with exchange("/v1/responses", {"model": "m", "input": "Hi", "stream": stream}):
                await self.until(lambda: engine.stats.num_waiting == 1, timeout_s=10)
                await self.until(lambda: runs._running, timeout_s=10)
            row = await self.ended_row()

        assert (row.status, row.output) == ("cancelled", [])

    async def test_a_background_response_goes_on(self, client, engine):
        body = {"model": "m", "input": "Hi", "stream": True, "background": True}
        async with exchange("/v1/responses", body | {"max_output_tokens": 200}) as answer:
            await answer.status()
            writes = answer.writes()
            created = await anext(writes)
            await writes.aclose()
        row = await self.ended_row()

        assert row.pk == id_of([created])
        assert (row.status, row.output[0]["content"][0]["text"]) == ("incomplete", "a" * 200)

    @staticmethod
    def something_is_said() -> bool:
        return any(run.resource["output"] for run in runs._running.values())

    @staticmethod
    async def ended_row() -> StoredResponse:
        deadline = time.monotonic() + 5
        while (row := await StoredResponse.objects.aget()).status in StoredResponse.ACTIVE:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.002)
        return row

    @staticmethod
    async def closed_log() -> RequestLog:
        deadline = time.monotonic() + 5
        while (log := await RequestLog.objects.aget()).outcome == "running":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.002)
        return log


async def test_what_the_end_of_the_server_interrupts_is_left_to_the_next(client, engine, reins):
    reins.allow()
    async with exchange("/v1/responses", ASKING | {"background": True}) as answer:
        await answer.status()
        head = await read(answer, reins, until=8)
        engine.dismiss()
        reins.let_go()
        *_, told, end = [write async for write in answer.writes()]
    assert event_of(told)["error"]["code"] == "server_is_overloaded"
    assert end == DONE

    await background.put_off(5)
    row = await StoredResponse.objects.aget(pk=id_of(head))
    assert (row.status, row.attempts, row.body["input"]) == ("queued", 0, "Hi")


async def test_what_the_end_of_the_server_interrupts_is_incomplete(client, engine, reins):
    reins.allow()
    async with exchange("/v1/responses", ASKING) as answer:
        await answer.status()
        head = await read(answer, reins, until=8)
        engine.dismiss()
        reins.let_go()
        *_, last, _ = [write async for write in answer.writes()]
    assert event_of(last)["type"] == "response.incomplete"
    stored = await client.responses.retrieve(id_of(head))
    assert (stored.status, stored.incomplete_details.reason) == ("incomplete", "server_shutdown")
