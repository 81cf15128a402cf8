"""An engine in a thread of this process."""

import logging
import queue
import threading
from collections.abc import Callable

from inference.engine.client import EngineClient, QueueLimits
from inference.engine.core import EngineCore
from inference.errors import EngineFailed, ModelLoadError
from inference.request import ModelInfo, Request

logger = logging.getLogger(__name__)

Report = Callable[[str], None]  # one line on what loading does now
Load = Callable[[Report], tuple[EngineCore, ModelInfo]]


class ThreadEngine(EngineClient):
    """Runs an `EngineCore` in a thread of this process.

    The thread loads the model, then steps while there is work. Everybody else puts commands into
    its inbox.
    """

    def __init__(
        self,
        load: Load,
        limits: QueueLimits,
        on_failure: Callable[[BaseException], None] = lambda exc: None,
    ) -> None:
        super().__init__(limits)
        self._load, self._on_failure = load, on_failure
        self._inbox: queue.SimpleQueue[Callable[[EngineCore], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 10) -> None:
        """Stop the thread; what is unfinished fails."""
        if self.status.state == "loading":
            self.status.state = "stopped"
        self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _submit(self, request: Request) -> None:
        self._inbox.put(lambda core: core.add(request))

    def _withdraw(self, request_id: str) -> None:
        self._inbox.put(lambda core: core.abort(request_id))

    def _run(self) -> None:
        try:
            core, self._model = self._load(self._report)
        except BaseException as exc:
            self._load_failed(exc)
            return
        if self.status.state == "loading":
            self.status.state, self.status.stage = "ready", "ready"
        try:
            while self._run_commands(core):
                if outputs := core.step():
                    self.stats = core.stats()
                    self._publish(outputs)
        except BaseException:
            logger.exception("the engine has died")
        finally:
            self.status.state, self.status.stage = "stopped", "the engine has stopped"
            self._fail_all(EngineFailed("The engine has stopped."))

    def _run_commands(self, core: EngineCore) -> bool:
        """Do what is in the inbox; with nothing to compute, wait for it. False to stop."""
        while not self._inbox.empty() or not core.has_work:
            if (command := self._inbox.get()) is None:
                return False
            command(core)
            self.stats = core.stats()
        return True

    def _report(self, stage: str) -> None:
        self.status.stage = stage

    def _load_failed(self, exc: BaseException) -> None:
        if self.status.state == "stopped":  # closed while loading: nobody wants to know
            return
        self.status.state, self.status.stage = "failed", f"it could not be loaded ({exc})"
        if isinstance(exc, ModelLoadError):
            logger.error("%s", exc)
        else:
            logger.error("the model could not be loaded", exc_info=exc)
        self._on_failure(exc)
