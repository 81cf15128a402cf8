"""The engine as the rest of the server sees it: requests in, async streams of deltas out."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from inference.engine.core import EngineStats, Output
from inference.errors import (
    EngineError,
    EngineFailed,
    EngineNotReady,
    EngineOverloaded,
    InvalidPrompt,
    PromptTooLong,
)
from inference.request import Delta, ModelInfo, Request

OnArrival = Callable[["Generation"], None]


@dataclass(slots=True)
class EngineStatus:
    """Where the engine is, and a line on why, for those who are told that it is not ready.

    `state` is loading (again, perhaps), ready, broken (it may come back), failed or stopped.
    """

    state: str = "loading"
    stage: str = "starting"


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
        self._ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.abort()

    def abort(self) -> None:
        """End the sequence, if it has not ended; its blocks are free before the next step."""
        if not self._ended:
            self._engine.abort(self.request.request_id)

    def cancel(self) -> None:
        """Abort, and let the reader fail; callable from any thread."""
        self.abort()
        error = EngineFailed("The generation was cancelled.")
        self.loop.call_soon_threadsafe(self.deliver, error)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        if self._ended:
            raise StopAsyncIteration
        await self._arrived.wait()
        return self.take()

    @property
    def has_arrived(self) -> bool:
        """Whether there is something to take."""
        return self._arrived.is_set() and not self._ended

    @property
    def has_ended(self) -> bool:
        return self._ended

    def take(self) -> Delta:
        """What has come since the last time. If that is nothing, raises what ended the sequence."""
        delta, self._delta = self._delta, None
        if delta is None:
            self._ended = True
            raise self._error or EngineFailed("The engine has stopped.")
        if self._error is None:  # else the next turn finds the error
            self._arrived.clear()
        self._ended = delta.finish_reason is not None
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

    def __init__(self, *, max_num_unfinished: int = 0) -> None:
        self.status, self.stats = EngineStatus(), EngineStats()
        self._max_num_unfinished = max_num_unfinished
        self._generations: dict[str, Generation] = {}
        self._model: ModelInfo | None = None

    @property
    def model(self) -> ModelInfo:
        """Facts about the loaded model. Raises EngineNotReady until there is one."""
        if self.status.state != "ready" or self._model is None:
            raise EngineNotReady(f"The model is not ready: {self.status.stage}.")
        return self._model

    @property
    def num_unfinished(self) -> int:
        """Requests, waiting and running."""
        return len(self._generations)

    @property
    def max_num_unfinished(self) -> int:
        """How many there may be; more are refused."""
        return self._max_num_unfinished

    def check_capacity(self, num_requests: int = 1) -> None:
        """Raise EngineNotReady or EngineOverloaded; cheap enough to ask before tokenizing."""
        _ = self.model
        if self.num_unfinished + num_requests > self._max_num_unfinished:
            raise EngineOverloaded("The server's queue is full. Please try again later.")

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
        """Queue a request. Raises what the two checks raise."""
        self.check_capacity()
        token_ids = [*request.prompt_token_ids, *request.generated_token_ids]
        self.check_prompt(token_ids, request.params.max_tokens)
        generation = Generation(self, request, on_arrival)
        self._generations[request.request_id] = generation
        self._submit(request)
        if self.status.state != "ready":  # it has stopped just now, perhaps without seeing this
            self._generations.pop(request.request_id, None)
            generation.deliver(EngineFailed("The engine has stopped."))
        return generation

    def abort(self, request_id: str) -> None:
        """Forget a request; its blocks are free before the next step. Callable from any thread."""
        if self._generations.pop(request_id, None) is not None:
            self._withdraw(request_id)

    def close(self, timeout_s: float = 10) -> None:
        """Stop; what is unfinished fails."""
        raise NotImplementedError

    def _submit(self, request: Request) -> None:
        raise NotImplementedError

    def _withdraw(self, request_id: str) -> None:
        raise NotImplementedError

    def _publish(self, outputs: list[Output]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Generation, Delta | EngineError]]]
        by_loop = defaultdict(list)
        for request_id, item in outputs:
            if (generation := self._generations.get(request_id)) is None:
                continue  # aborted while the step ran
            by_loop[generation.loop].append((generation, item))
            if isinstance(item, EngineError) or item.finish_reason:
                self._generations.pop(request_id, None)
        for loop, items in by_loop.items():
            self._wake(loop, items)

    def _wake(
        self,
        loop: asyncio.AbstractEventLoop,
        items: list[tuple[Generation, Delta | EngineError]],
    ) -> None:
        try:
            loop.call_soon_threadsafe(_deliver, items)
        except RuntimeError:  # the loop is closed, nobody will read this
            for generation, _ in items:
                self.abort(generation.request.request_id)

    def _fail_all(self, message: str) -> None:
        error = EngineFailed(message)
        self._publish([(request_id, error) for request_id in list(self._generations)])


def _deliver(items: list[tuple[Generation, Delta | EngineError]]) -> None:
    for generation, item in items:
        generation.deliver(item)
