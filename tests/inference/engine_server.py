"""An engine server in a thread of the tests' process, and clients of it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from inference.engine.address import listening
from inference.engine.client import EngineClient
from inference.engine.remote import SocketEngine
from inference.engine.server import EngineServer
from inference.request import Constraint
from inference.text.grammar import compiler_of

VERSION = "test"


@contextmanager
def served(engine: EngineClient, address: Path, version: str = VERSION) -> Iterator[EngineServer]:
    """The engine at the address; both end with the block."""
    servers: list[EngineServer] = []
    loops: list[asyncio.AbstractEventLoop] = []
    bound_now = threading.Event()

    def compile(spec: dict[str, Any]) -> Constraint:
        return compiler_of(engine.model).compile_spec(spec)

    async def serve() -> None:
        with listening(address) as listener:
            servers.append(EngineServer(engine, compile, version))
            loops.append(asyncio.get_running_loop())
            bound_now.set()
            await servers[0].run(listener)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="engine server")
    thread.start()
    assert bound_now.wait(5)
    try:
        yield servers[0]
    finally:
        with suppress(RuntimeError):  # it has ended by itself
            loops[0].call_soon_threadsafe(servers[0].stopping.set)
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def connected(
    address: Path, tokenizer: Any = None, version: str = VERSION
) -> Iterator[SocketEngine]:
    """A client, perhaps not ready yet."""
    client = SocketEngine(address, lambda place: tokenizer, version)
    try:
        yield client
    finally:
        client.close()
        assert not client._thread.is_alive()
