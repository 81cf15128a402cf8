"""Events as server-sent events: one event, one write."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from django.http import StreamingHttpResponse

from openai_api.errors import as_api_error, error_body

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

Encode = Callable[[dict], bytes]


def encode_json(value: dict) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def data(chunk: dict) -> bytes:
    """The framing of chat completions and completions."""
    return b"data: " + encode_json(chunk) + b"\n\n"


def named_event(event: dict) -> bytes:
    """The framing of Responses events."""
    return b"event: " + event["type"].encode() + b"\ndata: " + encode_json(event) + b"\n\n"


class EventStream(StreamingHttpResponse):
    """A stream of server-sent events that always ends with `[DONE]`."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        super().__init__(body, content_type="text/event-stream; charset=utf-8")
        self["Cache-Control"] = "no-cache"
        self["X-Accel-Buffering"] = "no"


async def event_stream(
    events: AsyncIterator[dict], encode: Encode, *, ping_interval_s: float
) -> EventStream:
    """An EventStream of `events`.

    The first event is awaited here: a failure before it is still an HTTP status, and a generator
    that has begun is closed even when nobody comes to read the rest.
    """
    body = _body(events, await anext(events), encode, ping_interval_s)
    return EventStream(body)


async def _body(
    events: AsyncIterator[dict], first: dict, encode: Encode, ping_interval_s: float
) -> AsyncIterator[bytes]:
    try:
        async with aclosing(_with_pings(events, ping_interval_s)) as rest:
            yield encode(first)
            async for event in rest:
                yield PING if event is None else encode(event)
    except Exception as exc:  # the status line is gone: from here a failure is an event
        yield data({"error": error_body(as_api_error(exc))})
    yield DONE


async def _with_pings(events: AsyncIterator[dict], interval_s: float) -> AsyncIterator[dict | None]:
    """`events`, with None after every `interval_s` of silence."""
    async with aclosing(events):
        while True:
            coming = asyncio.ensure_future(anext(events, None))
            try:
                while not (await asyncio.wait([coming], timeout=interval_s))[0]:
                    yield None
                event = coming.result()
            finally:
                if not coming.done():
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
            if event is None:
                return
            yield event
