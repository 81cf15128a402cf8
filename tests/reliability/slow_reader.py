"""Clients that do not read what they asked for cost no memory, and are cut off."""

import asyncio
import select
import socket
import time

from tests.helpers import LiveServer
from tests.reliability.programme import (
    MODEL,
    Check,
    a_server,
    head,
    idle_after,
    memory,
    result,
)

MIB = 2**20


async def run(
    n: int = 50, num_tokens: int = 2000, times: int = 16, send_timeout_s: float = 5
) -> dict:
    """Each asks for the same stored stream `times` times; a token is about 200 bytes."""
    limit = {"NANOLLM_SEND_TIMEOUT_S": str(send_timeout_s)}
    with a_server(**limit) as live:
        path, size = await asyncio.to_thread(stored_stream, live, num_tokens)
        await asyncio.to_thread(read, live, path)
        before = memory(live)
        readers = [ask(live, path, times) for _ in range(n)]
        peak, started, left = before, time.monotonic(), readers
        while left and time.monotonic() - started < 90:  # to fill their buffers, too
            await asyncio.sleep(0.1)
            peak = max(peak, memory(live))
            left = [reader for reader in left if not is_cut_off(reader)]
        cut_off_s = time.monotonic() - started
        for reader in readers:
            reader.close()
        idle_s = await idle_after(live)
    figures = {
        "readers": n,
        "asked_mib": round(size * times / MIB, 1),
        "growth_mib": round((peak - before) / MIB, 1),
        "cut_off_after_s": round(cut_off_s, 1),
    }
    return result(
        "slow_reader",
        figures,
        {
            "that is more than the system buffers": size * times > 4 * MIB,
            "memory is bounded": Check(figures["growth_mib"], 64),
            "all cut off": not left,
            "the engine is idle": idle_s < 1,
        },
    )


def stored_stream(server: LiveServer, num_tokens: int) -> tuple[str, int]:
    """The path of a stream that is stored, and how many bytes it has."""
    created = server.client.responses.create(
        model=MODEL,
        input="Tell me a long story.",
        max_output_tokens=num_tokens,
        background=True,
        extra_body={"ignore_eos": True},
    )
    path = f"/v1/responses/{created.id}?stream=true"
    return path, read(server, path)


def read(server: LiveServer, path: str) -> int:
    """How many bytes a stream has, for one who reads it."""
    size = 0
    with ask(server, path) as client:
        while data := client.recv(MIB):
            size += len(data)
    return size


def ask(server: LiveServer, path: str, times: int = 1) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=120)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    last = head(path, 0, "GET")
    client.sendall(last.replace(b"Connection: close\r\n", b"") * (times - 1) + last)
    return client


def is_cut_off(client: socket.socket) -> bool:
    """Whether the server has reset the connection, though not all is read."""
    waiting = select.poll()
    waiting.register(client, 0)
    return bool(waiting.poll(0))
