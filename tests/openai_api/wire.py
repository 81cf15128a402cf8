"""A request as a server sees it: every write of its answer, a caller that may leave."""

import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asgiref.testing import ApplicationCommunicator

from inference.service import EngineClient
from nanollmserve_site.handlers import http_application

WAIT_S = 10
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


class Reins:
    """They hold a scripted model back: it makes one step for each that it is allowed.

    Before the first of them the engine does not even plan: what comes till then is one batch.
    """

    def __init__(self) -> None:
        self._steps, self._is_free = threading.Semaphore(0), False
        self._has_begun = threading.Event()

    def hold(self, engine: EngineClient) -> None:
        core = engine._life.core
        add = core.add
        core.add = lambda request: (self._has_begun.wait(WAIT_S), add(request))

    def allow(self, num_steps: int = 1) -> None:
        self._steps.release(num_steps)
        self._has_begun.set()

    def let_go(self) -> None:
        self._is_free = True
        self.allow()

    def before_step(self) -> None:
        if not self._is_free and not self._steps.acquire(timeout=WAIT_S):
            raise TimeoutError("the test has forgotten the model")


class Exchange:
    """One request that is being answered."""

    def __init__(self, caller: ApplicationCommunicator) -> None:
        self._caller, self.headers = caller, {}

    async def status(self) -> int:
        """Read it before the body."""
        start = await self._caller.receive_output(WAIT_S)
        self.headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
        return start["status"]

    async def writes(self) -> AsyncIterator[bytes]:
        """What is left of the body, write by write."""
        while True:
            message = await self._caller.receive_output(WAIT_S)
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body"):
                return


@asynccontextmanager
async def exchange(path: str, body: dict | None = None):
    """A POST of `body`, or a GET without one. After the block its caller has gone."""
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": "GET" if body is None else "POST",
        "path": path,
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
    }
    caller = ApplicationCommunicator(http_application(), scope)
    sent = b"" if body is None else json.dumps(body).encode()
    await caller.send_input({"type": "http.request", "body": sent})
    try:
        yield Exchange(caller)
    finally:
        if not caller.future.done():
            await caller.send_input({"type": "http.disconnect"})
            await caller.wait(WAIT_S)


async def read_stream(path: str, body: dict | None = None) -> list[bytes]:
    """All writes of a stream."""
    async with exchange(path, body) as answer:
        assert await answer.status() == 200
        return [write async for write in answer.writes()]


def is_step(write: bytes) -> bool:
    """Whether a write could only be made after a step of the model; of several, the last."""
    event = event_of(write)
    if event is None:
        return False
    if "choices" in event:
        return any("role" not in choice["delta"] for choice in event["choices"])
    is_call = event.get("item", {}).get("arguments") == ""
    return event["type"].endswith(".delta") or is_call


def event_of(write: bytes) -> dict | None:
    """The event or chunk in a write; None if it is a comment, or the end."""
    line = write.decode().rstrip("\n").split("\n")[-1]
    return json.loads(line[len("data: ") :]) if line.startswith("data: {") else None
