"""An engine in threads of this process: one computes, and one watches it."""

import ctypes
import faulthandler
import logging
import queue
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from inference.engine.client import EngineClient, QueueLimits
from inference.engine.core import EngineCore
from inference.errors import EngineFailed, EngineLost, ModelLoadError
from inference.request import ModelInfo, Request

logger = logging.getLogger(__name__)

Report = Callable[[str], None]  # one line on what loading does now
Load = Callable[[Report], tuple[EngineCore, ModelInfo]]
Command = Request | str | None  # to be added; to be aborted, by its id; None is the end
MAX_RESTARTS, RESTARTS_WITHIN_S = 3, 600.0
LOOKS = 20  # of the watching thread, within the time that a step may take


@dataclass(eq=False)
class Life:
    """The computing thread, from loading to its end, as the watching one sees it."""

    inbox: queue.SimpleQueue[Command] = field(default_factory=queue.SimpleQueue)
    core: EngineCore | None = None
    is_busy: bool = False  # with something that should not take long
    num_beats: int = 0  # grows while it gets on
    is_given_up: bool = False
    cause: str = ""  # of its end, unless it was told to end

    def left(self) -> list[Command]:
        """What the next one can do: what nobody has begun with, and what is in the inbox.

        If it has not computed anything at all, what it took in may be the reason.
        """
        left: list[Command] = []
        if self.core is not None and self.core.stats().num_steps:
            waiting = list(self.core.scheduler.waiting)
            left += [seq.request for seq in waiting if seq.has_not_begun]
        while not self.inbox.empty():
            left.append(self.inbox.get())
        return left


class ThreadEngine(EngineClient):
    """Runs an `EngineCore` in a thread of this process.

    The thread loads the model, then steps while there is work. Everybody else puts commands into
    its inbox. If it dies, or no step has ended for `step_timeout_s` seconds (0 for no limit), it
    is left alone, and another one goes on with a core that `load` makes anew: what was running
    fails with EngineLost, what waited still does. When MAX_RESTARTS within RESTARTS_WITHIN_S have
    not helped, the engine is broken. `on_failure` is told of that, with an EngineFailed, and of a
    model that cannot be loaded, with the reason.
    """

    def __init__(
        self,
        load: Load,
        limits: QueueLimits,
        on_failure: Callable[[BaseException], None] = lambda exc: None,
        step_timeout_s: float = 60,
    ) -> None:
        super().__init__(limits)
        self._load, self._on_failure, self._step_timeout_s = load, on_failure, step_timeout_s
        self._life, self._lock, self._num_restarts = Life(), threading.Lock(), 0
        self._thread = threading.Thread(target=self._watch, name="engine watch", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 10) -> None:
        """Stop the threads; what is unfinished fails."""
        if self.status.state == "loading":
            self.status.state = "stopped"
        self._put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _submit(self, request: Request) -> None:
        self._put(request)

    def _withdraw(self, request_id: str) -> None:
        self._put(request_id)

    def _put(self, command: Command) -> None:
        with self._lock:
            self._life.inbox.put(command)

    def _report(self, stage: str) -> None:
        self.status.stage = stage

    # In the thread that watches

    def _watch(self) -> None:
        restarts: deque[float] = deque(maxlen=MAX_RESTARTS)
        while not self._ends_as_told(self._life):
            if self._model is None:
                return  # it could not be loaded
            if len(restarts) == MAX_RESTARTS and time.monotonic() - restarts[0] < RESTARTS_WITHIN_S:
                self._break()
                return
            restarts.append(time.monotonic())
            self._restart()
        self.status.state, self.status.stage = "stopped", "the engine has stopped"
        self._fail_all(EngineFailed("The engine has stopped."))

    def _ends_as_told(self, life: Life) -> bool:
        """Start its thread, and wait until that ends or has to be given up."""
        thread = threading.Thread(target=self._run, args=[life], name="engine", daemon=True)
        thread.start()
        num_beats = num_looks = 0
        while thread.is_alive():
            thread.join((self._step_timeout_s or 60) / LOOKS)
            # Looks and not seconds are counted: those go by too while all of the process is stopped
            is_stuck = life.is_busy and life.num_beats == num_beats
            num_beats, num_looks = life.num_beats, num_looks + 1 if is_stuck else 0
            if num_looks > LOOKS and self._step_timeout_s:
                life.is_given_up = True
                life.cause = f"no step has ended for {self._step_timeout_s:g} seconds"
                logger.error("%s; all threads:", life.cause)
                for line in stacks():
                    logger.error("%s", line)
                interrupt(thread)
                break
        return not life.cause

    def _restart(self) -> None:
        self._num_restarts += 1
        logger.error("the engine is restarted: %s", self._life.cause)
        if self.status.state != "stopped":  # by who is about to close it
            self.status.state, self.status.stage = "loading", f"restarting: {self._life.cause}"
        with self._lock:
            commands, self._life = self._life.left(), Life(is_busy=True)
            for command in commands:
                self._life.inbox.put(command)
        kept = {command.request_id for command in commands if isinstance(command, Request)}
        self._fail_all(EngineLost("The engine had to be restarted."), but=kept)

    def _break(self) -> None:
        error = EngineFailed(f"Restarting the engine does not help: {self._life.cause}.")
        logger.critical("%s", error)
        self.status.state, self.status.stage = "broken", f"the engine is broken: {self._life.cause}"
        self._fail_all(error)
        self._on_failure(error)

    # In the thread that computes

    def _run(self, life: Life) -> None:
        try:
            life.core, model = self._load(self._report)
        except BaseException as exc:
            self._load_failed(life, exc)
            return
        self._model = self._model or model
        life.core.num_restarts = self._num_restarts
        self.stats = life.core.stats()
        if self.status.state == "loading" and not life.is_given_up:
            self.status.state, self.status.stage = "ready", "ready"
        try:
            while self._run_commands(life, life.core):
                if (outputs := life.core.step()) and not life.is_given_up:
                    self.stats = life.core.stats()
                    self._publish(outputs)
        except BaseException as exc:
            if not life.is_given_up:
                logger.exception("the engine has died")
                life.cause = f"the engine has died ({type(exc).__name__})"

    def _run_commands(self, life: Life, core: EngineCore) -> bool:
        """Do what is in the inbox; with nothing to compute, wait for it. False to stop."""
        life.num_beats += 1
        while not life.inbox.empty() or not core.has_work:
            life.is_busy = False
            command = life.inbox.get()
            life.is_busy = True
            life.num_beats += 1
            if command is None:
                return False
            if isinstance(command, str):
                core.abort(command)
            elif command.request_id in self._generations:  # neither aborted nor failed by now
                core.add(command)
            self.stats = core.stats()
        return not life.is_given_up

    def _load_failed(self, life: Life, exc: BaseException) -> None:
        if self.status.state == "stopped" or life.is_given_up:
            return  # closed while loading, say: nobody wants to know
        life.cause = f"it could not be loaded ({exc})"
        if isinstance(exc, ModelLoadError):
            logger.error("%s", exc)
        else:
            logger.error("the model could not be loaded", exc_info=exc)
        if self._model is None:
            self.status.state, self.status.stage = "failed", life.cause
            self._on_failure(exc)


def stacks() -> list[str]:
    """What every thread is doing."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read().splitlines()


def interrupt(thread: threading.Thread) -> None:
    """End it as soon as it executes Python again."""
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    raise_in(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
