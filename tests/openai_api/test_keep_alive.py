"""Comments in a stream that has nothing to say yet, so that nobody takes it for dead."""

import time
from dataclasses import replace

import pytest

from inference import service
from tests.helpers import scripted_engine
from tests.openai_api.wire import DONE, PING, Reins, event_of, exchange, is_step

INTERVAL_S = 0.05
RESPONSE = {"model": "m", "input": "Hi", "stream": True}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
TEXT = {"model": "m", "prompt": "Hi", "stream": True}
STREAMS = {
    "response": ("/v1/responses", RESPONSE, ["response.created", "response.in_progress"]),
    "background": (
        "/v1/responses",
        RESPONSE | {"background": True},
        ["response.created", "response.queued", "response.in_progress"],
    ),
    "chat": ("/v1/chat/completions", CHAT, []),
    "text": ("/v1/completions", TEXT, []),
}


@pytest.fixture
def reins():
    reins = Reins()
    yield reins
    reins.let_go()


@pytest.fixture
def engine(reins, settings):
    settings.API = replace(settings.API, ping_interval_s=INTERVAL_S)
    engine = scripted_engine(
        lambda prompt: "Hello", words=["Hel", "lo"], before_step=reins.before_step, max_num_seqs=1
    )
    service.install(engine)
    yield engine
    service.install(None)
    reins.let_go()
    engine.close()


def kind_of(write: bytes) -> str:
    event = event_of(write)
    return write.decode() if event is None else event.get("type") or event["object"]


async def read(answer, num_pings: int) -> list[bytes]:
    """The writes until so many of them in a row were pings."""
    writes = []
    async for write in answer.writes():
        writes.append(write)
        if writes[-num_pings:] == [PING] * num_pings:
            break
    return writes


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_that_waits_for_its_first_token_says_so(client, reins, name):
    path, body, beginning = STREAMS[name]
    began_at = time.monotonic()
    async with exchange(path, body) as answer:
        assert await answer.status() == 200
        waiting = await read(answer, num_pings=3)
        waited_s = time.monotonic() - began_at
        reins.let_go()
        rest = [write async for write in answer.writes()]

    assert [kind_of(write) for write in waiting] == [*beginning, *[PING.decode()] * 3]
    assert waited_s >= 3 * INTERVAL_S
    assert PING not in rest
    assert rest[-1] == DONE
    assert b"".join(rest).count(b"lo") > 0


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_that_waits_for_its_turn_says_so(client, engine, reins, name):
    path, body, beginning = STREAMS[name]
    async with exchange("/v1/completions", TEXT):
        async with exchange(path, body) as answer:
            assert await answer.status() == 200
            waiting = await read(answer, num_pings=2)

            assert len(engine._generations) == 2
        reins.let_go()

    assert [kind_of(write) for write in waiting] == [*beginning, *[PING.decode()] * 2]


async def test_a_reader_who_comes_back_is_kept_too(client, reins):
    async with exchange("/v1/responses", RESPONSE | {"background": True}) as answer:
        await answer.status()
        [created, *_] = await read(answer, num_pings=1)
    response_id = event_of(created)["response"]["id"]
    async with exchange(f"/v1/responses/{response_id}?stream=true&starting_after=1") as answer:
        assert await answer.status() == 200
        waiting = await read(answer, num_pings=2)
        reins.let_go()
        rest = [write async for write in answer.writes()]

    assert [kind_of(write) for write in waiting] == ["response.in_progress", *[PING.decode()] * 2]
    assert kind_of(rest[-2]) == "response.completed"


async def test_pings_come_between_tokens_and_leave_the_events_alone(client, reins):
    events = []
    async with exchange("/v1/responses", RESPONSE) as answer:
        await answer.status()
        reins.allow()
        while not events or event_of(events[-1]) is not None:
            writes = await read(answer, num_pings=2)
            assert writes[-1] in (PING, DONE)
            assert sum(map(is_step, writes)) <= 1
            events += [write for write in writes if write != PING]
            reins.allow()

    numbers = [event_of(write)["sequence_number"] for write in events[:-1]]
    assert numbers == list(range(len(numbers)))
    assert [event_of(write)["delta"] for write in events if is_step(write)][:2] == ["Hel", "lo"]
