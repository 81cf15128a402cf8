"""The end of the server, seen from its requests."""

import asyncio
import json
import time
from typing import Any

import pytest

from inference import service
from inference.errors import ShuttingDown
from nanollmserve_site.drain import Drain
from nanollmserve_site.guard import guard
from tests.helpers import scripted_engine

pytestmark = pytest.mark.django_db(transaction=True)


class Requests:
    """An application that answers when it is told to, and whoever asks it."""

    def __init__(self, grace_s: float) -> None:
        self.drain, self.answers = Drain(grace_s), asyncio.Event()
        self.app = self.drain.wrap(guard(self.answer))
        self.was_cancelled = False

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self.answers.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"whole"})

    async def ask(self, path: str = "/v1/models", type_: str = "http") -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        try:
            await self.app({"type": type_, "method": "GET", "path": path}, receive, send)
        except asyncio.CancelledError:
            self.was_cancelled = True
        return sent


@pytest.fixture
def requests():
    engine = scripted_engine(lambda prompt: "Hi")
    service.install(engine)
    yield Requests
    service.install(None)
    engine.close()


async def begun(awaitable):
    task = asyncio.ensure_future(awaitable)
    await asyncio.sleep(0.01)
    return task


async def test_a_request_may_end_in_its_time(requests):
    asked = requests(30)
    request = await begun(asked.ask())
    ending = await begun(asked.drain.run())
    assert not ending.done()
    asked.answers.set()
    await asyncio.wait_for(ending, 5)
    assert [message.get("body") for message in await request] == [None, b"whole"]


async def test_a_request_outlives_its_cancellation_by_daphne(requests):
    """Which comes with the signal; later ones, and those before it, count."""
    asked = requests(30)
    outer = await begun(asked.ask())
    asked.drain.has_begun = True
    outer.cancel()
    await begun(outer)
    ending = await begun(asked.drain.run())
    assert not asked.answers.is_set()
    assert not ending.done()
    asked.answers.set()
    await asyncio.wait_for(ending, 5)

    other = requests(30)
    outer = await begun(other.ask())
    outer.cancel()
    await outer
    assert other.was_cancelled


async def test_a_second_signal_ends_the_wait_and_who_is_left_is_told(requests, monkeypatch):
    monkeypatch.setattr("nanollmserve_site.drain.TOLD_S", 0.05)
    asked = requests(30)
    request = await begun(asked.ask())
    ending = await begun(asked.drain.run())
    asked.drain._now.set()
    await asyncio.wait_for(ending, 5)
    start, body = await request
    assert start["status"] == 503
    assert json.loads(body["body"])["error"]["type"] == "server_error"


async def test_who_comes_late_is_asked_to_come_again(requests):
    asked = requests(30)
    await asked.drain.run()
    start, body = await asked.ask()
    assert start["status"] == 503
    assert int(dict(start["headers"])[b"retry-after"]) > 0
    assert json.loads(body["body"])["error"]["code"] == "server_is_overloaded"

    accept, close = await asked.ask(type_="websocket")
    assert accept["type"] == "websocket.accept"
    assert close == {"type": "websocket.close", "code": 1012}

    asked.answers.set()
    assert (await asked.ask("/health"))[0]["status"] == 200


async def test_nobody_waits_where_nobody_is(requests):
    started = time.monotonic()
    await requests(30).drain.run()
    assert time.monotonic() - started < 5
    with pytest.raises(ShuttingDown):
        service.check_ready()
