"""Clients leave at random points: in the queue, in the prompt, between tokens, without a word."""

import asyncio
import random
import socket
import struct

from tests.helpers import LiveServer
from tests.reliability.programme import (
    Check,
    a_server,
    chat,
    idle_after,
    num_descriptors,
    num_threads,
    percentile,
    post,
    response,
    result,
)

ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: a reset in the place of an orderly end
AT_ONCE = 48  # clients; eight of them run, the others wait in the queue


async def run(
    n: int = 1000, single: int = 20, seed: int = 0, server: LiveServer | None = None
) -> dict:
    with a_server(server, NANOLLM_MAX_NUM_SEQS="8") as live:
        chance = random.Random(seed)
        await visits(live, chance, 20)  # what is started once, threads of the database and the like
        await idle_after(live)
        threads, descriptors = num_threads(live), num_descriptors(live)
        await visits(live, chance, n)
        freed_s = await idle_after(live)
        alone_s = [await visit_alone(live) for _ in range(single)]
        await asyncio.sleep(1.1)  # daphne forgets connections once a second
        figures = {
            "disconnects": n,
            "freed_s": round(freed_s, 3),
            "single_freed_p50_s": round(percentile(alone_s, 50), 3),
            "single_freed_max_s": round(max(alone_s), 3),
            "new_threads": num_threads(live) - threads,
            "new_descriptors": num_descriptors(live) - descriptors,
            "tracebacks": live.log.read_text().count("Traceback"),
        }
    return result(
        "disconnect",
        figures,
        {
            "idle within 1 s of the last": Check(figures["freed_s"], 1),
            "one alone within a step and 100 ms": Check(figures["single_freed_p50_s"], 0.12),
            "no threads left": Check(figures["new_threads"], 0),
            "descriptors do not grow with clients": Check(
                figures["new_descriptors"], max(8, n / 50)
            ),
            "no tracebacks": Check(figures["tracebacks"], 0),
        },
    )


async def visits(server: LiveServer, chance: random.Random, num_visits: int) -> None:
    free = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with free:
            await visit(server, chance)

    async with asyncio.TaskGroup() as group:
        for _ in range(num_visits):
            group.create_task(one())


async def visit(server: LiveServer, chance: random.Random) -> None:
    """One request, left at a random point."""
    prompt = "word " * chance.choice([3, 300, 3000])  # the last takes several steps to be read
    streamed = {"stream": chance.random() < 0.8}
    request = chance.choice(
        [
            post("/v1/chat/completions", chat(400, prompt, n=chance.choice([1, 3]), **streamed)),
            post("/v1/responses", response(400, prompt, store=chance.random() < 0.5, **streamed)),
        ]
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request)
        await writer.drain()
        if chance.random() < 0.4:
            await asyncio.sleep(chance.random() * 0.2)  # queued, or its prompt is being read
        else:
            for _ in range(chance.randrange(1, 30)):
                await asyncio.wait_for(reader.read(2000), 0.5)
    except (TimeoutError, ConnectionResetError):
        pass
    finally:
        if chance.random() < 0.5:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        writer.close()


async def visit_alone(server: LiveServer) -> float:
    """Seconds from the client's end to the last free block, with nothing else going on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(post("/v1/chat/completions", chat(3000)))
    await reader.readuntil(b"content")
    writer.close()
    return await idle_after(server)
