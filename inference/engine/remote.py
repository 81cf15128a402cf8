"""An engine in a process of its own, as its clients see it."""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from inference.engine import frames
from inference.engine.address import AddressRefused, check_folder
from inference.engine.client import Backlog, EngineClient, QueueLimits
from inference.errors import EngineFailed, EngineLost, InvalidPrompt, ModelLoadError
from inference.metrics import EngineStats
from inference.request import Request

logger = logging.getLogger(__name__)

LoadTokenizer = Callable[[str], Any]  # from the folder that the engine process has it from
FIRST_RETRY_S, LAST_RETRY_S = 0.1, 2.0
SILENCE_S = 30.0  # after which a process is taken for dead that is still there


class SocketEngine(EngineClient):
    """Talks to the engine process at `address`, and connects again whenever that was away.

    A thread keeps the connection; what others send goes through its event loop.
    """

    def __init__(self, address: Path, load_tokenizer: LoadTokenizer, version: str) -> None:
        super().__init__(QueueLimits())  # until it is told others
        self._address, self._load_tokenizer, self._version = address, load_tokenizer, version
        self._writer: asyncio.StreamWriter | None = None
        self._retry_s, self._reason = FIRST_RETRY_S, ""
        self._shared = Backlog()
        self._loop = asyncio.new_event_loop()
        self._session = self._loop.create_task(self._stay_connected())
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 10) -> None:
        """Leave the engine process, which goes on without what is unfinished here."""
        self._soon(self._session.cancel)
        self._thread.join(timeout_s)

    @property
    def backlog(self) -> Backlog:
        """Of all that share the engine, as far as is known here: it has the last word."""
        return Backlog(*map(max, super().backlog, self._shared))

    def _submit(self, request: Request) -> None:
        try:
            frame = frames.encode("add", frames.request_facts(request))
        except frames.FrameTooLarge as exc:
            self._generations.pop(request.request_id, None)
            raise InvalidPrompt("The request is too large for the engine.") from exc
        self._soon(self._send_request, request.request_id, frame)

    def _withdraw(self, request_id: str) -> None:
        self._soon(self._send, frames.encode("abort", request_id))

    def _soon(self, function: Callable[..., object], *arguments: Any) -> None:
        with suppress(RuntimeError):  # closed; `generate` looks at the status
            self._loop.call_soon_threadsafe(function, *arguments)

    # In the thread

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._session)
        self.status.state, self.status.stage = "stopped", "the engine has stopped"
        self._loop.close()
        self._fail_all(EngineFailed("The engine has stopped."))

    async def _stay_connected(self) -> None:
        while True:
            try:
                await self._connection()
            except (EOFError, ConnectionError, FileNotFoundError):
                self._is_away(f"waiting for the engine process at {self._address}")
            except (frames.ProtocolError, AddressRefused, ModelLoadError, OSError) as exc:
                self._is_away(f"the engine process at {self._address} cannot be used: {exc}")
            except Exception as exc:
                logger.exception("what the engine process says cannot be understood")
                self._is_away(f"the engine process at {self._address} cannot be used: {exc!r}")
            await asyncio.sleep(self._retry_s)
            self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)

    async def _connection(self) -> None:
        """From greeting to loss."""
        check_folder(self._address)
        reader, writer = await asyncio.open_unix_connection(str(self._address))
        try:
            writer.write(frames.hello(self._version))
            frames.check_hello(await self._read(reader), self._version)
            self._writer = writer
            while True:
                self._handle(*await self._read(reader))
        finally:
            self._writer = None
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> tuple[Any, ...]:
        try:
            async with asyncio.timeout(SILENCE_S):
                return await frames.read(reader)
        except TimeoutError as exc:
            raise TimeoutError(f"it has said nothing for {SILENCE_S:g} seconds") from exc

    def _handle(self, kind: str, *arguments: Any) -> None:
        if kind == "model":
            self._take_model(*arguments)
        elif kind == "update":
            self._take_update(*arguments)
        else:
            raise frames.ProtocolError(f"there is no message {str(kind)[:100]!r}")

    def _take_model(self, facts: dict[str, Any], limits: tuple[int, int]) -> None:
        self.status.stage = "loading the tokenizer"
        self._model = frames.model_of(facts, self._load_tokenizer(facts["tokenizer"]))
        self.limits = QueueLimits(*limits)
        self._retry_s, self._reason = FIRST_RETRY_S, ""
        logger.info("%s is served by the engine process at %s", facts["name"], self._address)

    def _take_update(
        self,
        state: str,
        stage: str,
        backlog: tuple[int, int, int],
        stats: dict[str, Any],
        outputs: tuple[Any, ...],
    ) -> None:
        self._shared, self.stats = Backlog(*backlog), EngineStats(**stats)
        if state in ("ready", "broken"):
            self.status.state, self.status.stage = state, stage
        else:  # also where it has failed: another one may take its place
            self.status.state, self.status.stage = "loading", f"engine process: {stage}"
        self._publish([frames.output_of(*output) for output in outputs])

    def _is_away(self, reason: str) -> None:
        if reason != self._reason:  # once, however often it is tried
            logger.warning("%s", reason)
        self._reason = reason
        self.status.state, self.status.stage = "loading", reason
        self._fail_all(EngineLost("The engine process has gone."))

    def _send_request(self, request_id: str, frame: bytes) -> None:
        if request_id not in self._generations:
            return  # aborted already
        if self._writer is None:
            self._publish([(request_id, EngineLost("The engine process has gone."))])
        else:
            self._writer.write(frame)

    def _send(self, frame: bytes) -> None:
        if self._writer is not None:
            self._writer.write(frame)
