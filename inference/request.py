"""What goes into the engine and what comes out: token ids on both sides."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen, and when to stop.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 keep every token. `logprobs` k asks for the
    chosen token's log probability and those of the k likeliest; `None` asks for nothing.
    `logprob_token_ids` asks for those tokens' instead of the likeliest ones'.
    `bad_token_ids` holds token sequences that must not be completed. `max_tokens` 0 only reads the
    prompt, for its log probabilities.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_token_ids: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    min_tokens: int = 0
    max_tokens: int | None = None
    ignore_eos: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    seed: int | None = None
    logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None


class ConstraintState(Protocol):
    """How far one answer has followed its constraint."""

    def fill(self, bitmask: NDArray[np.int32]) -> None:
        """Clear the bits of the tokens that must not come next: bit i % 32 of word i // 32."""

    def advance(self, token_id: int) -> bool:
        """Take over the next token: True if none may follow. Raises ConstraintFailed."""


class Constraint(Protocol):
    """What an answer must look like, a grammar for instance.

    `spec` is plain data, from which an engine in another process makes the same constraint.
    """

    @property
    def spec(self) -> dict[str, Any]: ...

    def begin(self) -> ConstraintState:
        """The state before the first token; each sequence has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to be continued. Requests with different `cache_salt` never share cache blocks.

    The lowest `priority` goes first, and is preempted last; within one, owners take turns.
    `generated_token_ids` is what an earlier attempt at the same request had answered: the answer
    goes on after it. After `queue_timeout_s` in the queue it fails, and `timeout_s` after its
    arrival its answer is cut.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    cache_salt: str = ""
    priority: int = 0
    constraint: Constraint | None = None
    generated_token_ids: tuple[int, ...] = ()
    owner: str = ""
    queue_timeout_s: float = math.inf
    timeout_s: float = math.inf


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TIMEOUT = "timeout"
    ABORT = "abort"


class TokenLogprob(NamedTuple):
    """The log probability of one token, before any processing, and the likeliest alternatives."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]  # best first, (token id, log probability)
    rank: int = 0  # 1 for the likeliest token


@dataclass(slots=True)
class Delta:
    """What one step (or several, if the reader was slow) added to a sequence.

    `logprobs` is parallel to `token_ids`, or empty. `stop_token_id` is the id that ended the
    sequence, if one did; it is the last of `token_ids`. `prompt_logprobs` comes once, with the
    first token; its first entry is None. `queue_time_s` is how long the sequence has waited for its
    first step.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprob | None] | None = None
    queue_time_s: float = 0.0

    def extend(self, later: "Delta") -> None:
        """Take over what a later step added."""
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        self.finish_reason = later.finish_reason
        self.stop_token_id = later.stop_token_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What the rest of the server knows of the loaded model.

    `generation_defaults` holds the sampling values of the checkpoint's generation_config.json.
    """

    name: str
    tokenizer: Any
    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    generation_defaults: Mapping[str, float]
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    fingerprint: str
    created: int
    block_size: int = 0
    num_blocks: int = 0  # of the KV cache
