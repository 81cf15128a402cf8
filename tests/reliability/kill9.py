"""The server is killed, again and again, while it answers, stores, and works in the background."""

import asyncio
import random
import sqlite3
import tempfile
import time
from collections import Counter
from pathlib import Path

import openai
from openai.types.responses import Response

from tests.helpers import LiveServer, live_server
from tests.reliability.programme import MODEL, Check, result

OPTIONS = {"NANOLLM_KV_CACHE_MEMORY": "64MiB"}


async def run(cycles: int = 50, clients: int = 16, seed: int = 0, alive_s: float = 2) -> dict:
    """Each cycle lasts up to `alive_s` seconds. Every start looks at what the last one left."""
    chance, figures, seen = random.Random(seed), Counter(), {}
    background: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        for cycle in range(cycles + 1):
            with live_server(Path(folder), **OPTIONS) as server:
                started = time.monotonic()
                figures += await compared(server, seen, chance)
                if cycle == cycles:
                    figures += await ended(server, background)
                await asyncio.sleep(max(0, 2 - (time.monotonic() - started)))
                figures["stale"] += num_stale(server)
                if cycle < cycles:
                    await killed(server, clients, chance, alive_s, seen, background)
        integrity, num_batches = examined(Path(folder) / "db.sqlite3")
    found = {"cycles": cycles, "completed": len(seen), "background": len(background)}
    found |= {name: figures[name] for name in ("lost", "changed", "stale", "unended", "failed")}
    return result(
        "kill9",
        found | {"integrity_check": integrity, "event_batches": num_batches},
        {
            "something was completed": bool(seen) and bool(background),
            "nothing was lost": Check(found["lost"], 0),
            "nothing was changed": Check(found["changed"], 0),
            "nothing stale 2 s after the start": Check(found["stale"], 0),
            "background responses end": Check(found["unended"], 0),
            "the database is whole": integrity == "ok",
        },
    )


async def killed(
    server: LiveServer,
    clients: int,
    chance: random.Random,
    alive_s: float,
    seen: dict[str, str],
    background: set[str],
) -> None:
    """Let clients work on the server until it is killed."""
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(work(server, random.Random(chance.random()), seen, background))
            if number == clients - 1:
                group.create_task(kill(server, chance.uniform(0.2, 1) * alive_s))


async def kill(server: LiveServer, delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    server.process.kill()
    await asyncio.to_thread(server.process.wait)


async def work(
    server: LiveServer, chance: random.Random, seen: dict[str, str], background: set[str]
) -> None:
    """One client: stored responses, whole or streamed, and some in the background."""
    async with server.async_client() as client:
        while True:
            options = {"max_output_tokens": chance.choice([1, 5, 20, 60]), "temperature": 0.8}
            try:
                if chance.random() < 0.2:
                    started = await create(client, background=True, **options)
                    background.add(started.id)
                elif chance.random() < 0.5:
                    keep(seen, await create(client, **options))
                else:
                    async for event in await create(client, stream=True, **options):
                        if event.type in ("response.completed", "response.incomplete"):
                            keep(seen, event.response)
            except (openai.APIError, OSError):
                return  # it has been killed


async def create(client: openai.AsyncOpenAI, **options):
    return await client.responses.create(model=MODEL, input="Say something.", **options)


def keep(seen: dict[str, str], response: Response) -> None:
    seen[response.id] = response.to_json()


async def compared(server: LiveServer, seen: dict[str, str], chance: random.Random) -> Counter:
    """What clients have seen the end of is there, as they have seen it."""
    found = Counter()
    async with server.async_client() as client:
        for response_id in chance.sample(sorted(seen), min(len(seen), 200)):
            try:
                stored = await client.responses.retrieve(response_id)
                found["changed"] += stored.to_json() != seen[response_id]
            except openai.NotFoundError:
                found["lost"] += 1
    return found


async def ended(server: LiveServer, background: set[str], timeout_s: float = 60) -> Counter:
    """Every background response comes to its end."""
    found, deadline = Counter(), time.monotonic() + timeout_s
    async with server.async_client() as client:
        for response_id in background:
            status = "queued"
            while status in ("queued", "in_progress") and time.monotonic() < deadline:
                status = (await client.responses.retrieve(response_id)).status
                await asyncio.sleep(0.02)
            found["unended"] += status in ("queued", "in_progress")
            found["failed"] += status == "failed"
    return found


def num_stale(server: LiveServer) -> int:
    """Rows that say they are worked on, and nobody does: their server is gone."""
    with sqlite3.connect(server.data_dir / "db.sqlite3") as database:
        boots = database.execute(
            "SELECT boot_id, background FROM openai_api_storedresponse"
            " WHERE status IN ('queued', 'in_progress')"
        ).fetchall()
    database.close()
    newest = {boot_id for boot_id, is_background in boots if is_background}
    return sum(not is_background for _, is_background in boots) + max(len(newest) - 1, 0)


def examined(path: Path) -> tuple[str, int]:
    """SQLite's own judgement, and how many batches of events there are."""
    with sqlite3.connect(path) as database:
        (integrity,) = database.execute("PRAGMA integrity_check").fetchone()
        (count,) = database.execute("SELECT count(*) FROM openai_api_eventbatch").fetchone()
    database.close()
    return integrity, count
