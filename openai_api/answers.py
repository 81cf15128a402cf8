"""Deltas to segments: the one place where tokens become what the caller sees."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import astuple, dataclass, field
from typing import NamedTuple

from django.conf import settings

from inference.errors import EngineFailed, EngineLost, EngineNotReady, ShuttingDown
from inference.request import (
    Constraint,
    Delta,
    FinishReason,
    ModelInfo,
    Request,
    SamplingParams,
    TokenLogprob,
)
from inference.service import EngineClient
from inference.text.detokenizer import Detokenizer, StopStrings
from inference.text.output_parser import OutputParser, Piece
from inference.text.syntax import calls_of, kept_token_ids, reasoning_of
from openai_api.errors import Aborted
from openai_api.protocol.ids import new_id
from openai_api.timing import Timing, counted
from openai_api.tools import NO_TOOLS, ToolUse

RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer to be generated: `prompt_index` counts the prompts of the request."""

    prompt_token_ids: list[int]
    params: SamplingParams
    prompt_index: int = 0
    constraint: Constraint | None = None


ENDINGS = {FinishReason.LENGTH: ("length", None), FinishReason.TIMEOUT: ("length", "timeout")}


class Token(NamedTuple):
    """A generated token. `offset` is where its text begins, in characters of the whole text."""

    token_id: int
    offset: int
    logprob: TokenLogprob | None


@dataclass(slots=True)
class Segment:
    """A piece of text of one kind, with the tokens it completes. For kinds see `Piece`."""

    kind: str
    text: str
    tokens: list[Token] = field(default_factory=list)

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return [token.logprob for token in self.tokens if token.logprob is not None]


@dataclass(slots=True)
class Usage:
    """Token counts of one answer, or of several together."""

    num_prompt_tokens: int
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_reasoning_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens


def total_usage(answers: "list[Answer]") -> Usage:
    """Of all answers together. Those of one prompt share it, so each prompt counts once."""
    prompts = {answer.prompt_index: answer.usage for answer in reversed(answers)}.values()
    return Usage(
        num_prompt_tokens=sum(usage.num_prompt_tokens for usage in prompts),
        num_cached_tokens=sum(usage.num_cached_tokens for usage in prompts),
        num_output_tokens=sum(answer.usage.num_output_tokens for answer in answers),
        num_reasoning_tokens=sum(answer.usage.num_reasoning_tokens for answer in answers),
    )


def sum_of(usages: Iterable[Usage]) -> Usage:
    """Of answers to different prompts."""
    columns = zip(*map(astuple, usages), strict=True)
    return Usage(*map(sum, columns))


class Answer:
    """One generation as segments. It is queued when it is made; iterating runs it to its end.

    `finish_reason` ("stop" or "length"), `stop_reason` (the stop string or stop token id) and
    `num_complete_calls` are set when `segments` ends, `prompt_logprobs` before the first segment.
    `token_ids` are all tokens so far; where `is_settled`, everything they say has been given out
    or is held back. An answer that was broken off goes on after its tokens in `generated`.
    """

    def __init__(
        self,
        engine: EngineClient,
        choice: Choice,
        body: dict,
        *,
        chat: bool,
        use: ToolUse = NO_TOOLS,
        generated: Sequence[int] = (),
    ) -> None:
        self.model: ModelInfo = engine.model
        self.prompt_token_ids = choice.prompt_token_ids
        self.prompt_index, self.tool_use = choice.prompt_index, use
        self.usage = Usage(len(choice.prompt_token_ids))
        self.finish_reason: str | None = None  # set at the end, as is the next
        self.stop_reason: str | int | None = None
        self.prompt_logprobs: list[TokenLogprob | None] | None = None
        self.sum_of_logprobs = 0.0
        self.timing = Timing()
        self.is_over = False
        self._params, self._include_stop = choice.params, body["include_stop_str_in_output"]
        self._show_end = not chat  # text completions score their end token too
        self._interval = body.get("stream_interval", 1)
        self._thoughts = body.get("include_reasoning", True)
        self._stop = StopStrings(body["stop"], include=self._include_stop)
        self._make_parser(body, chat)
        self._tokens: list[Token] = []  # whose text is still held back
        self._num_chars = 0
        self.token_ids: list[int] = []
        self.is_settled = True
        self.replayed: list[Segment] = []
        self._take(Delta(list(generated)), self.replayed)
        self._engine, self._choice, self._body = engine, choice, body
        self._may_go_on, self.is_cancelled = body.get("background", False), False
        self._generation = engine.generate(self._request())

    def _request(self) -> Request:
        """What is left to be generated."""
        return Request(
            request_id=new_id("gen"),
            prompt_token_ids=self.prompt_token_ids,
            params=self._params,
            cache_salt=self._body["cache_salt"],
            priority=self._body["priority"],
            constraint=self._choice.constraint,
            generated_token_ids=tuple(self.token_ids),
            owner=self._body["owner"],
            **({} if self._body.get("background") else timeouts()),
        )

    def _make_parser(self, body: dict, chat: bool) -> None:
        """The way from tokens to pieces. Markers that are special tokens are for the parser."""
        model, prompt = self.model, self.prompt_token_ids
        tokenizer = model.tokenizer
        reasoning = reasoning_of(tokenizer, model.reasoning_parser) if chat else None
        has_tools = bool(self.tool_use.callable)
        self.calls = calls_of(tokenizer, model.tool_call_parser) if has_tools else None
        self._parser = OutputParser(
            reasoning=reasoning,
            calls=self.calls,
            # the end of the prompt tells whether it has opened a thought already
            prompt=tokenizer.decode(prompt[-16:]) if reasoning else "",
            tools=self.tool_use.callable,
        )
        keep = kept_token_ids(tokenizer, reasoning, self.calls)
        self._detokenizer = Detokenizer(
            tokenizer, prompt, keep=keep if body["skip_special_tokens"] else None
        )

    @property
    def is_warm_up(self) -> bool:
        """Whether nothing but the prompt was to be read."""
        return self._params.max_tokens == 0

    @property
    def max_tokens(self) -> int:
        """How long it may become, if nothing ends it before."""
        room = self.model.max_model_len - len(self.prompt_token_ids)
        wanted = self._params.max_tokens
        return room if wanted is None else min(wanted, room)

    @property
    def num_complete_calls(self) -> int:
        return self._parser.num_complete_calls

    @property
    def is_cut(self) -> bool:
        """Whether it ended, for whatever reason, in the middle of a call."""
        return self._parser.in_call

    @property
    def is_called(self) -> bool:
        """Whether it holds calls, all of them whole."""
        return self.num_complete_calls > 0 and not self._parser.in_call

    async def segments(self) -> AsyncIterator[Segment]:
        """The answer as it comes. Leaving early aborts the generation."""
        waiting: list[Segment] = []  # for `stream_interval` tokens to come together
        num_shown = 0
        async with counted(self), aclosing(self._deltas()) as deltas:
            async for delta in deltas:
                self.timing.take(delta)
                self.prompt_logprobs = self.prompt_logprobs or delta.prompt_logprobs
                self.usage.num_cached_tokens = (
                    delta.num_cached_tokens or self.usage.num_cached_tokens
                )
                self._take(delta, waiting)
                num_tokens = self.usage.num_output_tokens
                if num_tokens - num_shown >= self._interval or not num_shown or self.finish_reason:
                    num_shown = num_tokens
                    for number, segment in enumerate(waiting, 1):
                        self.is_settled = number == len(waiting)
                        if self._thoughts or segment.kind != "reasoning":
                            yield segment
                    waiting.clear()
                if self.finish_reason:
                    return

    async def _deltas(self) -> AsyncIterator[Delta]:
        """What is generated.

        In the background an answer survives the end of its engine, but only one: it may be why.
        """
        while True:
            try:
                async with self._generation as deltas:
                    async for delta in deltas:
                        yield delta
                return
            except EngineFailed as exc:
                if self.is_cancelled:
                    raise Aborted() from None
                if not (self._may_go_on and isinstance(exc, EngineLost)):
                    raise
            self._may_go_on = False
            await self._queue_again()

    async def _queue_again(self) -> None:
        """As soon as there is an engine."""
        while not self.is_cancelled:
            try:
                self._generation = self._engine.generate(self._request())
                break
            except EngineNotReady:
                if self._engine.is_draining:
                    raise ShuttingDown() from None
                if self._engine.status.state not in ("loading", "ready"):
                    raise
                await asyncio.sleep(RETRY_S)
        if self.is_cancelled:
            self._generation.abort()
            raise Aborted()

    async def begun(self) -> None:
        """Wait for the first token; raises what came instead."""
        try:
            await self._generation.begun()
        except EngineFailed:
            if self.is_cancelled:
                raise Aborted() from None
            raise

    def abort(self) -> None:
        """End an answer that nobody will iterate."""
        self.is_over = True
        self._generation.abort()
        self.timing.end("abort", self)

    def cancel(self) -> None:
        """Make whoever iterates it fail, from any thread."""
        self.is_cancelled = True
        self._generation.cancel()

    def _take(self, delta: Delta, segments: list[Segment]) -> None:
        for index, token_id in enumerate(delta.token_ids):
            logprob = delta.logprobs[index] if delta.logprobs else None
            self._count(logprob)
            self.token_ids.append(token_id)
            if token_id == delta.stop_token_id and index == len(delta.token_ids) - 1:
                shown = logprob if self._show_end or self._is_shown(token_id) else None
                self._tokens.append(Token(token_id, self._num_chars, shown))
                self._end_at_token(token_id, segments)
                break
            self._tokens.append(Token(token_id, self._num_chars, logprob))
            self._add_text(self._detokenizer.add(token_id), segments)
            if self._stop.matched is not None:
                self._end("stop", self._stop.matched, segments)
                break
            if self.num_complete_calls and not self.tool_use.parallel:
                self._end("stop", None, segments)
                break
        if delta.finish_reason and not self.finish_reason:
            self._add_text(self._detokenizer.flush(), segments)
            self._end(*self._reason(delta), segments)

    def _reason(self, delta: Delta) -> tuple[str, str | None]:
        """How it ended by itself; the flushed text may still have completed a stop string."""
        if self._stop.matched is not None:
            return "stop", self._stop.matched
        return ENDINGS.get(delta.finish_reason, ("stop", None))

    def _count(self, logprob: TokenLogprob | None) -> None:
        self.usage.num_output_tokens += 1
        self.usage.num_reasoning_tokens += self._parser.in_reasoning
        if logprob is not None:
            self.sum_of_logprobs += logprob.logprob

    def _end_at_token(self, token_id: int, segments: list[Segment]) -> None:
        """A stop token is not shown, unless it is one of the request's own and wanted."""
        own = token_id in self._params.stop_token_ids
        if self._is_shown(token_id):
            self._add_text(self._detokenizer.add(token_id), segments)
        self._add_text(self._detokenizer.flush(), segments)
        matched = self._stop.matched
        self._end("stop", matched or (token_id if own else None), segments)

    def _is_shown(self, stop_token_id: int) -> bool:
        return self._include_stop and stop_token_id in self._params.stop_token_ids

    def _end(self, reason: str, stop_reason: str | int | None, segments: list[Segment]) -> None:
        if self._stop.matched is None:
            self._add_pieces(self._parser.add(self._stop.flush()), segments)
        self._add_pieces(self._parser.flush(), segments)
        if self._tokens:  # which never showed any text
            segments.append(Segment("text", "", self._tokens))
        self._tokens = []
        self.finish_reason, self.stop_reason, self.is_over = reason, stop_reason, True

    def _add_text(self, text: str, segments: list[Segment]) -> None:
        if not text or self._stop.matched is not None:
            return
        self._num_chars += len(text)
        if self.usage.num_output_tokens >= self._params.min_tokens:
            text = self._stop.add(text)
        self._add_pieces(self._parser.add(text), segments)

    def _add_pieces(self, pieces: list[Piece], segments: list[Segment]) -> None:
        """Text of one kind that is ready together leaves as one segment."""
        for kind, text in pieces:
            if segments and segments[-1].kind == kind != "call":
                segments[-1].text += text
            else:
                segments.append(Segment(kind, text))
            segments[-1].tokens += self._tokens
            self._tokens = []


def timeouts() -> dict[str, float]:
    """What the settings grant a request for which somebody waits."""
    api = settings.API
    return {
        "queue_timeout_s": api.queue_timeout_s or math.inf,
        "timeout_s": api.total_timeout_s or math.inf,
    }
