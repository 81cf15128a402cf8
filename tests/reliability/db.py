"""The database is locked, its disk full, or (PostgreSQL) away, while clients store responses."""

import asyncio
import random
import resource
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import openai

from tests import postgres
from tests.helpers import LiveServer, live_server
from tests.reliability.kill9 import compared, create, ended, examined, keep
from tests.reliability.programme import Check, awake, idle_after, result

OPTIONS = {"NANOLLM_KV_CACHE_MEMORY": "64MiB"}
ENDS = ("response.completed", "response.incomplete", "response.failed")
BACK_S = 5.0
PATIENCE_S = 600.0


async def run(clients: int = 16, seconds: float = 10, seed: int = 0) -> dict:
    """Each fault lasts so many seconds, with as long before and after it."""
    figures: dict[str, dict] = {}
    for fault in ("locked", "full", "away"):
        if fault != "away" or postgres.binaries() is not None:
            figures[fault] = await of(fault, clients, seconds, random.Random(seed))
    found = list(figures.values())
    checks = {
        f"{what} responses": Check(sum(figure[what] for figure in found), 0)
        for what in ("lost", "changed", "unended")
    }
    checks["answers that are no 503 and no failure"] = Check(
        sum(figure["odd"] for figure in found), 0
    )
    checks["seconds until the next is stored"] = Check(
        max(figure["back_s"] for figure in found), BACK_S
    )
    return result(
        "db",
        figures,
        checks
        | {
            "something was stored": all(figure["stored"] for figure in found),
            "the engine is idle in the end": all(figure["idle"] for figure in found),
            "SQLite's database is whole": all(
                figure.get("integrity_check", "ok") == "ok" for figure in found
            ),
        },
    )


async def of(fault: str, clients: int, seconds: float, chance: random.Random) -> dict:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options, cluster = OPTIONS, None
        if fault == "away":
            cluster = stack.enter_context(postgres.cluster())
            options = OPTIONS | {"NANOLLM_DATABASE_URL": cluster.database("served")}
        with live_server(folder, **options) as server:
            store = Clients(server, chance)
            working = asyncio.create_task(store.work(clients, 3 * seconds))
            await awake(seconds)
            with {"locked": locked, "full": full, "away": away}[fault](server, cluster):
                await awake(seconds)
            back_s = await stored_after(server)
            await working
            figures = await ended(server, store.background)
            figures += await compared(server, store.seen, chance)
            idle = await idle_after(server) < PATIENCE_S
        found = {"stored": len(store.seen), "background": len(store.background)}
        found |= {name: figures[name] for name in ("lost", "changed", "unended")}
        found |= {"told": dict(store.told), "odd": store.odd}
        found |= {"back_s": round(back_s, 2), "idle": idle}
        if cluster is None:
            found["integrity_check"], _ = examined(folder / "db.sqlite3")
    return found


class Clients:
    """They store responses, and remember what they were told was stored."""

    def __init__(self, server: LiveServer, chance: random.Random) -> None:
        self._server, self._chance = server, chance
        self.seen: dict[str, str] = {}
        self.background: set[str] = set()
        self.told: Counter[str] = Counter()
        self.odd = 0

    async def work(self, clients: int, seconds: float) -> None:
        async with asyncio.TaskGroup() as group:
            end = group.create_task(awake(seconds))
            for number in range(clients):
                group.create_task(self._work(number, end))

    async def _work(self, number: int, end: asyncio.Task[None]) -> None:
        kinds = [self._whole, self._streamed, self._background]
        async with self._server.async_client() as client:
            client = client.with_options(timeout=PATIENCE_S)
            while not end.done():
                number += 1
                size = self._chance.choice([1, 5, 20, 60])
                try:
                    await kinds[number % 3](client, max_output_tokens=size)
                except openai.APIStatusError as exc:
                    self._tell(str(exc.status_code), exc.status_code == 503)
                except openai.APIError as exc:  # an event of a stream
                    self._tell("error", exc.type == "server_error")
                await asyncio.sleep(0.05)

    def _tell(self, what: str, is_proper: bool) -> None:
        self.told[what] += 1
        self.odd += not is_proper

    async def _whole(self, client: openai.AsyncOpenAI, **options) -> None:
        self._keep(await create(client, **options))

    async def _streamed(self, client: openai.AsyncOpenAI, **options) -> None:
        async for event in await create(client, stream=True, **options):
            if event.type in ENDS:
                self._keep(event.response)

    async def _background(self, client: openai.AsyncOpenAI, **options) -> None:
        self.background.add((await create(client, background=True, **options)).id)

    def _keep(self, response: openai.types.responses.Response) -> None:
        if response.status == "failed":
            self._tell("failed", True)
        else:
            keep(self.seen, response)


async def stored_after(server: LiveServer) -> float:
    """Seconds until a response is stored again."""
    began = time.monotonic()
    async with server.async_client() as client:
        while time.monotonic() < began + 60:
            try:
                await create(client, max_output_tokens=1)
                break
            except openai.APIError:
                await asyncio.sleep(0.05)
    return time.monotonic() - began


@contextmanager
def locked(server: LiveServer, _: None) -> Iterator[None]:
    """Another program holds SQLite's lock for writing."""
    other = sqlite3.connect(server.data_dir / "db.sqlite3", timeout=60, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.rollback()
    other.close()


@contextmanager
def full(server: LiveServer, _: None) -> Iterator[None]:
    """No file of the server may be written beyond its first page: the system refuses it."""
    pid = server.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@contextmanager
def away(server: LiveServer, cluster: postgres.Cluster) -> Iterator[None]:
    """PostgreSQL has crashed, and is started again."""
    cluster.stop()
    try:
        yield
    finally:
        cluster.start()
