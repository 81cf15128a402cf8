"""The engine process: one engine for any number of clients, each with a connection of its own."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

from inference.engine import frames
from inference.engine.client import Backlog, EngineClient, Generation
from inference.errors import EngineError, EngineFailed, EngineNotReady
from inference.request import Constraint, Delta

logger = logging.getLogger(__name__)

Compile = Callable[[dict[str, Any]], Constraint]  # the `spec` of a constraint to the constraint
LOOK_INTERVAL_S = 0.05  # at what has changed without any output: stage of loading, statistics
SIGN_INTERVAL_S = 5.0  # after which there is something to say even if there is nothing new
STOP_S = 10.0  # for the last step to end
FAREWELL_S = 2.0  # for the last frames to be read


class EngineServer:
    """Serves `engine` until it ends or is told to stop."""

    def __init__(self, engine: EngineClient, compile: Compile, version: str) -> None:
        self.engine, self.compile, self.version = engine, compile, version
        self.stopping = asyncio.Event()
        self.connections: set[Connection] = set()
        self._numbers = count()

    async def run(self, listener: socket.socket) -> None:
        """Accept clients; when this returns, all of them know that the engine has ended."""
        server = await asyncio.start_unix_server(self._serve, sock=listener)
        logger.info("listening at %s; the model is loading", listener.getsockname())
        state = "loading"
        try:
            while not self.stopping.is_set() and state in ("loading", "ready"):
                for connection in self.connections:
                    connection.look()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), LOOK_INTERVAL_S)
                if state != (state := self.engine.status.state):
                    logger.info("%s", state)
        finally:
            server.close()
            # Loading cannot be stopped, and so not waited for
            timeout_s = 0 if state == "loading" else STOP_S
            await asyncio.to_thread(self.engine.close, timeout_s)
            await asyncio.gather(*[c.say_farewell() for c in list(self.connections)])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, next(self._numbers), reader, writer)
        self.connections.add(connection)
        try:
            await connection.serve()
        finally:
            self.connections.discard(connection)


class Connection:
    """One client's requests; what it has not ended when it leaves is aborted.

    Nothing is queued for a client that does not read: its generations merge what arrives.
    """

    def __init__(
        self,
        server: EngineServer,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._server, self._engine = server, server.engine
        self._prefix = f"{number}/"  # in the engine: clients know nothing of each other's ids
        self._reader, self._writer = reader, writer
        self._generations: dict[str, Generation] = {}
        self._compiling: dict[str, asyncio.Task[None]] = {}
        self._arrived: dict[str, Generation] = {}
        self._refused: list[tuple[str, EngineError]] = []
        self._due, self._gone = asyncio.Event(), asyncio.Event()
        self._knows_model = False
        self._told: Any = None
        self._told_at = 0.0
        self._sender: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Until the client leaves, or says what cannot be understood."""
        self._sender = asyncio.create_task(self._send())
        try:
            frames.check_hello(await frames.read(self._reader), self._server.version)
            while True:
                self._handle(*await frames.read(self._reader))
        except (EOFError, OSError):
            pass  # it has left
        except frames.ProtocolError as exc:
            logger.warning("a client is turned away: %s", exc)
        except Exception:
            logger.exception("a client is dropped")
        finally:
            self._sender.cancel()
            for request_id in [*self._compiling, *self._generations]:
                self._abort(request_id)
            self._writer.close()
            self._gone.set()

    def look(self) -> None:
        """Let the client know if anything has changed besides its own requests, or of our life."""
        if self._news() != self._told or time.monotonic() - self._told_at > SIGN_INTERVAL_S:
            self._due.set()

    async def say_farewell(self) -> None:
        """Tell the end, to a client that reads."""
        if self._sender is not None:
            self._sender.cancel()
        with suppress(OSError, TimeoutError):
            self._write_updates()
            self._writer.close()
            await asyncio.wait_for(self._writer.wait_closed(), FAREWELL_S)
        self._writer.transport.abort()
        await self._gone.wait()

    def _handle(self, kind: str, argument: Any) -> None:
        if kind == "abort":
            self._abort(argument)
        elif kind != "add":
            raise frames.ProtocolError(f"there is no message {str(kind)[:100]!r}")
        elif argument["constraint"] is None:
            self._add(argument, None)
        else:
            task = asyncio.create_task(self._compile_and_add(argument))
            self._compiling[argument["request_id"]] = task

    async def _compile_and_add(self, facts: dict[str, Any]) -> None:
        request_id = facts["request_id"]
        try:
            constraint = await asyncio.to_thread(self._server.compile, facts["constraint"])
            self._add(facts, constraint)
        except EngineError as exc:
            self._refuse(request_id, exc)
        except Exception:
            logger.exception("a grammar could not be compiled")
            self._refuse(request_id, EngineFailed("The grammar could not be compiled."))
        finally:
            self._compiling.pop(request_id, None)

    def _add(self, facts: dict[str, Any], constraint: Constraint | None) -> None:
        request_id = facts["request_id"]
        request = frames.request_of(facts | {"request_id": self._prefix + request_id}, constraint)
        try:
            self._engine.check_capacity(owner=request.owner)  # of all clients together
            self._generations[request_id] = self._engine.generate(request, self._note)
        except EngineError as exc:  # full, or about to stop
            self._refuse(request_id, exc)

    def _abort(self, request_id: str) -> None:
        if (task := self._compiling.pop(request_id, None)) is not None:
            task.cancel()
        if (generation := self._generations.pop(request_id, None)) is not None:
            self._arrived.pop(request_id, None)
            generation.abort()

    def _refuse(self, request_id: str, error: EngineError) -> None:
        self._refused.append((request_id, error))
        self._due.set()

    def _note(self, generation: Generation) -> None:
        request_id = generation.request.request_id.removeprefix(self._prefix)
        if request_id in self._generations:
            self._arrived[request_id] = generation
            self._due.set()

    async def _send(self) -> None:
        self._writer.write(frames.hello(self._server.version))
        try:
            while True:
                self._write_updates()
                await self._writer.drain()
                await self._due.wait()
        except OSError:
            pass  # it has left, as `serve` finds out
        except Exception:
            logger.exception("a client is dropped")
            self._writer.transport.abort()

    def _write_updates(self) -> None:
        """Everything that the client does not know yet."""
        self._due.clear()
        self._told, self._told_at = self._news(), time.monotonic()
        if self._told[0] == "ready" and not self._knows_model:
            with suppress(EngineNotReady):  # it stops just now
                facts = frames.model_facts(self._engine.model)
                self._writer.write(frames.encode("model", facts, self._engine.limits))
                self._knows_model = True
        outputs, self._refused = self._refused + self._taken(), []
        for part in self._encoded([frames.output_facts(*output) for output in outputs]):
            self._writer.write(part)

    def _news(self) -> tuple[str, str, Backlog, dict[str, Any]]:
        engine = self._engine
        status, stats = engine.status, frames.facts_of(engine.stats)
        return status.state, status.stage, engine.backlog, stats

    def _taken(self) -> list[tuple[str, Delta | EngineError]]:
        """What has arrived for the requests since the last frame."""
        outputs: list[tuple[str, Delta | EngineError]] = []
        for request_id, generation in self._arrived.items():
            while generation.has_arrived:
                try:
                    outputs.append((request_id, generation.take()))
                except EngineError as exc:
                    outputs.append((request_id, exc))
            if generation.has_ended:
                del self._generations[request_id]
        self._arrived.clear()
        return outputs

    def _encoded(self, outputs: list[tuple[Any, ...]]) -> list[bytes]:
        """One frame, or more where one would be too large."""
        try:
            return [frames.encode("update", *self._told, outputs)]
        except frames.FrameTooLarge as exc:
            if len(outputs) > 1:
                middle = len(outputs) // 2
                return self._encoded(outputs[:middle]) + self._encoded(outputs[middle:])
            logger.error("an answer is too large to be sent: %s", exc)
            self._abort(outputs[0][0])
            error = EngineFailed("The answer is too large.")
            return self._encoded([frames.output_facts(outputs[0][0], error)])
