"""Events as server-sent events: one event, one write."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import orjson
from django.http import StreamingHttpResponse

from openai_api.errors import as_api_error, error_body

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

Encode = Callable[..., bytes]  # of one event


def encode_json(value: dict) -> bytes:
    """Compact JSON. What came as JSON may hold integers beyond 64 bits, which orjson refuses."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def data(chunk: dict) -> bytes:
    """The framing of chat completions and completions."""
    return b"data: " + encode_json(chunk) + b"\n\n"


def named_event(event) -> bytes:
    """The framing of a Response's `Event`."""
    return f"event: {event.type}\ndata: {event.text}\n\n".encode()


class EventStream(StreamingHttpResponse):
    """A stream of server-sent events that always ends with `[DONE]`."""

    def __init__(self, body: AsyncGenerator[bytes, None]) -> None:
        super().__init__(body, content_type="text/event-stream; charset=utf-8")
        self["Cache-Control"] = "no-cache"
        self["X-Accel-Buffering"] = "no"
        self._body = body

    def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """The body itself: Django would wrap it in two more generators."""
        return self._body


async def event_stream(
    events: AsyncGenerator[dict, None], encode: Encode, *, patience_s: float
) -> EventStream:
    """An EventStream of `events`.

    The first event is waited for a little here: a failure before it is still an HTTP status, and
    a generator that has begun is closed even when nobody comes to read the rest.
    """
    first = asyncio.ensure_future(anext(events, None))
    try:
        await asyncio.wait([first], timeout=patience_s)
    except asyncio.CancelledError:
        await _abandon(first)
        raise
    if first.done() and (exc := first.exception()) is not None:
        raise exc
    return EventStream(_body(events, first, encode))


async def _body(
    events: AsyncGenerator[dict, None], first: asyncio.Future, encode: Encode
) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(events):
            try:
                if (event := await first) is not None:
                    yield encode(event)
            finally:
                await _abandon(first)
            async for event in events:
                yield encode(event)
    except Exception as exc:  # the status line is gone: from here a failure is an event
        yield data({"error": error_body(as_api_error(exc))})
    yield DONE


async def _abandon(coming: asyncio.Future) -> None:
    """A generator cannot be closed while it is awaited."""
    if not coming.done():
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


class Pinging:
    """ASGI's `send` for a stream, with a comment after every `interval_s` of silence.

    A timer for each stream and none for each event: an event only notes the time.
    """

    def __init__(self, send: Callable[[dict], Awaitable[None]], interval_s: float) -> None:
        self._send, self._interval_s = send, interval_s
        self._loop = asyncio.get_running_loop()
        self._sent_at: float | None = None
        self._ping: asyncio.Task | None = None

    def __enter__(self) -> "Pinging":
        self._timer = self._loop.call_later(self._interval_s, self._tick)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._timer.cancel()

    async def __call__(self, message: dict) -> None:
        self._sent_at = self._loop.time()
        await self._send(message)

    def _tick(self) -> None:
        now = self._loop.time()
        silent_since = now if self._sent_at is None else self._sent_at  # nothing before the head
        if now - silent_since >= self._interval_s:
            message = {"type": "http.response.body", "body": PING, "more_body": True}
            self._ping = self._loop.create_task(self(message))
            silent_since = now
        wait_s = self._interval_s - (now - silent_since)
        self._timer = self._loop.call_later(wait_s, self._tick)
