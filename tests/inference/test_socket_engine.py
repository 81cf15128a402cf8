"""What is special about an engine behind a socket. What is not is in test_client.py."""

import asyncio
import socket
import struct
import threading
from contextlib import ExitStack, contextmanager

import pytest

from inference.engine import frames
from inference.engine.address import AddressRefused, check_folder, listening
from inference.engine.client import QueueLimits
from inference.engine.thread import ThreadEngine
from inference.errors import (
    ConstraintFailed,
    EngineFailed,
    EngineNotReady,
    EngineOverloaded,
    InvalidGrammar,
    InvalidPrompt,
    ModelLoadError,
)
from inference.request import Delta, ModelInfo, Request, SamplingParams, TokenLogprob
from inference.text.grammar import choice_part, compiler_of, json_part
from inference.text.syntax import REASONING
from inference.text.thinking import Thought
from tests.helpers import byte_tokenizer, scripted_engine
from tests.inference.engine_server import VERSION, connected, served
from tests.inference.memory_runner import make_core, make_request, naive
from tests.inference.test_client import make_info, read, wait_until


@pytest.fixture
def address(tmp_path):
    return tmp_path / "engine"


@contextmanager
def engine_at(address, core=None, info=None, version=VERSION):
    """A served engine, with its core and the gate that lets its model run."""
    core, gate = core or make_core(num_blocks=200), threading.Event()
    forward = core._runner.forward
    core._runner.forward = lambda inputs: gate.wait(10) and forward(inputs)
    gate.set()
    engine = ThreadEngine(lambda report: (core, info or make_info()), QueueLimits(6))
    engine.core, engine.gate = core, gate
    try:
        with served(engine, address, version) as engine.server:
            yield engine
    finally:
        gate.set()
        engine.close()


@contextmanager
def ready(address, tokenizer=None):
    with connected(address, tokenizer) as client:
        wait_until(lambda: client.status.state == "ready")
        yield client


@contextmanager
def raw_client(address, greeting=("hello", VERSION, frames.PROTOCOL)):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(address))
        sock.sendall(frames.encode(*greeting))
        yield sock


async def received(sock) -> list:
    """All messages up to the end of the connection."""
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    messages = []
    try:
        while True:
            messages.append(await frames.read(reader))
    except (EOFError, ConnectionError):
        return messages
    finally:
        writer.close()


# One engine, several clients


async def test_two_clients_share_an_engine_and_may_use_the_same_ids(address):
    with engine_at(address) as engine, ready(address) as one, ready(address) as other:
        answers = await asyncio.gather(
            read(one.generate(make_request("same", [1, 2], 20))),
            read(other.generate(make_request("same", [3, 4], 20))),
        )
        wait_until(lambda: one.stats == other.stats == engine.core.stats())

    assert answers == [naive([1, 2], 20), naive([3, 4], 20)]
    assert one.stats.num_generated_tokens == 40


async def test_a_client_that_leaves_has_its_requests_aborted(address):
    with engine_at(address) as engine, ready(address) as staying:
        steps, forward = threading.Semaphore(3), engine.core._runner.forward
        engine.core._runner.forward = lambda inputs: steps.acquire(timeout=10) and forward(inputs)
        with ready(address) as leaving:
            generation = leaving.generate(make_request("leaves", [1, 2], 60))
            await anext(generation)
            stays = staying.generate(make_request("stays", [3], 4))
            wait_until(lambda: len(engine._generations) == 2)
        wait_until(lambda: len(engine._generations) == 1)
        steps.release(100)
        assert await read(stays) == naive([3], 4)
        with pytest.raises(EngineFailed):
            await read(generation)

        wait_until(lambda: not engine.core.has_work)
        assert engine.core.pool.num_free == engine.core.pool.num_blocks - 1
        assert engine.stats.num_generated_tokens < 60


async def test_all_clients_together_are_bounded(address):
    with engine_at(address) as engine, ready(address) as one, ready(address) as other:
        engine.gate.clear()
        generations = [one.generate(make_request(str(i), [1, 2], 2)) for i in range(6)]
        wait_until(lambda: other.backlog.num_unfinished == 6)
        with pytest.raises(EngineOverloaded):
            other.check_capacity()

        other.limits = QueueLimits(100)  # as if it had not heard of the others yet
        with pytest.raises(EngineOverloaded):
            await read(other.generate(make_request("one too many", [1, 2], 2)))
        engine.gate.set()
        await asyncio.gather(*map(read, generations))


# An engine that comes and goes


async def test_an_engine_that_went_away_is_used_again_when_it_is_back(address):
    with connected(address) as client:
        wait_until(lambda: "waiting for the engine process" in client.status.stage)
        with pytest.raises(EngineNotReady, match=f"waiting .* {address}"):
            client.generate(make_request("early", [1, 2]))

        with engine_at(address) as engine:
            wait_until(lambda: client.status.state == "ready")
            engine.gate.clear()
            generation = client.generate(make_request("broken off", [1, 2], 60))
            wait_until(lambda: engine._generations)
            for connection in engine.server.connections:
                connection._writer.transport.abort()  # as if it were killed
            with pytest.raises(EngineFailed):
                await read(generation)
            engine.gate.set()
        wait_until(lambda: client.status.state == "loading")

        with engine_at(address):
            wait_until(lambda: client.status.state == "ready")
            assert await read(client.generate(make_request("again", [1, 2], 5))) == naive([1, 2], 5)
    with pytest.raises(EngineNotReady):
        client.generate(make_request("late", [1, 2]))


async def test_an_orderly_end_reaches_every_stream(address):
    with ExitStack() as stack:
        client = stack.enter_context(connected(address))
        with engine_at(address):
            wait_until(lambda: client.status.state == "ready")
            generation = client.generate(make_request("open", [1, 2], 60))
        with pytest.raises((EngineFailed, EngineNotReady)):
            await read(generation)
        assert not address.exists()


def test_while_the_engine_loads_its_stage_is_told_and_then_its_failure(address):
    go_on = threading.Event()

    def load(report):
        report("reading the weights")
        go_on.wait(10)
        raise ModelLoadError("There is no such model.")

    engine = ThreadEngine(load, QueueLimits(1))
    with connected(address) as client, served(engine, address):
        wait_until(lambda: client.status.stage == "engine process: reading the weights")
        with pytest.raises(EngineNotReady, match="reading the weights"):
            client.check_capacity()
        go_on.set()
        wait_until(lambda: "no such model" in client.status.stage or not address.exists())
        assert client.status.state == "loading"  # another one may take its place


def test_two_versions_do_not_understand_each_other_and_say_so(address, caplog):
    with connected(address) as client:
        with engine_at(address, version="older"):
            wait_until(lambda: f"'older', {frames.PROTOCOL}" in client.status.stage)
            assert f"this is version {VERSION}" in client.status.stage
            with pytest.raises(EngineNotReady, match="restart the older"):
                client.check_capacity()
        with engine_at(address):
            wait_until(lambda: client.status.state == "ready")

    assert caplog.text.count("restart the older of the two") >= 1


# Clients that do wrong


async def test_a_client_of_another_version_is_turned_away(address):
    with engine_at(address), raw_client(address, ("hello", "newer", 7)) as sock:
        messages = await received(sock)

    assert messages[0] == ("hello", VERSION, frames.PROTOCOL)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",
        frames.encode("robots"),
        frames.encode("add", 1),
        frames.encode("add", {"request_id": "1", "constraint": None}),
    ],
    ids=["http", "no msgpack", "unknown", "no request", "half a request"],
)
async def test_what_cannot_be_understood_costs_its_sender_alone(address, sent):
    with engine_at(address), ready(address) as client:
        with raw_client(address) as sock:
            sock.sendall(sent)
            await received(sock)
        assert await read(client.generate(make_request("1", [1, 2], 5))) == naive([1, 2], 5)


async def test_a_client_that_does_not_read_neither_stops_the_engine_nor_fills_it(address):
    core = make_core(num_blocks=600, max_model_len=2048)
    request = make_request("slow", [1, 2], 1500, params={"logprobs": 60})
    with engine_at(address, core, make_info(2048)) as engine:
        wait_until(lambda: engine.status.state == "ready")
        with raw_client(address) as sock:
            sock.sendall(frames.encode("add", frames.request_facts(request)))
            wait_until(lambda: engine.stats.num_generated_tokens == 1500, 30)
            (connection,) = engine.server.connections
            buffered = connection._writer.transport.get_write_buffer_size()
            messages = await asyncio.wait_for(outputs_of(sock), 10)

    size = len(frames.encode(*messages))
    token_ids = [token_id for output in messages for token_id in output[1]]
    assert token_ids == naive([1, 2], 1500)
    assert buffered < 2**17 < size
    assert len(messages) < 1500  # the last ones came together


async def outputs_of(sock) -> list[tuple]:
    """The outputs of the one request, to its end."""
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    outputs: list[tuple] = []
    while not outputs or outputs[-1][3] is None:
        kind, *arguments = await frames.read(reader)
        if kind == "update":
            outputs += arguments[-1]
    writer.close()
    return outputs


# What travels


async def test_logprobs_and_the_facts_of_the_model_arrive_as_they_are(address):
    params = {"logprobs": 3, "prompt_logprobs": 2, "logit_bias": {5: 1.5}, "seed": -(2**63)}
    request = make_request("1", [1, 2, 3], 6, params=params)
    with engine_at(address) as engine, ready(address) as client:
        async with engine.generate(request) as deltas:
            direct = [delta async for delta in deltas]
        async with client.generate(request) as deltas:
            through = [delta async for delta in deltas]
        assert client.model == engine.model

    for deltas in (direct, through):
        assert 0 < deltas[0].queue_time_s == deltas[-1].queue_time_s < 10
        deltas[0].queue_time_s = 0.0
    assert joined(through) == joined(direct)
    assert isinstance(through[0].logprobs[0], TokenLogprob)
    assert direct[0].prompt_logprobs[0] is None and len(direct[0].logprobs[0].top) == 3


def joined(deltas: list[Delta]) -> Delta:
    for delta in deltas[1:]:
        deltas[0].extend(delta)
    return deltas[0]


def test_every_field_of_a_request_travels():
    params = SamplingParams(
        temperature=0.5,
        logit_bias={1: -100.0},
        bad_token_ids=((1, 2), (3,)),
        allowed_token_ids=(1, 2, 3),
        stop_token_ids=frozenset({7, 5}),
        seed=2**63 - 1,
        logprob_token_ids=(4,),
    )
    request = Request(
        request_id="1",
        prompt_token_ids=[1, 2],
        params=params,
        cache_salt="salt",
        priority=-3,
        generated_token_ids=(8, 9),
    )
    kind, facts = unpacked(frames.encode("add", frames.request_facts(request)))

    assert kind == "add"
    assert frames.request_of(facts, None) == request


@pytest.mark.parametrize(
    "item",
    [
        ConstraintFailed("It left."),
        Delta([1], [TokenLogprob(1, float("-inf"), [(2, -0.1)], 1)]),
        Delta([], prompt_logprobs=[None, TokenLogprob(1, -0.5, [])]),
    ],
)
def test_outputs_travel(item):
    (output,) = unpacked(frames.encode(frames.output_facts("1", item)))
    request_id, arrived = frames.output_of(*output)

    assert (request_id, type(arrived)) == ("1", type(item))
    assert str(arrived) == str(item)


def unpacked(frame: bytes) -> tuple:
    async def read_it():
        reader = asyncio.StreamReader()
        reader.feed_data(frame)
        return await frames.read(reader)

    return asyncio.run(read_it())


class Rubbish:
    spec = {"grammar": '{"grammars": [{"lark_grammar": "no grammar"}]}', "thought": None}


async def test_grammars_are_followed_on_the_other_side(address):
    tokenizer = byte_tokenizer()
    with ExitStack() as stack:
        engine = scripted_engine(lambda prompt: "I do not care")
        stack.callback(engine.close)
        stack.enter_context(served(engine, address))
        client = stack.enter_context(ready(address, tokenizer))
        compiler = compiler_of(client.model)
        thought = Thought(reasoning=REASONING["think"], is_open=True, max_tokens=2)
        constraints = [
            compiler.compile([choice_part(["yes", "never"])]),
            compiler.compile([json_part({"const": {"a": [1]}})]),
            compiler.compile(None, thought),
        ]
        token_ids = [
            await read(client.generate(constrained(tokenizer, constraint, str(number))))
            for number, constraint in enumerate(constraints)
        ]
        with pytest.raises(InvalidGrammar):
            await read(client.generate(constrained(tokenizer, Rubbish(), "rubbish")))

    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in token_ids]
    assert texts[0] in ("yes", "never")
    assert texts[1].replace(" ", "") == '{"a":[1]}'
    assert "\n</think>\n\n" in texts[2][:20]


def constrained(tokenizer, constraint, request_id: str) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=tokenizer.encode("Well?"),
        params=SamplingParams(temperature=0.0, max_tokens=40),
        constraint=constraint,
    )


async def test_what_is_too_large_fails_alone(address, monkeypatch):
    with engine_at(address) as engine, ready(address) as client:
        engine.gate.clear()
        generations = [client.generate(make_request(str(i), [i], 30)) for i in range(1, 4)]
        wait_until(lambda: len(engine._generations) == 3)
        monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 500)
        with pytest.raises(InvalidPrompt, match="too large"):
            client.generate(make_request("large", [1] * 60, params={"logit_bias": BIAS}))
        engine.gate.set()
        assert await asyncio.gather(*map(read, generations)) == [
            naive([i], 30) for i in range(1, 4)
        ]
        monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 700)
        scored = make_request("scored", [1, 2], 4, params={"logprobs": 90})
        with pytest.raises(EngineFailed, match="too large"):
            await read(client.generate(scored))
        wait_until(lambda: not engine._generations)


BIAS = dict.fromkeys(range(90), 1.0)


# The address


def test_the_socket_is_for_its_user_alone(address):
    with listening(address):
        assert address.stat().st_mode & 0o777 == 0o600
    assert not address.exists()


def test_a_socket_of_a_dead_process_is_taken_over(address):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(address))
    assert address.exists()
    with listening(address), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(address))


def test_an_address_in_use_is_left_alone(address):
    with listening(address), pytest.raises(AddressRefused, match="another engine process"):
        listening(address).__enter__()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(address))
        other.listen()
        with pytest.raises(AddressRefused, match="somebody answers"):
            listening(address).__enter__()
    assert address.exists()


def test_what_is_no_socket_is_left_alone(address):
    address.write_text("a letter")
    with pytest.raises(AddressRefused, match="no socket"):
        listening(address).__enter__()
    assert address.read_text() == "a letter"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_folder_that_others_write_to_is_refused(address, mode):
    address.parent.chmod(mode)
    with pytest.raises(AddressRefused, match="others can write"):
        check_folder(address)
    with connected(address) as client:
        wait_until(lambda: "others can write" in client.status.stage)


def test_a_folder_that_is_missing_is_named(address):
    with pytest.raises(AddressRefused, match=f"{address}/a: No such"):
        listening(address / "a" / "b").__enter__()


def test_a_model_knows_where_its_tokenizer_is_from():
    tokenizer = byte_tokenizer()
    tokenizer.name_or_path = "/models/one"
    info = ModelInfo(**frames.facts_of(make_info()) | {"tokenizer": tokenizer})
    (facts,) = unpacked(frames.encode(frames.model_facts(info)))

    assert facts["tokenizer"] == "/models/one"
    assert frames.model_of(facts, tokenizer) == info
