"""Uploads that trickle or stop are given up, and disturb nobody meanwhile."""

import asyncio
import time

from tests.helpers import LiveServer
from tests.reliability.programme import Check, a_server, chat, head, percentile, post, result


async def run(n: int = 200, upload_timeout_s: float = 5, server: LiveServer | None = None) -> dict:
    """`upload_timeout_s` is what the server was started with."""
    limit = {"NANOLLM_UPLOAD_TIMEOUT_S": str(upload_timeout_s)}
    with a_server(server, **limit) as live:
        alone = [await answered_after(live) for _ in range(20)]
        uploads = [asyncio.create_task(upload(live, i)) for i in range(n)]
        among = [await answered_after(live) for _ in range(20)]
        took = await asyncio.gather(*uploads)
        after = await answered_after(live)
    figures = {
        "uploads": n,
        "given_up_after_s": round(max(took), 2),
        "answer_alone_p50_s": round(percentile(alone, 50), 4),
        "answer_among_p50_s": round(percentile(among, 50), 4),
        "answer_after_s": round(after, 4),
    }
    return result(
        "slow_upload",
        figures,
        {
            "all given up": Check(figures["given_up_after_s"], upload_timeout_s + 8),
            "none before its time": min(took) >= upload_timeout_s - 1,
            "others are not slower": Check(
                figures["answer_among_p50_s"], round(2 * figures["answer_alone_p50_s"] + 0.05, 4)
            ),
        },
    )


async def upload(server: LiveServer, number: int) -> float:
    """Seconds until the server closes it. Half of them say nothing more, the others trickle."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    started = time.monotonic()
    writer.write(head("/v1/chat/completions", 10_000) + b"{")
    reading = asyncio.ensure_future(reader.read())
    try:
        while not reading.done():
            if number % 2:
                writer.write(b" ")
            await asyncio.wait([reading], timeout=0.2)
        reading.exception()  # a reset is an end too
    finally:
        writer.close()
    return time.monotonic() - started


async def answered_after(server: LiveServer) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    started = time.monotonic()
    writer.write(post("/v1/chat/completions", chat(1, stream=False)))
    assert b" 200 " in await reader.readline()
    writer.close()
    return time.monotonic() - started
