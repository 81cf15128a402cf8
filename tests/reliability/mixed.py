"""Clients of all kinds at once, for a while: everyone gets all that was asked for."""

import asyncio
import random
import time
from collections import Counter
from contextlib import aclosing

import openai

from tests.helpers import LiveServer
from tests.reliability.programme import MODEL, Check, a_server, awake, idle_after, result

SIZES = (1, 5, 20, 80)  # tokens of an answer
PROMPTS = ("Tell me a long story.", "Once upon a time, " * 20, "What is this? " * 100)
EXACTLY = {"extra_body": {"ignore_eos": True}}
PATIENCE_S = 600.0  # a machine may stand still for minutes; what took how long is in the figures
PATIENT = {"open_timeout": PATIENCE_S, "ping_interval": None}
ENDS = ("response.incomplete", "response.completed", "response.failed", "error")


async def run(
    clients: int = 64, seconds: float = 120, seed: int = 0, server: LiveServer | None = None
) -> dict:
    with a_server(server) as live:
        crowd = Crowd(live, seed)
        started = time.monotonic()
        await crowd.work(clients, seconds)
        worked_s = time.monotonic() - started
        idle_s = await idle_after(live)
        tracebacks = live.log.read_text().count("Traceback")
    figures = {
        "clients": clients,
        "seconds": round(worked_s),
        "requests": dict(sorted(crowd.ended.items())),
        "failures": crowd.failures[:10],
        "tokens_per_s": round(crowd.num_tokens / worked_s),
        "slowest_s": round(crowd.slowest_s, 1),
        "idle_s": round(idle_s, 3),
    }
    return result(
        "mixed",
        figures,
        {
            "requests that failed": Check(len(crowd.failures), 0),
            "every kind was tried": set(crowd.ended) == set(KINDS),
            "the engine is idle after seconds": Check(figures["idle_s"], 1),
            "tracebacks": Check(tracebacks, 0),
        },
    )


class Wrong(Exception):
    """An answer that is not what was asked for."""


class Crowd:
    """Clients of one server. `ended` counts what went well, by kind."""

    def __init__(self, server: LiveServer, seed: int = 0) -> None:
        self._server, self._chance = server, random.Random(seed)
        self.ended: Counter[str] = Counter()
        self.failures: list[str] = []
        self.num_tokens, self.slowest_s = 0, 0.0

    async def work(self, clients: int, seconds: float) -> None:
        """Each asks for one thing after the other until the time is up."""
        async with asyncio.TaskGroup() as group:
            end = group.create_task(awake(seconds))
            for number in range(clients):
                group.create_task(self._work(number, end))

    async def _work(self, number: int, end: asyncio.Task[None]) -> None:
        kinds = list(KINDS)
        async with self._server.async_client() as client:
            client = client.with_options(timeout=PATIENCE_S)
            for turn in range(number, 10**9):
                if end.done():
                    return
                await self._one(client, kinds[turn % len(kinds)])

    async def _one(self, client: openai.AsyncOpenAI, kind: str) -> None:
        began = time.monotonic()
        size, prompt = self._chance.choice(SIZES), self._chance.choice(PROMPTS)
        try:
            async with asyncio.timeout(PATIENCE_S):
                num_tokens = await KINDS[kind](client, prompt, size)
            if num_tokens not in (size, None):
                raise Wrong(f"{num_tokens} tokens, not {size}")
        except Exception as exc:
            self.failures.append(f"{kind}: {type(exc).__name__} {exc}"[:300])
            return
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        self.ended[kind] += 1
        self.num_tokens += num_tokens or 0


def chat_request(prompt: str, size: int) -> dict:
    messages = [{"role": "user", "content": prompt}]
    return {"model": MODEL, "messages": messages, "max_tokens": size, **EXACTLY}


async def chat(client: openai.AsyncOpenAI, prompt: str, size: int) -> int:
    answer = await client.chat.completions.create(**chat_request(prompt, size))
    return answer.usage.completion_tokens


async def chat_stream(client: openai.AsyncOpenAI, prompt: str, size: int) -> int:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = await client.chat.completions.create(**chat_request(prompt, size), **options)
    return await usage_of(chunks)


async def completion(client: openai.AsyncOpenAI, prompt: str, size: int) -> int:
    answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=size, **EXACTLY)
    return answer.usage.completion_tokens


async def completion_stream(client: openai.AsyncOpenAI, prompt: str, size: int) -> int:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return await usage_of(
        await client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=size, **options, **EXACTLY
        )
    )


async def usage_of(chunks: openai.AsyncStream) -> int:
    """The number of tokens that the end of a stream tells."""
    reason = usage = None
    async for chunk in chunks:
        usage = chunk.usage or usage
        reason = (chunk.choices and chunk.choices[0].finish_reason) or reason
    if reason != "length" or usage is None:
        raise Wrong(f"a stream ended by {reason}, usage {usage}")
    return usage.completion_tokens


async def create(client: openai.AsyncOpenAI, prompt: str, size: int, **options):
    return await client.responses.create(
        model=MODEL, input=prompt, max_output_tokens=size, **options, **EXACTLY
    )


async def response(client: openai.AsyncOpenAI, prompt: str, size: int) -> int:
    return (await create(client, prompt, size)).usage.output_tokens


async def response_stream(client: openai.AsyncOpenAI, prompt: str, size: int) -> int:
    async for event in await create(client, prompt, size, stream=True):
        last = event
    return of_last(last)


def of_last(event) -> int:
    if event.type != "response.incomplete":  # at its limit of tokens
        raise Wrong(f"a response ended by {event.type}")
    return event.response.usage.output_tokens


async def background(client: openai.AsyncOpenAI, prompt: str, size: int) -> int:
    begun = await create(client, prompt, size, background=True)
    async for event in await client.responses.retrieve(begun.id, stream=True):
        last = event
    return of_last(last)


async def websocket(client: openai.AsyncOpenAI, prompt: str, size: int) -> int:
    async with client.responses.connect(websocket_connection_options=PATIENT) as connection:
        request = {"type": "response.create", "model": MODEL, "input": prompt}
        await connection.send(request | {"max_output_tokens": size, "ignore_eos": True})
        async for event in connection:
            if event.type in ENDS:
                return of_last(event)
    raise Wrong("a connection was closed")


async def leaver(client: openai.AsyncOpenAI, prompt: str, size: int) -> None:
    """One who closes the connection after the first token."""
    chunks = await client.chat.completions.create(**chat_request(prompt, 500), stream=True)
    async with aclosing(chunks.__aiter__()) as reading:
        await anext(reading)
    await chunks.close()


KINDS = {
    "chat": chat,
    "chat, streamed": chat_stream,
    "completion": completion,
    "completion, streamed": completion_stream,
    "response": response,
    "response, streamed": response_stream,
    "response, background": background,
    "response, websocket": websocket,
    "chat, left": leaver,
}
