"""What the programmes share: a server, requests that can be left, figures."""

import asyncio
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.helpers import LiveServer, live_server

MODEL = "nanollmserve-demo"


class Check(NamedTuple):
    """A figure and the most that it may be."""

    figure: float
    at_most: float

    def __bool__(self) -> bool:
        return self.figure <= self.at_most


def result(name: str, figures: dict, checks: dict[str, bool | Check]) -> dict:
    """What a programme found. `checks`: what has to be so, or which figure how small."""
    targets = {
        check: {"met": bool(found)} | (found._asdict() if isinstance(found, Check) else {})
        for check, found in checks.items()
    }
    missed = [check for check, found in checks.items() if not found]
    return {
        "name": name,
        "passed": not missed,
        "missed": missed,
        "figures": figures,
        "targets": targets,
    }


@contextmanager
def a_server(server: LiveServer | None = None, **options) -> Iterator[LiveServer]:
    """The given server, or one of its own."""
    if server is not None:
        yield server
        return
    with tempfile.TemporaryDirectory() as folder, live_server(Path(folder), **options) as server:
        yield server


def chat(max_tokens: int, prompt: str = "Tell me a long story.", **fields) -> dict:
    """A chat request whose answer is exactly so long."""
    messages = [{"role": "user", "content": prompt}]
    body = {"model": MODEL, "messages": messages, "max_tokens": max_tokens, "stream": True}
    return body | {"ignore_eos": True} | fields


def response(max_tokens: int, prompt: str = "Tell me a long story.", **fields) -> dict:
    """The same for the Responses API."""
    body = {"model": MODEL, "input": prompt, "max_output_tokens": max_tokens, "stream": True}
    return body | {"ignore_eos": True} | fields


def head(path: str, length: int, method: str = "POST") -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\nConnection: close\r\n\r\n"
    ).encode()


def post(path: str, body: dict) -> bytes:
    """A whole request, as bytes."""
    text = json.dumps(body).encode()
    return head(path, len(text)) + text


async def health(server: LiveServer) -> dict:
    """What the engine does; without a client library, whose start alone takes longer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head("/health", 0, "GET"))
    answer = await reader.read()
    writer.close()
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def is_idle(facts: dict) -> bool:
    """Nothing waits or runs, and no block of the cache is held."""
    return not (facts["num_running"] or facts["num_waiting"] or facts["kv_cache_usage"])


async def idle_after(server: LiveServer, timeout_s: float = 30) -> float:
    """Seconds until the engine has nothing to do and all its blocks are free."""
    started = time.monotonic()
    while time.monotonic() - started < timeout_s:
        if is_idle(await health(server)):
            return time.monotonic() - started
        await asyncio.sleep(0.005)
    return float("inf")


async def awake(seconds: float, step_s: float = 0.1) -> None:
    """Sleep, without counting the time in which the whole machine stands still."""
    for _ in range(round(seconds / step_s)):
        await asyncio.sleep(step_s)


def percentile(values: Iterable[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


def memory(server: LiveServer) -> int:
    """Resident bytes of the server."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def num_threads(server: LiveServer) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))


def num_descriptors(server: LiveServer) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
