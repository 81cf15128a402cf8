"""The engine as the rest of the server sees it: requests in, async streams of deltas out."""

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import NamedTuple, Self

from inference.engine.core import Output
from inference.errors import (
    EngineError,
    EngineFailed,
    EngineNotReady,
    EngineOverloaded,
    InvalidPrompt,
    PromptTooLong,
    ShuttingDown,
)
from inference.metrics import EngineStats
from inference.request import Delta, ModelInfo, Request

OnArrival = Callable[["Generation"], None]
Arrivals = list[tuple["Generation", Delta | EngineError]]  # for one event loop


@dataclass(slots=True)
class EngineStatus:
    """Where the engine is, and a line on why, for those who are told that it is not ready.

    `state` is loading (again, perhaps), ready, failed (to load), stopped, or broken: it dies
    whenever it is restarted.
    """

    state: str = "loading"
    stage: str = "starting"


class QueueLimits(NamedTuple):
    """How much there may be for an engine to do; beyond that requests are refused."""

    num_unfinished: int = 0  # requests, waiting and running
    num_queued_tokens: int = 10**9  # of prompts whose answers have not begun


class Backlog(NamedTuple):
    """How much there is to do, and how long what waits will take: a guess, in whole seconds."""

    num_unfinished: int = 0
    num_queued_tokens: int = 0
    wait_s: int = 0


class Place:
    """Room for a request that is being prepared; to be left when it is queued, or given up."""

    def __init__(self, engine: "EngineClient", owner: str) -> None:
        self.owner, self._engine = owner, engine
        engine._places.add(self)

    def leave(self) -> None:
        self._engine._places.discard(self)


class Generation:
    """The caller's end of a sequence. Use `async with`: leaving the block aborts what is left.

    Iterating gives one `Delta` for what has come since the last one: a slow reader gets fewer and
    larger ones, never an unbounded queue.
    """

    def __init__(
        self, engine: "EngineClient", request: Request, on_arrival: OnArrival | None = None
    ) -> None:
        self.request = request
        self.loop = asyncio.get_running_loop()
        self._engine, self._on_arrival = engine, on_arrival
        self._arrived = asyncio.Event()
        self._delta: Delta | None = None
        self._error: EngineError | None = None
        self.has_ended = False
        self.is_queued = True  # until the engine has something to say to it

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.abort()

    def abort(self) -> None:
        """End the sequence, if it has not ended; its blocks are free before the next step."""
        if not self.has_ended:
            self._engine.abort(self.request.request_id)

    def cancel(self) -> None:
        """Abort, and let the reader fail; callable from any thread."""
        self.abort()
        error = EngineFailed("The generation was cancelled.")
        self.loop.call_soon_threadsafe(self.deliver, error)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        if self.has_ended:
            raise StopAsyncIteration
        await self._arrived.wait()
        return self.take()

    async def begun(self) -> None:
        """Wait for the first delta, which stays to be taken. Raises what came instead."""
        await self._arrived.wait()
        if self._delta is None and self._error is not None:
            raise self._error

    @property
    def has_arrived(self) -> bool:
        """Whether there is something to take."""
        return self._arrived.is_set() and not self.has_ended

    def take(self) -> Delta:
        """What has come since the last time. If that is nothing, raises what ended the sequence."""
        delta, self._delta = self._delta, None
        if delta is None:
            self.has_ended = True
            raise self._error or EngineFailed("The engine has stopped.")
        if self._error is None:  # else the next turn finds the error
            self._arrived.clear()
        self.has_ended = delta.finish_reason is not None
        return delta

    def deliver(self, item: Delta | EngineError) -> None:
        """Take over what a step brought (in the event loop's thread)."""
        if isinstance(item, EngineError):
            self._error = item
        elif self._delta is None:
            self._delta = item
        else:
            self._delta.extend(item)
        self._arrived.set()
        if self._on_arrival:
            self._on_arrival(self)


class EngineClient:
    """What the rest of the server knows of an engine, wherever it runs.

    A subclass brings requests to it, sets `status` and `stats`, and publishes what each step has
    brought: that reaches every event loop in one wake-up.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self.status, self.stats, self.limits = EngineStatus(), EngineStats(), limits
        self.is_draining = False  # set to take no more requests; what is here goes on
        self._generations: dict[str, Generation] = {}
        self._places: set[Place] = set()
        self._ends: deque[float] = deque(maxlen=64)  # of requests, since the engine was idle
        self._model: ModelInfo | None = None

    @property
    def model(self) -> ModelInfo:
        """Facts about the loaded model. Raises EngineNotReady until there is one."""
        if self.status.state != "ready" or self._model is None:
            raise EngineNotReady(f"The model is not ready: {self.status.stage}.")
        return self._model

    @property
    def backlog(self) -> Backlog:
        """Of those requests that are known here."""
        queued = self._queued()
        num_tokens = sum(len(request.prompt_token_ids) for request in queued)
        return Backlog(len(self._generations), num_tokens, self._wait_s(len(queued)))

    def admit(self, owner: str = "") -> Place:
        """A place for a request. Raises what `check_capacity` raises."""
        self.check_capacity(1, owner)
        return Place(self, owner)

    def check_capacity(self, num_requests: int = 1, owner: str = "") -> None:
        """Raise EngineNotReady or EngineOverloaded; cheap enough to ask before tokenizing.

        An owner of whom nothing waits is always let in, so that nobody can fill the queue for all.
        """
        _ = self.model
        num_unfinished, num_queued_tokens, wait_s = self.backlog
        num_unfinished += len(self._places) + num_requests
        is_full = (
            num_unfinished > self.limits.num_unfinished
            or num_queued_tokens >= self.limits.num_queued_tokens
        )
        if is_full and not (owner and self._waits_for_nothing(owner)):
            message = "The server's queue is full. Please try again later."
            raise EngineOverloaded(message, wait_s)

    def _waits_for_nothing(self, owner: str) -> bool:
        waiting = {request.owner for request in self._queued()}
        return owner not in waiting | {place.owner for place in list(self._places)}

    def _queued(self) -> list[Request]:
        generations = list(self._generations.values())  # at once: other threads change it
        return [generation.request for generation in generations if generation.is_queued]

    def _wait_s(self, num_queued: int) -> int:
        """As long as so many took; where none has ended, as long again as all have been waiting."""
        if not (num_queued and (ends := list(self._ends))):
            return 0
        elapsed_s, num_ended = time.monotonic() - ends[0], len(ends) - 1
        return math.ceil(elapsed_s * num_queued / num_ended if num_ended else elapsed_s)

    def check_prompt(self, token_ids: list[int], max_tokens: int | None = None) -> None:
        """Raise InvalidPrompt or PromptTooLong if the model cannot continue these tokens."""
        model = self.model
        if not token_ids:
            raise InvalidPrompt("The prompt is empty.")
        if not (min(token_ids) >= 0 and max(token_ids) < model.vocab_size):
            raise InvalidPrompt(f"Token ids must be between 0 and {model.vocab_size - 1}.")
        if len(token_ids) > model.max_model_len - (max_tokens != 0):
            raise PromptTooLong(
                f"This model's maximum context length is {model.max_model_len} tokens. However, "
                f"your messages resulted in {len(token_ids)} tokens."
            )

    def generate(self, request: Request, on_arrival: OnArrival | None = None) -> Generation:
        """Queue a request, for which there was room. Raises what `check_prompt` raises."""
        token_ids = [*request.prompt_token_ids, *request.generated_token_ids]
        self.check_prompt(token_ids, request.params.max_tokens)
        generation = Generation(self, request, on_arrival)
        if not self._generations:
            self._ends.clear()
            self._ends.append(time.monotonic())
        self._generations[request.request_id] = generation
        self._submit(request)
        if self.status.state != "ready":  # it has stopped just now, perhaps without seeing this
            self._generations.pop(request.request_id, None)
            generation.deliver(EngineFailed("The engine has stopped."))
        return generation

    def abort(self, request_id: str) -> None:
        """Forget a request; its blocks are free before the next step. Callable from any thread."""
        if self._forget(request_id):
            self._withdraw(request_id)

    def dismiss(self) -> None:
        """End what is unfinished: its readers get what has come, and then ShuttingDown."""
        if self.status.state == "ready":
            self.status.state, self.status.stage = "stopped", "the server is shutting down"
        for request_id in list(self._generations):
            self._withdraw(request_id)
        self._fail_all(ShuttingDown())

    def close(self, timeout_s: float = 10) -> None:
        """Stop; what is unfinished fails."""
        raise NotImplementedError

    def _submit(self, request: Request) -> None:
        raise NotImplementedError

    def _withdraw(self, request_id: str) -> None:
        raise NotImplementedError

    def _forget(self, request_id: str) -> bool:
        if self._generations.pop(request_id, None) is None:
            return False
        self._ends.append(time.monotonic())
        return True

    def _publish(self, outputs: list[Output]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, Arrivals] = defaultdict(list)
        for request_id, item in outputs:
            if (generation := self._generations.get(request_id)) is None:
                continue  # aborted while the step ran
            by_loop[generation.loop].append((generation, item))
            generation.is_queued = False
            if isinstance(item, EngineError) or item.finish_reason:
                self._forget(request_id)
        for loop, items in by_loop.items():
            self._wake(loop, items)

    def _wake(self, loop: asyncio.AbstractEventLoop, items: Arrivals) -> None:
        try:
            loop.call_soon_threadsafe(_deliver, items)
        except RuntimeError:  # the loop is closed, nobody will read this
            for generation, _ in items:
                self.abort(generation.request.request_id)

    def _fail_all(self, error: EngineError, but: Container[str] = ()) -> None:
        self._publish([(key, error) for key in list(self._generations) if key not in but])


def _deliver(items: Arrivals) -> None:
    for generation, item in items:
        generation.deliver(item)
