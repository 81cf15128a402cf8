"""WebSocket mode through the application itself: lanes, memory, errors, limits, and leaving."""

import asyncio
import itertools
import json
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import get_args

import pytest
from channels.testing import WebsocketCommunicator
from django.db import connection as database
from openai.types.responses.responses_server_event import ResponsesServerEvent

from inference import service
from inference.request import Request, SamplingParams
from nanollmserve_site.handlers import websocket_application
from openai_api import consumers
from openai_api.database import write
from openai_api.models import RequestLog, StoredResponse
from tests.helpers import FAILURE, scripted_engine

pytestmark = pytest.mark.django_db(transaction=True)

WAIT_S = 10
QUIET_S = 0.15  # of silence mean that nothing more will come
LEAVE_S = 1
ENDS = ("response.completed", "response.incomplete", "response.failed", "error")
ENDLESS = {"ignore_eos": True, "store": False}
CREATE = {"type": "response.create", "model": "m"}
COMPACTED = {  # what was said before is summarised first, by the model
    "store": False,
    "context_management": [{"type": "compaction", "compact_threshold": 1}],
}


class Model:
    """It says again all that was said, but for what the last message tells it to do."""

    def __init__(self) -> None:
        self.gate = threading.Event()  # where it waits if told so
        self.gate.set()

    def __call__(self, prompt: str) -> str:
        messages = re.findall(r"<\|im_start\|>\w+\n(.*?)<\|im_end\|>", prompt, re.S)
        if "wait" in messages[-1]:
            self.gate.wait(WAIT_S)
        if "fail" in messages[-1]:
            return f"Hel{FAILURE}"
        return " / ".join(messages)


@pytest.fixture
def script():
    return Model()


@pytest.fixture
def engine(script):
    """One with so much room that what ignores its end has none."""
    engine = scripted_engine(script, max_model_len=100_000)
    service.install(engine)
    yield engine
    service.install(None)
    engine.close()


class Connection:
    """A program on this machine that reads each lane by itself; the default lane is None."""

    def __init__(self) -> None:
        headers = [(b"user-agent", b"a program")]
        self.socket = WebsocketCommunicator(websocket_application(), "/v1/responses", headers)
        self.socket.scope["client"] = ("127.0.0.1", 50000)
        self.events: list[dict] = []  # of all lanes, as they came
        self._arrived: dict[str | None, deque[dict]] = defaultdict(deque)

    async def send(self, **message) -> None:
        await self.socket.send_json_to(message)

    async def create(self, text: str, **fields) -> None:
        await self.send(**CREATE, input=text, **fields)

    async def ask(self, text: str, **fields) -> dict:
        """The last event of a response."""
        await self.create(text, **fields)
        return await self.last(fields.get("stream_id"))

    async def frame(self) -> dict:
        return await self.socket.receive_output(WAIT_S)

    async def next(self, lane: str | None = None) -> dict:
        while not self._arrived[lane]:
            await self._read()
        return self._arrived[lane].popleft()

    async def _read(self) -> None:
        frame = await self.frame()
        assert frame["type"] == "websocket.send", frame
        event = json.loads(frame["text"])
        self.events.append(event)
        self._arrived[event.get("stream_id")].append(event)

    async def until(self, *types: str, lane: str | None = None) -> list[dict]:
        """The lane's events up to the first of these types."""
        events = [await self.next(lane)]
        while events[-1]["type"] not in types:
            events.append(await self.next(lane))
        return events

    async def last(self, lane: str | None = None) -> dict:
        return (await self.until(*ENDS, lane=lane))[-1]

    async def begun(self, text: str, **fields) -> str:
        """The id of a response that is being generated."""
        await self.create(text, **fields)
        lane = fields.get("stream_id")
        return (await self.until("response.in_progress", lane=lane))[-1]["response"]["id"]

    async def is_quiet(self) -> bool:
        """Whether nothing has come that was not read, and nothing comes."""
        return await self.socket.receive_nothing(QUIET_S)

    async def lanes_of(self, *types: str) -> list[str | None]:
        """Where events of these types have come, when nothing more comes."""
        while not await self.is_quiet():
            await self._read()
        return [event.get("stream_id") for event in self.events if event["type"] in types]

    async def leave(self) -> None:
        await self.socket.disconnect(timeout=WAIT_S)
        await write(int)  # what was to be written is


@asynccontextmanager
async def connected():
    connection = Connection()
    assert await connection.socket.connect(WAIT_S) == (True, None)
    try:
        yield connection
    finally:
        await connection.leave()


@pytest.fixture
async def connection(engine, script, transactional_db):
    async with connected() as connection:
        yield connection
        script.gate.set()


def text_of(event: dict) -> str:
    assert event["type"] == "response.completed", event
    return event["response"]["output"][0]["content"][0]["text"]


def id_of(event: dict) -> str:
    return event["response"]["id"]


def check_error(event: dict, code: str | None, param: str | None, status: int = 400) -> None:
    assert event["type"] == "error", event
    error = event["error"]
    assert (event["status"], error["code"], error["param"]) == (status, code, param)
    assert error["message"]
    assert error["type"] == ("rate_limit_error" if status == 429 else "invalid_request_error")


def check_lost(event: dict) -> None:
    """The previous response is not known any more."""
    check_error(event, "previous_response_not_found", "previous_response_id")


async def until(condition) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


def is_idle(engine) -> bool:
    return not (engine.stats.num_running or engine.stats.num_waiting)


class TestLanes:
    @pytest.mark.parametrize("lane", [{}, {"stream_id": "a"}], ids=["default", "named"])
    async def test_in_one_lane_responses_follow_each_other(self, connection, lane):
        texts = ["one", "two", "three"]
        for text in texts:
            await connection.create(text, **lane)
        answers = [await connection.until(*ENDS, lane=lane.get("stream_id")) for _ in texts]

        assert [text_of(events[-1]) for events in answers] == texts
        for events in answers:
            assert events[0]["type"] == "response.created"
            assert [event["sequence_number"] for event in events] == list(range(len(events)))

    async def test_lanes_run_side_by_side(self, connection):
        endless = await connection.begun("on", stream_id="a", **ENDLESS)

        assert text_of(await connection.ask("one", stream_id="b")) == "one"
        assert text_of(await connection.ask("two")) == "two"
        await connection.send(type="response.cancel", stream_id="a")
        assert id_of(await connection.last("a")) == endless

    async def test_events_of_lanes_are_mixed(self, connection):
        for lane in ("a", "b"):
            await connection.create("x" * 500, stream_id=lane)
        for lane in ("a", "b"):
            await connection.last(lane)

        order = [event["stream_id"] for event in connection.events]
        assert sum(1 for _ in itertools.groupby(order)) > 5

    async def test_every_event_of_a_named_lane_says_which(self, connection):
        lane = "A-b_c.9" + "x" * 249
        await connection.create("one")
        await connection.create("two", stream_id=lane)
        default = await connection.until(*ENDS)
        named = await connection.until(*ENDS, lane=lane)

        assert len(default) > 6
        assert not any("stream_id" in event for event in default)
        assert {event["stream_id"] for event in named} == {lane}

    async def test_nothing_follows_the_last_event(self, connection):
        await connection.ask("one")
        assert await connection.is_quiet()

    async def test_16_responses_are_generated_at_once(self, connection, engine):
        lanes = [None, *(f"lane_{i}" for i in range(19))]
        for lane in lanes:
            await connection.create("on", stream_id=lane, **ENDLESS)
        await until(lambda: engine.stats.num_running == 16)

        assert await connection.lanes_of("response.created") == lanes[:16]
        for number, lane in enumerate(lanes[:4]):
            await connection.send(type="response.cancel", stream_id=lane)
            assert (await connection.last(lane))["type"] == "response.incomplete"
            await connection.until("response.created", lane=lanes[16 + number])
        assert await connection.lanes_of("response.created") == lanes
        await until(lambda: engine.stats.num_running == 16)

    async def test_a_33rd_lane_is_one_too_many(self, connection):
        warm_up = {"generate": False, "store": False}
        assert text_of(await connection.ask("one")) == "one"
        lanes = [f"lane_{i}" for i in range(33)]
        for lane in lanes[:32]:
            await connection.create("one", stream_id=lane, **warm_up)
        for lane in lanes[:32]:
            assert (await connection.last(lane))["type"] == "response.completed"

        refused = await connection.ask("one", stream_id=lanes[32])
        check_error(refused, "websocket_stream_limit_reached", "stream_id")
        assert refused["stream_id"] == lanes[32]
        assert text_of(await connection.ask("two")) == "two"
        assert text_of(await connection.ask("three", stream_id=lanes[0])) == "three"


class TestMemory:
    @pytest.mark.parametrize("lane", [{}, {"stream_id": "a"}], ids=["default", "named"])
    async def test_a_chain_needs_no_database(self, connection, lane):
        first = await connection.ask("one", store=False, **lane)
        second = await connection.ask("two", store=False, previous_response_id=id_of(first), **lane)
        third = await connection.ask(
            "three", store=False, previous_response_id=id_of(second), **lane
        )

        assert text_of(second) == "one / one / two"
        assert text_of(third) == "one / one / two / one / one / two / three"
        assert second["response"]["previous_response_id"] == id_of(first)
        assert not await StoredResponse.objects.aexists()

    async def test_without_a_previous_response_a_lane_begins_anew(self, connection):
        first = await connection.ask("one", store=False)
        assert text_of(await connection.ask("two", store=False)) == "two"
        check_lost(await connection.ask("three", store=False, previous_response_id=id_of(first)))

    async def test_what_is_running_is_continued_by_what_waits(self, connection, script):
        script.gate.clear()
        first = await connection.begun("wait", store=False)
        await connection.create("two", store=False, previous_response_id=first)
        script.gate.set()

        assert text_of(await connection.last()) == "wait"
        assert text_of(await connection.last()) == "wait / wait / two"

    async def test_a_fork_leaves_the_lane_it_came_from_alone(self, connection):
        parent = id_of(await connection.ask("one", store=False, stream_id="a"))
        options = {"store": False, "previous_response_id": parent}
        fork = await connection.ask("fork", stream_id="b", **options)
        second = await connection.ask("two", stream_id="a", **options)

        assert text_of(fork) == "one / one / fork"
        assert text_of(second) == "one / one / two"
        options["previous_response_id"] = id_of(fork)
        third = await connection.ask("three", stream_id="b", **options)
        assert text_of(third) == "one / one / fork / one / one / fork / three"

    async def test_a_fork_that_has_begun_keeps_its_beginning(self, connection, script):
        parent = id_of(await connection.ask("one", store=False))
        options = {"store": False, "previous_response_id": parent}
        script.gate.clear()
        await connection.begun("wait", stream_id="b", **options)
        await connection.begun("two", **options)
        script.gate.set()

        assert text_of(await connection.last()) == "one / one / two"
        assert text_of(await connection.last("b")) == "one / one / wait"

    @pytest.mark.parametrize("store", [False, True])
    async def test_a_fork_goes_on_from_what_is_there_when_it_starts(self, connection, store):
        parent = id_of(await connection.ask("one", store=store))
        await connection.begun("on", stream_id="b", **ENDLESS)
        options = {"store": store, "previous_response_id": parent}
        await connection.create("fork", stream_id="b", **options)
        assert text_of(await connection.ask("two", **options)) == "one / one / two"
        await connection.send(type="response.cancel", stream_id="b")
        await connection.last("b")

        fork = await connection.last("b")
        if store:
            assert text_of(fork) == "one / one / fork"
        else:
            check_lost(fork)
            assert fork["stream_id"] == "b"

    async def test_another_connection_remembers_nothing_of_it(self, connection):
        first = await connection.ask("one", store=False)
        async with connected() as other:
            check_lost(await other.ask("two", previous_response_id=id_of(first)))

    async def test_what_was_stored_is_continued_over_http_and_back(self, connection, client):
        first = await connection.ask("one")
        second = await client.responses.create(
            model="m", input="two", previous_response_id=id_of(first)
        )
        third = await connection.ask("three", previous_response_id=second.id)

        assert second.output_text == "one / one / two"
        assert text_of(third) == "one / one / two / one / one / two / three"

    async def test_an_answer_that_was_cut_is_continued(self, connection):
        first = await connection.ask("one", store=False, max_output_tokens=2)
        assert first["type"] == "response.incomplete"
        second = await connection.ask("two", store=False, previous_response_id=id_of(first))
        assert text_of(second) == "one / on / two"


FAILING = {
    "parameter": {"temperature": 9},
    "model": {"model": "unknown"},
    "background": {"background": True},
    "engine": {"input": "fail"},
}


@pytest.mark.parametrize("failing", FAILING.values(), ids=FAILING)
class TestFailure:
    async def _fail(self, connection, failing: dict, **fields) -> None:
        await connection.send(**CREATE | {"input": "x", "store": False} | fields | failing)
        last = await connection.last(fields.get("stream_id"))
        assert last["type"] == ("response.failed" if "input" in failing else "error")

    async def test_what_it_continued_is_forgotten(self, connection, failing):
        previous = {"previous_response_id": id_of(await connection.ask("one", store=False))}
        await self._fail(connection, failing, **previous)

        check_lost(await connection.ask("two", store=False, **previous))
        assert text_of(await connection.ask("three")) == "three"

    async def test_what_another_lane_said_is_kept(self, connection, failing):
        previous = {"previous_response_id": id_of(await connection.ask("one", store=False))}
        await self._fail(connection, failing, stream_id="b", **previous)

        fork = await connection.ask("fork", store=False, stream_id="b", **previous)
        assert text_of(fork) == "one / one / fork"
        second = await connection.ask("two", store=False, **previous)
        assert text_of(second) == "one / one / two"

    async def test_what_it_did_not_continue_is_kept(self, connection, failing):
        previous = {"previous_response_id": id_of(await connection.ask("one", store=False))}
        await self._fail(connection, failing)

        second = await connection.ask("two", store=False, **previous)
        assert text_of(second) == "one / one / two"

    async def test_what_is_stored_is_found_again(self, connection, failing):
        previous = {"previous_response_id": id_of(await connection.ask("one"))}
        await self._fail(connection, failing, **previous)

        assert text_of(await connection.ask("two", **previous)) == "one / one / two"


class TestCreate:
    @pytest.mark.parametrize("store", [False, True])
    async def test_a_warm_up_says_nothing_and_is_continued(self, connection, store):
        await connection.create("one", generate=False, store=store)
        events = await connection.until(*ENDS)

        types = [event["type"] for event in events]
        assert types == ["response.created", "response.in_progress", "response.completed"]
        response = events[-1]["response"]
        assert (response["status"], response["output"]) == ("completed", [])
        assert response["usage"]["input_tokens"] > response["usage"]["output_tokens"] == 0
        after = await connection.ask("two", store=store, previous_response_id=response["id"])
        assert text_of(after) == "one / two"

    @pytest.mark.parametrize("generate", [True, None])
    async def test_if_not_told_otherwise_it_generates(self, connection, generate):
        assert text_of(await connection.ask("one", generate=generate)) == "one"

    async def test_there_is_no_background(self, connection):
        refused = await connection.ask("one", background=True, stream_id="a")
        check_error(refused, "unsupported_parameter", "background")
        assert refused["stream_id"] == "a"
        assert text_of(await connection.ask("one", background=False)) == "one"

    @pytest.mark.parametrize("stream", [False, True, "no"])
    async def test_what_only_http_knows_is_ignored(self, connection, stream):
        await connection.create("one", stream=stream, stream_options="none")
        events = await connection.until(*ENDS)
        assert "response.output_text.delta" in [event["type"] for event in events]
        assert text_of(events[-1]) == "one"

    async def test_the_history_tells_of_it(self, connection):
        done = await connection.ask("one")
        refused = await connection.ask("one", temperature=9)
        failed = await connection.ask("fail")
        await connection.leave()

        rows = [row async for row in RequestLog.objects.order_by("created_at")]
        assert [(row.outcome, row.status, row.error_code) for row in rows] == [
            ("succeeded", 200, ""),
            ("failed", 400, refused["error"]["code"]),
            ("failed", 200, failed["response"]["error"]["code"]),
        ]
        assert {(row.endpoint, row.client, row.user_agent) for row in rows} == {
            ("WS /v1/responses", "127.0.0.1", "a program")
        }
        assert (rows[0].response_id, rows[0].model) == (id_of(done), "m")
        assert rows[0].num_completion_tokens == done["response"]["usage"]["output_tokens"]

    @pytest.mark.skipif(database.vendor != "sqlite", reason="a trigger in SQLite's language")
    async def test_a_lane_outlives_a_history_that_cannot_be_written(self, connection):
        await write(execute, FULL_DISK)
        try:
            assert text_of(await connection.ask("one")) == "one"
            assert text_of(await connection.ask("two")) == "two"
        finally:
            await write(execute, "DROP TRIGGER full_disk")


FULL_DISK = """
    CREATE TRIGGER full_disk BEFORE UPDATE ON openai_api_requestlog
    BEGIN SELECT RAISE(FAIL, 'disk full'); END
"""


def execute(sql: str) -> None:
    with database.cursor() as cursor:
        cursor.execute(sql)


class TestCancel:
    async def test_what_the_lane_is_at_ends(self, connection, engine):
        for lane in (None, "a"):
            await connection.begun("on", stream_id=lane, ignore_eos=True)
        await connection.until("response.output_text.delta", lane="a")
        await connection.send(type="response.cancel", stream_id="a")
        last = await connection.last("a")

        assert last["type"] == "response.incomplete"
        assert last["response"]["status"] == "cancelled"
        assert last["response"]["incomplete_details"] == {"reason": "cancelled"}
        assert last["response"]["output"][0]["status"] == "incomplete"
        row = await StoredResponse.objects.aget(pk=id_of(last))
        assert (row.status, row.output) == ("cancelled", last["response"]["output"])
        await until(lambda: engine.stats.num_running == 1)
        await connection.send(type="response.cancel")
        assert (await connection.last())["response"]["status"] == "cancelled"

    @pytest.mark.parametrize("lane", [None, "a", "b", "new"])
    async def test_a_response_is_cancelled_from_any_lane(self, connection, lane):
        await connection.begun("on", **ENDLESS)
        response_id = await connection.begun("on", stream_id="a", **ENDLESS)
        await connection.begun("on", stream_id="b", **ENDLESS)
        await connection.send(type="response.cancel", response_id=response_id, stream_id=lane)

        assert id_of(await connection.last("a")) == response_id
        assert await connection.lanes_of(*ENDS) == ["a"]

    async def test_the_lane_goes_on_with_what_waits(self, connection):
        await connection.begun("on", **ENDLESS)
        await connection.create("one")
        await connection.send(type="response.cancel")

        assert (await connection.last())["response"]["status"] == "cancelled"
        assert text_of(await connection.last()) == "one"

    async def test_what_it_continued_is_kept(self, connection):
        previous = {"previous_response_id": id_of(await connection.ask("one", store=False))}
        cancelled = await connection.begun("on", **ENDLESS, **previous)
        await connection.send(type="response.cancel")
        await connection.last()

        second = await connection.ask("two", store=False, **previous)
        assert text_of(second) == "one / one / two"
        check_lost(await connection.ask("x", store=False, previous_response_id=cancelled))

    @pytest.mark.parametrize(
        ("fields", "code", "param"),
        [
            ({}, None, "stream_id"),
            ({"stream_id": "b"}, None, "stream_id"),
            ({"stream_id": "unknown"}, None, "stream_id"),
            ({"stream_id": ""}, "invalid_stream_id", "stream_id"),
            ({"stream_id": 1}, "invalid_stream_id", "stream_id"),
            ({"response_id": "unknown"}, None, "response_id"),
            ({"response_id": "unknown", "stream_id": "a"}, None, "response_id"),
            ({"response_id": ""}, None, "response_id"),
            ({"response_id": 1}, "invalid_type", "response_id"),
        ],
    )
    async def test_where_nothing_runs_nothing_is_cancelled(self, connection, fields, code, param):
        await connection.ask("one")
        await connection.ask("one", stream_id="b")
        await connection.begun("on", stream_id="a", **ENDLESS)
        await connection.send(type="response.cancel", **fields)

        lane = fields.get("stream_id") if code is None else None
        refused = await connection.last(lane)
        check_error(refused, code, param)
        assert refused.get("stream_id") == lane
        await connection.send(type="response.cancel", stream_id="a")
        assert (await connection.last("a"))["response"]["status"] == "cancelled"

    async def test_a_wrong_lane_is_not_taken_for_the_default_one(self, connection):
        await connection.begun("on", **ENDLESS)
        await connection.send(type="response.cancel", stream_id="a b")
        check_error(await connection.last(), "invalid_stream_id", "stream_id")
        await connection.send(type="response.cancel")
        assert (await connection.last())["response"]["status"] == "cancelled"

    async def test_another_connection_cancels_nothing_of_it(self, connection):
        response_id = await connection.begun("on", **ENDLESS)
        async with connected() as other:
            await other.send(type="response.cancel", response_id=response_id)
            check_error(await other.last(), None, "response_id")
        assert await connection.lanes_of(*ENDS) == []

    async def test_what_is_deleted_over_http_ends(self, connection, client):
        response_id = await connection.begun("on", ignore_eos=True)
        await client.responses.delete(response_id)

        last = (await connection.last())["response"]
        assert (last["id"], last["status"]) == (response_id, "cancelled")
        assert not await StoredResponse.objects.aexists()

    async def test_what_has_ended_is_not_cancelled(self, connection):
        done = await connection.ask("one")
        await connection.send(type="response.cancel", response_id=id_of(done))
        check_error(await connection.last(), None, "response_id")


def message(**fields) -> str:
    return json.dumps(CREATE | {"input": "x"} | fields, ensure_ascii=False)


NO_JSON = ("invalid_json", None)
NO_LANE = ("invalid_stream_id", "stream_id")
BAD = {
    "no JSON": ("nope", *NO_JSON),
    "half": ('{"type": "response.create"', *NO_JSON),
    "two": ("{}{}", *NO_JSON),
    "NaN": ('{"type": "response.create", "temperature": NaN}', *NO_JSON),
    "too large": ('{"type": "response.create", "temperature": 1e999}', *NO_JSON),
    "too deep": ("[" * 100_000, *NO_JSON),
    "binary": (message().encode(), *NO_JSON),
    "surrogate": (r'{"type": "response.create", "model": "m", "input": "\ud800"}', *NO_JSON),
    "surrogate as type": (r'{"type": "\udfff"}', *NO_JSON),
    "list": ("[1]", "invalid_type", "message"),
    "text": ('"response.create"', "invalid_type", "message"),
    "null": ("null", "invalid_type", "message"),
    "no type": ('{"model": "m"}', "missing_required_parameter", "type"),
    "type null": (message(type=None), "missing_required_parameter", "type"),
    "type a number": (message(type=1), "invalid_type", "type"),
    "type a list": (message(type=["response.create"]), "invalid_type", "type"),
    "unknown type": (message(type="response.creates"), "invalid_value", "type"),
    "empty type": (message(type=""), "invalid_value", "type"),
    "empty lane": (message(stream_id=""), *NO_LANE),
    "long lane": (message(stream_id="x" * 257), *NO_LANE),
    "lane with a space": (message(stream_id="a b"), *NO_LANE),
    "lane with a line": (message(stream_id="a\n"), *NO_LANE),
    "lane with ö": (message(stream_id="ö"), *NO_LANE),
    "lane with another 1": (message(stream_id="١"), *NO_LANE),
    "lane a number": (message(stream_id=1), *NO_LANE),
    "lane a boolean": (message(stream_id=False), *NO_LANE),
    "lane a list": (message(stream_id=["a"]), *NO_LANE),
    "no model": ('{"type": "response.create"}', "missing_required_parameter", "model"),
    "no input": (
        '{"type": "response.create", "model": "m"}',
        *("missing_required_parameter", "input"),
    ),
    "wrong value": (message(temperature=9), "decimal_above_max_value", "temperature"),
    "wrong type": (message(store="yes"), "invalid_type", "store"),
    "generate": (message(generate="no"), "invalid_type", "generate"),
    "unknown previous": (
        message(previous_response_id="x"),
        "previous_response_not_found",
        "previous_response_id",
    ),
}


class TestErrors:
    @pytest.mark.parametrize(("sent", "code", "param"), BAD.values(), ids=BAD)
    async def test_they_leave_the_connection_open(self, connection, sent, code, param):
        kind = "bytes_data" if isinstance(sent, bytes) else "text_data"
        await connection.socket.send_to(**{kind: sent})

        refused = await connection.last()
        check_error(refused, code, param)
        assert refused.keys() == {"type", "status", "error"}
        assert text_of(await connection.ask("one")) == "one"

    async def test_an_unknown_model_is_a_404(self, connection):
        await connection.send(**CREATE | {"model": "unknown"}, input="x")
        check_error(await connection.last(), "model_not_found", "model", 404)

    @pytest.mark.parametrize(
        "fields",
        [
            {"type": "unknown"},
            {"type": None},
            {"temperature": 9},
            {"previous_response_id": "x"},
            {"generate": 1},
        ],
        ids=str,
    )
    async def test_those_of_a_named_lane_say_which(self, connection, fields):
        await connection.send(**CREATE | {"input": "x", "stream_id": "a"} | fields)
        refused = await connection.last("a")
        assert (refused["type"], refused["stream_id"]) == ("error", "a")

    async def test_a_full_engine_says_when_to_come_again(self, connection, engine):
        params = SamplingParams(max_tokens=100_000, ignore_eos=True)
        prompt = engine.model.tokenizer.encode("<|im_start|>user\non<|im_end|>")
        generations = [
            engine.generate(Request(request_id=str(i), prompt_token_ids=prompt, params=params))
            for i in range(64)
        ]
        refused = await connection.ask("one")
        for generation in generations:
            generation.abort()

        check_error(refused, "queue_full", None, 429)
        assert int(refused["error"]["headers"]["retry-after"]) >= 1
        assert text_of(await connection.ask("one")) == "one"

    async def test_a_failure_of_the_model_is_an_event(self, connection):
        await connection.create("fail", stream_id="a")
        events = await connection.until(*ENDS, lane="a")

        types = [event["type"] for event in events]
        assert (types[0], types[-1]) == ("response.created", "response.failed")
        last = events[-1]["response"]
        assert (last["status"], last["error"]["code"]) == ("failed", "server_error")
        assert "secret" not in json.dumps(events)
        row = await StoredResponse.objects.aget(pk=last["id"])
        assert (row.status, row.error) == ("failed", last["error"])
        assert text_of(await connection.ask("one", stream_id="a")) == "one"

    async def test_steering_is_refused(self, connection):
        steer = {"previous_response_id": "resp_1", "input": "left"}
        await connection.send(type="response.steer", stream_id="a", **steer)
        refused = await connection.next("a")

        assert (refused["type"], refused["sequence_number"]) == ("response.steer.failed", 0)
        assert refused["error"]["code"] == "steering_not_supported"
        assert refused["steer"] == steer

    async def test_no_other_path_is_answered(self, engine):
        socket = WebsocketCommunicator(websocket_application(), "/v1/chat/completions")
        assert await socket.connect(WAIT_S) == (False, 1000)


OVER = ("websocket_connection_limit_reached", None)


class TestAge:
    @pytest.fixture
    async def clock(self, monkeypatch) -> Callable[[float], None]:
        """Puts forward the time of everything that runs."""
        loop, real = asyncio.get_running_loop(), asyncio.get_running_loop().time
        return lambda by_s: monkeypatch.setattr(loop, "time", lambda: real() + by_s)

    async def _check_closed(self, connection) -> None:
        assert await connection.frame() == {"type": "websocket.close", "code": 1001}

    async def test_after_an_hour_it_is_closed(self, clock, connection):
        assert text_of(await connection.ask("one")) == "one"
        clock(3590)
        assert text_of(await connection.ask("two")) == "two"
        assert await connection.is_quiet()
        clock(3601)
        check_error(await connection.next(), *OVER)
        await self._check_closed(connection)

    async def test_what_runs_may_end_and_the_rest_is_refused(self, clock, connection, script):
        script.gate.clear()
        await connection.begun("wait", stream_id="a")
        await connection.create("waits", stream_id="a")
        assert await connection.is_quiet()
        clock(3601)
        check_error(await connection.next(), *OVER)
        check_error(await connection.ask("new"), *OVER)
        check_error(await connection.ask("new", stream_id="a"), *OVER)
        assert await connection.is_quiet()
        script.gate.set()

        assert text_of(await connection.last("a")) == "wait"
        check_error(await connection.last("a"), *OVER)
        await self._check_closed(connection)

    async def test_what_is_being_prepared_may_end_too(self, clock, connection, engine, script):
        first = await connection.ask("wait", store=False)
        script.gate.clear()
        await connection.create("two", previous_response_id=id_of(first), **COMPACTED)
        await until(lambda: not is_idle(engine))
        clock(3601)
        check_error(await connection.next(), *OVER)
        assert await connection.is_quiet()
        script.gate.set()

        assert (await connection.last())["type"] == "response.completed"
        await self._check_closed(connection)


class TestShutdown:
    @pytest.fixture(autouse=True)
    async def check_closed(self, connection):
        yield
        assert await connection.frame() == {"type": "websocket.close", "code": 1012}

    async def test_an_idle_connection_is_closed_at_once(self, connection):
        assert text_of(await connection.ask("one")) == "one"
        consumers.drain()

    async def test_what_runs_may_end_and_the_rest_is_refused(self, connection, script):
        script.gate.clear()
        await connection.begun("wait")
        consumers.drain()
        assert await connection.is_quiet()
        refusal = await connection.ask("new", stream_id="b")
        assert (refusal["status"], refusal["error"]["code"]) == (503, "server_is_overloaded")
        script.gate.set()
        assert text_of(await connection.last()) == "wait"

    async def test_what_does_not_end_is_told(self, connection, engine):
        await connection.begun("long", **ENDLESS)
        consumers.drain()
        engine.dismiss()
        response = (await connection.last())["response"]
        assert response["incomplete_details"] == {"reason": "server_shutdown"}


class TestBounds:
    @pytest.fixture
    def max_size(self, settings) -> int:
        settings.API = replace(settings.API, max_body_size=2000)
        return 2000

    async def test_64_responses_may_wait(self, connection):
        await connection.begun("on", **ENDLESS)
        for _ in range(64):
            await connection.create("waits", **ENDLESS)
        assert await connection.lanes_of("error") == []

        refused = await connection.ask("one", stream_id="a")
        check_error(refused, "rate_limit_exceeded", "stream_id", 429)
        await connection.send(type="response.cancel")
        await connection.last()
        await connection.until("response.created")
        assert text_of(await connection.ask("one", stream_id="a")) == "one"

    async def test_what_waits_has_a_size(self, connection, max_size):
        await connection.begun("on", **ENDLESS)
        for text in ("x" * 900, "y" * 900):
            await connection.create(text, max_output_tokens=1)
        refused = await connection.ask("z" * 900, stream_id="a")

        check_error(refused, "rate_limit_exceeded", "stream_id", 429)
        await connection.send(type="response.cancel")
        assert (await connection.last())["response"]["status"] == "cancelled"
        said = [(await connection.last())["response"]["output"] for _ in range(2)]
        assert [output[0]["content"][0]["text"] for output in said] == ["x", "y"]

    @pytest.mark.parametrize("char", ["x", "ö"])
    async def test_a_message_has_a_size(self, connection, max_size, char):
        room = max_size - len(message(input="", max_output_tokens=1))
        longest = message(input=char * (room // len(char.encode())), max_output_tokens=1)
        await connection.socket.send_to(text_data=longest)
        assert (await connection.last())["type"] == "response.incomplete"

        await connection.socket.send_to(text_data=longest + "  ")
        assert await connection.frame() == {"type": "websocket.close", "code": 1009}
        assert await connection.is_quiet()

    async def test_a_binary_message_has_a_size(self, connection, max_size):
        await connection.socket.send_to(bytes_data=bytes(max_size + 1))
        assert await connection.frame() == {"type": "websocket.close", "code": 1009}


class TestLeaving:
    async def _check(self, connection, engine, num_begun: int) -> None:
        """Leave, and find everything ended."""
        started = time.monotonic()
        await connection.leave()
        await until(lambda: is_idle(engine))
        assert time.monotonic() - started < LEAVE_S
        rows = [row async for row in StoredResponse.objects.all()]
        assert [row.status for row in rows] == ["cancelled"] * num_begun
        requests = [row async for row in RequestLog.objects.all()]
        assert [row.outcome for row in requests] == ["cancelled"] * num_begun
        assert {row.response_id for row in requests} == {row.pk for row in rows}

    @pytest.mark.parametrize("num_waiting", [0, 3])
    @pytest.mark.parametrize("lanes", [[None], ["a", "b", None]], ids=["one lane", "lanes"])
    async def test_what_runs_and_what_waits_ends(self, connection, engine, lanes, num_waiting):
        for lane in lanes:
            await connection.begun("on", stream_id=lane, ignore_eos=True)
        for lane in lanes * num_waiting:
            await connection.create("waits", stream_id=lane)

        await until(lambda: engine.stats.num_running == len(lanes))
        await self._check(connection, engine, len(lanes))

    async def test_lanes_that_had_to_wait_end(self, connection, engine):
        for number in range(20):
            await connection.create("on", stream_id=f"lane_{number}", ignore_eos=True)
        await until(lambda: engine.stats.num_running == 16)
        await self._check(connection, engine, 16)

    async def test_what_is_not_stored_ends(self, connection, engine):
        await connection.begun("on", **ENDLESS)
        await connection.leave()
        await until(lambda: is_idle(engine))
        assert (await RequestLog.objects.aget()).outcome == "cancelled"

    async def test_what_is_being_prepared_ends(self, connection, engine, script):
        first = await connection.ask("wait", store=False)
        script.gate.clear()
        await connection.create("two", previous_response_id=id_of(first), **COMPACTED)
        await until(lambda: not is_idle(engine))
        await connection.leave()
        script.gate.set()

        await until(lambda: is_idle(engine))
        outcomes = [row.outcome async for row in RequestLog.objects.order_by("created_at")]
        assert outcomes == ["succeeded", "cancelled"]

    async def test_it_ends_after_whatever_event(self, engine, transactional_db):
        for num_read in range(10):
            async with connected() as connection:
                await connection.create("x" * 1000, ignore_eos=True)
                for _ in range(num_read):
                    await connection.next()
            await until(lambda: is_idle(engine))

        assert not await StoredResponse.objects.exclude(status="cancelled").aexists()
        assert not await RequestLog.objects.exclude(outcome="cancelled").aexists()
        assert await StoredResponse.objects.acount() >= 9


TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CALL = '<tool_call>\n{"name": "f", "arguments": {"city": "Köln"}}\n</tool_call>'
CLASSES = {
    get_args(cls.model_fields["type"].annotation)[0]: cls
    for cls in get_args(get_args(ResponsesServerEvent)[0])
}


class TestEvents:
    REQUESTS = {
        "text": {"input": "Hello, wörld 🎉!"},
        "scores": {"input": "Hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2},
        "thoughts": {"input": "<think>Let me</think>Hi"},
        "call": {"input": f"Hi{CALL}", "tools": [TOOL]},
        "cut": {"input": "Hello", "max_output_tokens": 2},
        "failure": {"input": "fail"},
        "echo": {"input": "Hi", "metadata": {"a": "b"}, "instructions": "Be", "store": False},
    }

    @pytest.mark.parametrize("body", REQUESTS.values(), ids=REQUESTS)
    async def test_they_are_those_of_http(self, connection, client, body):
        await connection.send(**CREATE, **body)
        events = await connection.until(*ENDS)
        await connection.send(**CREATE, **body, stream_id="a")
        named = await connection.until(*ENDS, lane="a")

        assert plain(events) == plain(await events_over_http(client, body))
        assert plain(named) == [event | {"stream_id": "a"} for event in plain(events)]

    @pytest.mark.parametrize("body", REQUESTS.values(), ids=REQUESTS)
    async def test_the_official_client_knows_them(self, connection, body):
        await connection.send(**CREATE, **body, stream_id="a")
        for event in await connection.until(*ENDS, lane="a"):
            parsed = CLASSES[event["type"]].model_validate(event, strict=True)
            assert parsed.stream_id == "a"

    async def test_the_official_client_knows_the_errors(self, connection):
        refused = await connection.ask("one", temperature=9, stream_id="a")
        parsed = CLASSES["error"].model_validate(refused, strict=True)
        assert (parsed.stream_id, parsed.error.param) == ("a", "temperature")


async def events_over_http(client, body: dict) -> list[dict]:
    content = json.dumps({"model": "m", "stream": True, **body})
    answer = await client._client.post("http://localhost/v1/responses", content=content)
    assert answer.status_code == 200
    lines = [line for line in answer.text.split("\n") if line.startswith("data: ")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def plain(events: list[dict]) -> list[dict]:
    """The events with ids numbered, times that are only there or not, and deltas in one piece."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    numbers: dict[str, str] = {}

    def number(match: re.Match) -> str:
        return numbers.setdefault(match[0], f"{match[1]}_{len(numbers)}")

    text = re.sub(r"\b([a-z]+)_[0-9a-f]{32}\b", number, json.dumps(events))
    events = json.loads(re.sub(r'("\w+_at": )\d+', r"\1 0", text))
    return [joined(group) for _, group in itertools.groupby(events, lambda event: event["type"])]


def joined(events) -> dict:
    """Deltas as they would have come to a slow reader; of anything else there is one."""
    first, *rest = events
    del first["sequence_number"]
    for event in rest:
        first["delta"] += event["delta"]
        if "logprobs" in event:
            first["logprobs"] += event["logprobs"]
    return first
