"""One prompt being continued: its tokens, its progress and its blocks."""

import hashlib
import random
import time
from dataclasses import dataclass, field

import numpy as np

from inference.request import (
    ConstraintState,
    Delta,
    FinishReason,
    Request,
    SamplingParams,
    TokenLogprob,
)

_noise = random.Random()  # seeded by the system; nothing here has to be secret


@dataclass(slots=True)
class Lookup:
    """What `speculative` knows of a sequence: the position after each n-gram, and its luck."""

    num_guessed: int = 3  # tokens, at first
    followers: dict[tuple[int, ...], int] = field(default_factory=dict)
    num_indexed: int = 0
    pause: int = 0
    backoff: int = 1


@dataclass(slots=True, eq=False)
class Sequence:
    """Keys and values of `token_ids[:num_computed_tokens]` are in the cache.

    Progress is this one number: prefill, chunked prefill, a prefix hit, decode and the restart
    after a preemption differ only in how far it is behind `len(token_ids)`.
    """

    request: Request
    max_tokens: int
    stop_token_ids: frozenset[int]
    token_ids: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    num_output_placeholders: int = 0  # 1 while a run is under way that brings a token, not the last
    num_cached_tokens: int | None = None  # prefix hit of the first admission
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    noise_key: int = field(init=False)
    arrived_at: float = field(init=False)
    queue_time_s: float = 0.0  # until its first admission
    turn: int = 0  # set by the scheduler, as are the next two
    arrival: int = 0
    awaited_block: bytes | None = None  # digest of a block that another sequence will compute
    constraint: ConstraintState | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    lookup: Lookup = field(default_factory=Lookup)

    def __post_init__(self) -> None:
        self.token_ids = [*self.request.prompt_token_ids, *self.request.generated_token_ids]
        self.num_prompt_tokens = len(self.request.prompt_token_ids)
        self.noise_key = self._noise_key()
        self.arrived_at = time.monotonic()
        if self.params.prompt_logprobs is not None:
            self.prompt_logprobs = [None]
        if self.request.constraint is not None:
            self.constraint = self.request.constraint.begin()
            for token_id in self.request.generated_token_ids:
                self.constraint.advance(token_id)

    @property
    def params(self) -> SamplingParams:
        return self.request.params

    @property
    def rank(self) -> tuple[int, int, int]:
        """Its place in every queue: by priority, then owners in turn, then first come."""
        return self.request.priority, self.turn, self.arrival

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.arrived_at

    @property
    def waits_too_long(self) -> bool:
        """For its first step; what has begun once has no such limit."""
        limit_s = min(self.request.queue_timeout_s, self.request.timeout_s)
        return self.num_cached_tokens is None and self.age_s > limit_s

    @property
    def num_pending_tokens(self) -> int:
        """Tokens not yet computed: the rest of the prompt, or the one token sampled last."""
        return len(self.token_ids) + self.num_output_placeholders - self.num_computed_tokens

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def has_not_begun(self) -> bool:
        return self.num_output_tokens == len(self.request.generated_token_ids)

    def append(self, token_id: int) -> None:
        """Take over a sampled token and find out whether it is the last.

        Raises ConstraintFailed if it does not fit the constraint.
        """
        if not self.max_tokens:  # only the prompt was to be read
            self.finish_reason = FinishReason.LENGTH
            return
        self.token_ids.append(token_id)
        is_whole = self.constraint is not None and self.constraint.advance(token_id)
        if token_id in self.stop_token_ids:
            self.finish_reason, self.stop_token_id = FinishReason.STOP, token_id
        elif is_whole:
            self.finish_reason = FinishReason.STOP
        elif self.num_output_tokens >= self.max_tokens:
            self.finish_reason = FinishReason.LENGTH
        elif self.age_s > self.request.timeout_s:
            self.finish_reason = FinishReason.TIMEOUT

    def delta(self, num_tokens: int, logprobs: list[TokenLogprob | None]) -> Delta:
        """What the caller is told of the `num_tokens` tokens appended last."""
        first = self.num_output_tokens <= num_tokens
        return Delta(
            token_ids=self.token_ids[len(self.token_ids) - num_tokens :],
            logprobs=[entry for entry in logprobs[:num_tokens] if entry is not None],
            finish_reason=self.finish_reason,
            stop_token_id=self.stop_token_id,
            num_cached_tokens=self.num_cached_tokens or 0,
            prompt_logprobs=self.prompt_logprobs if first else None,
            queue_time_s=self.queue_time_s,
        )

    def _noise_key(self) -> int:
        """64 bits from which every uniform draw of this sequence follows.

        The prompt's digest is mixed in so that one seed gives different prompts different noise.
        """
        seed = self.params.seed
        if seed is None:
            return _noise.getrandbits(64)
        prompt = np.asarray(self.request.prompt_token_ids, dtype=np.uint32).tobytes()
        digest = hashlib.sha256(seed.to_bytes(16, "little", signed=True) + prompt).digest()
        return int.from_bytes(digest[:8], "little")
