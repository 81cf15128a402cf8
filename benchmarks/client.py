"""One streamed request to any OpenAI-compatible server, standard library only.

While the clock runs, bytes are kept as they come, each piece with its time, and nothing else is
done; what they say is found out afterwards by `read_answer`. So the client hardly takes processor
time from a server on the same machine.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

PATHS = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
}
MAX_ANSWER_BYTES = 2**26
LAST_CHUNK = b"0\r\n\r\n"

Prompt = str | list[int]
Pieces = Iterable[tuple[float, bytes]]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server to be measured. `pid` is that of its first process, if it runs here."""

    label: str
    url: str
    model: str = ""
    pid: int | None = None
    api_key: str = "unused"


@dataclass(kw_only=True)
class Answer:
    """What came back: when each piece of text arrived, and what the server counted."""

    began: float
    times: list[float] = field(default_factory=list)
    text: str = ""
    num_tokens: int | None = None
    num_prompt_tokens: int | None = None
    finished: bool = False
    error: str | None = None

    @property
    def first_s(self) -> float:
        return self.times[0] - self.began

    @property
    def gaps_s(self) -> list[float]:
        return [later - sooner for sooner, later in zip(self.times, self.times[1:], strict=False)]

    @property
    def per_token_s(self) -> float | None:
        """After the first; pieces may hold several tokens, so these are the server's count."""
        if not self.num_tokens or self.num_tokens < 2:
            return None
        return (self.times[-1] - self.times[0]) / (self.num_tokens - 1)


class Exchange(asyncio.Protocol):
    """Sends one request and keeps what is received until the connection ends."""

    def __init__(self, request: bytes) -> None:
        self.began = time.perf_counter()
        self.received: list[tuple[float, bytes]] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request, self._num_bytes = request, 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.received.append((time.perf_counter(), data))
        self._num_bytes += len(data)
        if data.endswith(LAST_CHUNK) or self._num_bytes > MAX_ANSWER_BYTES:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.ended.done():
            return
        if exc is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(exc)


async def ask(target: Target, api: str, body: dict, timeout_s: float) -> Exchange | Answer:
    """Send `body` and wait for the end. An answer only where it failed on the way."""
    began = time.perf_counter()
    transport = None
    try:
        async with asyncio.timeout(timeout_s):
            transport, exchange = await connect(target, PATHS[api], body)
            await exchange.ended
            return exchange
    except TimeoutError:
        return Answer(began=began, error=f"no end within {timeout_s:g} s")
    except OSError as exc:
        return Answer(began=began, error=f"{type(exc).__name__}: {exc}")
    finally:
        if transport is not None:
            transport.abort()


async def connect(target: Target, path: str, body: dict) -> tuple[asyncio.BaseTransport, Exchange]:
    parts = urlsplit(target.url)
    content = json.dumps(body).encode()
    head = (
        f"POST {parts.path.rstrip('/')}{path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Authorization: Bearer {target.api_key}\r\nContent-Type: application/json\r\n"
        f"Accept: text/event-stream\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    secure = parts.scheme == "https"
    return await asyncio.get_running_loop().create_connection(
        lambda: Exchange(head.encode() + content),
        parts.hostname,
        parts.port or (443 if secure else 80),
        ssl=ssl.create_default_context() if secure else None,
    )


def request_body(
    api: str, model: str, prompt: Prompt, num_tokens: int, *, ignore_eos: bool, usage: bool
) -> dict[str, Any]:
    """Greedy and streamed."""
    body: dict[str, Any] = {"model": model, "temperature": 0, "stream": True}
    if ignore_eos:
        body["ignore_eos"] = True
    if api == "responses":
        return body | {"input": prompt, "max_output_tokens": num_tokens}
    if usage:
        body["stream_options"] = {"include_usage": True}
    body["max_tokens"] = num_tokens
    if api == "chat":
        return body | {"messages": [{"role": "user", "content": prompt}]}
    return body | {"prompt": prompt}


def read_answer(exchange: Exchange) -> Answer:
    """Make sense of what was received."""
    answer = Answer(began=exchange.began)
    try:
        status, pieces = read_head(exchange.received)
        if status != 200:
            text = b"".join(data for _, data in pieces)[:300].decode(errors="replace")
            answer.error = f"{status} {text}"
            return answer
        for moment, event in events(pieces):
            read_event(answer, moment, event)
    except ValueError as exc:  # broken JSON, broken chunks
        answer.error = answer.error or f"{type(exc).__name__}: {exc}"
    if answer.error is None and not (answer.times and answer.finished):
        answer.error = "the stream ended before the answer"
    return answer


def read_head(received: list[tuple[float, bytes]]) -> tuple[int, Pieces]:
    """The status, and the body in pieces."""
    head, number, moment = b"", 0, 0.0
    while b"\r\n\r\n" not in head:
        if number == len(received):
            raise ValueError(f"no HTTP answer: {head[:100]!r}")
        moment, data = received[number]
        head, number = head + data, number + 1
    head, _, body = head.partition(b"\r\n\r\n")
    lines = head.lower().splitlines()
    pieces = [(moment, body), *received[number:]]
    is_chunked = any(
        line.startswith(b"transfer-encoding:") and b"chunked" in line for line in lines
    )
    return int(lines[0].split()[1]), chunks(pieces) if is_chunked else pieces


def chunks(pieces: Pieces) -> Iterator[tuple[float, bytes]]:
    """The content of chunks, with the time at which each was there."""
    buffer = b""
    for moment, data in pieces:
        buffer += data
        while (end := buffer.find(b"\r\n")) >= 0:
            size = int(buffer[:end].partition(b";")[0], 16)
            if size == 0:
                return
            if len(buffer) < end + size + 4:
                break
            yield moment, buffer[end + 2 : end + 2 + size]
            buffer = buffer[end + size + 4 :]


def events(pieces: Pieces) -> Iterator[tuple[float, dict]]:
    """What server-sent events say, with the time at which each was complete."""
    buffer = b""
    for moment, data in pieces:
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            content = line[5:].strip()
            if line.startswith(b"data:") and content != b"[DONE]":
                yield moment, json.loads(content)


def read_event(answer: Answer, moment: float, event: dict) -> None:
    """Take over what an event of any of the three APIs adds."""
    kind = event.get("type") or ""
    response = event.get("response") or {}
    if event.get("error") or kind in ("error", "response.failed"):
        answer.error = json.dumps(event.get("error") or response.get("error") or event)[:300]
    if text := text_of(event, kind):
        answer.times.append(moment)
        answer.text += text
    if kind in ("response.completed", "response.incomplete"):
        answer.finished = True
    for choice in event.get("choices") or []:
        answer.finished |= bool(choice.get("finish_reason"))
    if usage := event.get("usage") or response.get("usage"):
        answer.num_tokens = usage.get("completion_tokens", usage.get("output_tokens"))
        answer.num_prompt_tokens = usage.get("prompt_tokens", usage.get("input_tokens"))


def text_of(event: dict, kind: str) -> str:
    """Everything that was generated, thoughts too."""
    if kind in ("response.output_text.delta", "response.reasoning_text.delta"):
        return event["delta"]
    found = ""
    for choice in event.get("choices") or []:
        delta = choice.get("delta") or {}
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        found += choice.get("text") or delta.get("content") or thought or ""
    return found
