"""The server is told to end in the middle of streams, uploads and background work."""

import asyncio
import signal
import sqlite3
import time
from collections import Counter

import httpx2

from tests.helpers import LiveServer
from tests.reliability.programme import Check, a_server, chat, head, post, response, result


async def run(
    streams: int = 32,
    half_uploads: int = 5,
    grace_s: float = 3,
    exit_s: float = 3,
    serve: bool = False,
) -> dict:
    """Half of the streams are too long for the grace time."""
    with a_server(serve=serve, NANOLLM_SHUTDOWN_GRACE_S=str(grace_s)) as live:
        uploads = [await half_upload(live) for _ in range(half_uploads)]
        answers = [asyncio.create_task(answer(live, *asked(i))) for i in range(streams)]
        await asyncio.sleep(0.3 + streams / 40)  # they have begun
        stopped = time.monotonic()
        live.process.send_signal(signal.SIGTERM)
        refusals = await refused(live)
        ends = await asyncio.gather(*answers)
        status = await asyncio.to_thread(live.process.wait, grace_s + 30)
        seconds = time.monotonic() - stopped
        rows = statuses(live)
        log = live.log.read_text()
        for upload in uploads:
            upload.close()
    figures = {
        "streams": streams,
        "ends": dict(Counter(ends)),
        "half_uploads": half_uploads,
        "refusals": refusals,
        "rows": rows,
        "exit_status": status,
        "seconds": round(seconds, 2),
    }
    return result(
        "sigterm",
        figures,
        {
            "every stream ended": not set(ends) & {"broken", "no end"},
            "some were told": "told" in ends and "finished" in ends,
            "new ones get 503 with Retry-After": refusals == {"answer": True, "ready": True},
            "status 0": status == 0,
            "in time": Check(figures["seconds"], grace_s + exit_s),
            "no row is left in progress": "in_progress" not in rows,
            "no tracebacks": "Traceback" not in log,
        },
    )


def asked(number: int) -> tuple[str, dict]:
    """What the client of this number asks for."""
    size = 10 if number % 2 else 4000
    kinds = [
        ("/v1/chat/completions", chat(size)),
        ("/v1/responses", response(size)),
        ("/v1/chat/completions", chat(size, stream=False)),
        ("/v1/responses", response(size, background=True)),
    ]
    return kinds[number // 2 % len(kinds)]


async def answer(server: LiveServer, path: str, body: dict) -> str:
    """How it ended for the client: finished, told, or broken."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(post(path, body))
    try:
        text = (await reader.read()).decode()
    except ConnectionResetError:
        return "broken"
    finally:
        writer.close()
    if body["stream"] and not text.endswith("0\r\n\r\n"):
        return "broken"
    if "shutting down" in text or "server_shutdown" in text:
        return "told"
    is_whole = "data: [DONE]" in text or '"finish_reason":"length"' in text
    return "finished" if is_whole else "no end"


async def half_upload(server: LiveServer) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head("/v1/chat/completions", 1000) + b'{"model": ')
    await writer.drain()
    return writer


async def refused(server: LiveServer) -> dict[str, bool]:
    """Whether new requests are told to come back, once the server knows of its end."""
    async with httpx2.AsyncClient(base_url=server.url, timeout=10) as client:
        ready = await client.get("/health/ready")
        while ready.status_code == 200:
            ready = await client.get("/health/ready")
        late = await client.post("/v1/chat/completions", json=chat(1))
    return {
        "answer": late.status_code == 503
        and int(late.headers["retry-after"]) > 0
        and late.json()["error"]["code"] == "server_is_overloaded",
        "ready": ready.status_code == 503,
    }


def statuses(server: LiveServer) -> dict[str, int]:
    """How many stored responses are in which state."""
    with sqlite3.connect(server.data_dir / "db.sqlite3") as database:
        rows = database.execute("SELECT status FROM openai_api_storedresponse").fetchall()
    database.close()
    return dict(Counter(status for (status,) in rows))
