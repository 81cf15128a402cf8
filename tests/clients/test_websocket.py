"""WebSocket mode, driven by the official client against the embedded model."""

import json
import time

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

# The official client opens its connection in a way that websockets 17 advises against.
pytestmark = pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")

ENDS = ("response.completed", "response.incomplete", "response.failed", "error")


@pytest.fixture
def connection(server):
    with server.client.responses.connect() as connection:
        yield connection


def ask(connection, **fields) -> list:
    """Create a response and read until it ends."""
    connection.response.create(model="nanollmserve-demo", **fields)
    events = []
    for event in connection:
        events.append(event)
        if event.type in ENDS:
            return events
    raise AssertionError("the connection was closed")


def test_a_chain_needs_no_database(connection, server):
    first = ask(connection, input="My name is Anna.", store=False)
    response = first[-1].response
    assert [event.sequence_number for event in first] == list(range(len(first)))
    second = ask(
        connection, input="What is my name?", previous_response_id=response.id, store=False
    )
    assert "Anna" in second[-1].response.output_text

    lost = ask(connection, input="And?", previous_response_id=response.id, store=False)
    assert (lost[-1].status, lost[-1].error.code) == (400, "previous_response_not_found")


def test_a_stored_chain_goes_on_over_http(connection, server):
    response = ask(connection, input="My name is Anna.")[-1].response
    again = server.client.responses.retrieve(response.id)
    assert again.output_text == response.output_text


def test_a_warm_up_fills_the_prefix_cache(connection):
    text = "What is continuous batching? " * 8
    events = ask(connection, input=text, generate=False)
    assert [event.type for event in events][-1] == "response.completed"
    assert events[-1].response.output == []
    after = ask(connection, input=text, max_output_tokens=1)[-1].response
    assert after.usage.input_tokens_details.cached_tokens >= 32


def test_lanes_run_side_by_side_and_say_which_they_are(connection):
    for lane in ("a", "b"):
        request = {"type": "response.create", "model": "nanollmserve-demo", "input": "Hi"}
        request |= {"stream_id": lane, "max_output_tokens": 40, "ignore_eos": True}
        connection.send(request)
    order, ended = [], 0
    for event in connection:
        order.append(event.stream_id)
        ended += event.type in ENDS
        if ended == 2:
            break
    assert set(order) == {"a", "b"}
    first_end = max(order.index("a"), order.index("b"))
    assert first_end < len(order) - 10  # the second began before the first was done


def answers_of(connection, lanes: str) -> dict:
    """The response of each lane, from their mixed events."""
    events = {lane: [] for lane in lanes}
    responses = {}
    for event in connection:
        events[event.stream_id].append(event)
        if event.type in ENDS:
            responses[event.stream_id] = event.response
        if len(responses) == len(lanes):
            break
    for lane, response in responses.items():
        assert [event.sequence_number for event in events[lane]] == list(range(len(events[lane])))
        deltas = [e.delta for e in events[lane] if e.type == "response.output_text.delta"]
        assert "".join(deltas) == response.output_text
    return responses


def test_each_lane_has_a_conversation_of_its_own(connection):
    names, model = {"a": "Anna", "b": "Ben"}, {"model": "nanollmserve-demo", "store": False}
    for lane, name in names.items():
        connection.response.create(stream_id=lane, input=f"My name is {name}.", **model)
    first = answers_of(connection, "ab")
    for lane in names:
        connection.response.create(
            stream_id=lane,
            input="What is my name?",
            previous_response_id=first[lane].id,
            **model,
        )
    second = answers_of(connection, "ab")

    assert all(names[lane] in second[lane].output_text for lane in names)


async def test_the_asynchronous_client_cancels(server):
    request = {"type": "response.create", "model": "nanollmserve-demo", "input": "Hi"}
    async with server.async_client() as client, client.responses.connect() as connection:
        await connection.send(request | {"ignore_eos": True})
        async for event in connection:
            if event.type == "response.output_item.added":
                await connection.send({"type": "response.cancel"})
            if event.type in ENDS:
                break

    assert event.type == "response.incomplete"
    assert event.response.status == "cancelled"


BAD = {
    '{"type": "x"}': ("type", "invalid_value"),
    "nope": (None, "invalid_json"),
    "[1]": ("message", "invalid_type"),
    '{"type": "response.create", "stream_id": ""}': ("stream_id", "invalid_stream_id"),
    '{"type": "response.create", "stream_id": "a b"}': ("stream_id", "invalid_stream_id"),
    '{"type": "response.create", "model": "m", "input": "x"}': ("model", "model_not_found"),
    '{"type": "response.create", "model": "m", "input": "x", "background": true}': (
        "background",
        "unsupported_parameter",
    ),
}


@pytest.mark.parametrize("text", BAD)
def test_errors_leave_the_connection_open(server, text):
    with connect(server.url.replace("http", "ws") + "/v1/responses") as socket:
        socket.send(text)
        answer = json.loads(socket.recv(timeout=10))
        assert answer["type"] == "error"
        assert (answer["error"]["param"], answer["error"]["code"]) == BAD[text]
        socket.send('{"type": "response.steer", "previous_response_id": "r", "input": "x"}')
        refused = json.loads(socket.recv(timeout=10))
        assert refused["type"] == "response.steer.failed"
        assert refused["error"]["code"] == "steering_not_supported"


def test_a_33rd_lane_is_one_too_many(server):
    with connect(server.url.replace("http", "ws") + "/v1/responses") as socket:
        for number in range(33):
            socket.send(json.dumps({"type": "response.create", "stream_id": f"l{number}"}))
        codes = [json.loads(socket.recv(timeout=30))["error"]["code"] for _ in range(33)]
    assert codes.count("websocket_stream_limit_reached") == 1


def test_a_frame_has_a_size(server):
    """That of daphne, which is 1 MiB if nobody tells it otherwise; `serve` tells it ours."""
    address = server.url.replace("http", "ws") + "/v1/responses"
    with connect(address) as socket:
        socket.send(" " * 2**20)
        assert json.loads(socket.recv(timeout=10))["error"]["code"] == "invalid_json"
        with pytest.raises(ConnectionClosed):
            socket.send(" " * (2**20 + 1))
            socket.recv(timeout=10)
    with connect(address) as socket:
        socket.send("{}")
        assert json.loads(socket.recv(timeout=10))["type"] == "error"


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "file://", "http://[", "http://127.0.0.1"]
)
def test_a_page_of_another_site_is_refused(server, origin):
    address = server.url.replace("http", "ws") + "/v1/responses"
    with pytest.raises(InvalidStatus), connect(address, origin=origin):
        pass


def test_a_page_of_ours_is_let_in(server):
    address = server.url.replace("http", "ws") + "/v1/responses"
    with connect(address, origin=server.url):
        pass


def test_leaving_ends_what_was_generated(server):
    address = server.url.replace("http", "ws") + "/v1/responses"
    with connect(address) as socket:
        request = {
            "type": "response.create",
            "model": "nanollmserve-demo",
            "input": "Hi",
            "ignore_eos": True,
        }
        socket.send(json.dumps(request))
        for _ in range(5):
            socket.recv(timeout=10)
    for _ in range(50):
        if not httpx2.get(f"{server.url}/health").json()["num_running"]:
            return
        time.sleep(0.1)
    raise AssertionError("it is still being generated")
