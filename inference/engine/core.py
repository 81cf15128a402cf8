"""The engine: everything between a request and its tokens, in one thread."""

import logging
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol

import torch
from torch import Tensor

from inference.engine.batch import Batch
from inference.engine.block_pool import BlockPool
from inference.engine.scheduler import Scheduler
from inference.engine.sequence import Sequence
from inference.engine.speculative import NgramProposer
from inference.errors import EngineError, EngineFailed, QueueTimeout
from inference.model import sampler
from inference.model.inputs import ModelInputs
from inference.request import Delta, FinishReason, Request

logger = logging.getLogger(__name__)

Output = tuple[str, Delta | EngineError]  # request id, what the step brought for it


class Runner(Protocol):
    """A model with its KV cache."""

    num_blocks: int

    def forward(self, inputs: ModelInputs) -> Tensor:
        """Float32 logits, `[len(inputs.logit_rows), vocab_size]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What the loaded model and the machine allow."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_prefill_tokens: int = 0  # budget of a step without decoding, where it is larger
    block_size: int
    eos_token_ids: frozenset[int]
    enable_prefix_caching: bool = True
    num_speculative_tokens: int = 0  # guessed at a time; 0 for none
    max_speculative_rows: int = 16  # of a batch with guesses


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of the engine's work. The counters only grow, but for those of a new core."""

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    num_queried_tokens: int = 0
    num_hit_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_restarts: int = 0


class EngineCore:
    """Scheduler, model and sampler. Not thread-safe: one thread calls everything."""

    def __init__(self, runner: Runner, limits: EngineLimits, cache_root: bytes = b"") -> None:
        self.limits = limits
        self._runner = runner
        self.pool = BlockPool(runner.num_blocks, limits.block_size, cache_root)
        self.scheduler = Scheduler(
            self.pool,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            max_num_prefill_tokens=limits.max_num_prefill_tokens,
            enable_prefix_caching=limits.enable_prefix_caching,
            proposer=NgramProposer(limits.num_speculative_tokens, limits.max_speculative_rows),
        )
        self._seqs: dict[str, Sequence] = {}
        self._refused: list[Output] = []
        self.num_restarts = 0  # of the engine, before this core
        self._num_steps = self._num_prompt_tokens = self._num_generated_tokens = 0

    def add(self, request: Request) -> None:
        """Queue a request. Its prompt is shorter than the context: the client checks that."""
        room = self.limits.max_model_len - len(request.prompt_token_ids)
        params = request.params
        eos = frozenset() if params.ignore_eos else self.limits.eos_token_ids
        try:
            seq = Sequence(
                request=request,
                max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
                stop_token_ids=eos | params.stop_token_ids,
            )
        except Exception as exc:  # what was generated before does not fit its constraint, say
            self._refused.append((request.request_id, failure(exc)))
            return
        self._seqs[request.request_id] = seq
        self._num_prompt_tokens += seq.num_prompt_tokens
        self.scheduler.add(seq)

    def abort(self, request_id: str) -> None:
        """Drop a request, waiting or running. One that has already ended is no error."""
        if (seq := self._seqs.pop(request_id, None)) is not None:
            self.scheduler.finish(seq, FinishReason.ABORT)

    def step(self) -> list[Output]:
        """Advance every scheduled sequence by one model run; empty when there is nothing to do.

        A run that raises is tried again in halves: it costs the sequence that cannot be computed,
        or nobody, if there was only too little memory for all at once.
        """
        self._refuse_late()
        refused, self._refused = self._refused, []
        batch = self.scheduler.schedule()
        return refused + self._run(batch) if batch else refused

    @property
    def has_work(self) -> bool:
        return bool(self._seqs or self._refused)

    def stats(self) -> EngineStats:
        scheduler = self.scheduler
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            kv_cache_usage=self.pool.usage,
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_queried_tokens=scheduler.num_queried_tokens,
            num_hit_tokens=scheduler.num_hit_tokens,
            num_draft_tokens=scheduler.proposer.num_draft_tokens,
            num_accepted_tokens=scheduler.proposer.num_accepted_tokens,
            num_restarts=self.num_restarts,
        )

    def _refuse_late(self) -> None:
        for seq in [seq for seq in self.scheduler.waiting if seq.waits_too_long]:
            self._forget(seq)
            waited_s = round(seq.age_s)
            message = f"The server is busy: your request has waited {waited_s} s in vain."
            self._refused.append((seq.request.request_id, QueueTimeout(message, waited_s)))

    def _run(self, batch: Batch) -> list[Output]:
        try:
            sampled = self._compute(batch)
        except Exception as exc:
            if isinstance(exc, torch.AcceleratorError):
                raise  # whatever the device is asked from now on fails as well
            is_smaller = isinstance(exc, torch.OutOfMemoryError) and self._need_less_memory()
            logger.warning("a step with %d sequences failed: %r", len(batch.seqs), exc)
            if len(batch.seqs) == 1 and not is_smaller:
                self._forget(batch.seqs[0])
                return [(batch.seqs[0].request.request_id, failure(exc))]
        else:
            self._num_steps += 1
            return self._take_over(batch, sampled)
        # Not in the handler above: there, what the failed run has computed still takes up memory
        if len(batch.seqs) == 1:  # its next chunk will be smaller
            return []
        return [output for half in batch.halves() for output in self._run(half)]

    def _compute(self, batch: Batch) -> sampler.Sampled:
        """Run the model. No sequence has moved on if this raises."""
        rows = batch.rows()
        logits = self._runner.forward(batch.model_inputs())
        self._score_prompts(batch, logits[len(rows) :])
        return sampler.sample(logits[: len(rows)], rows)

    def _need_less_memory(self) -> bool:
        """From now on compute fewer tokens at once, if it can be fewer."""
        torch.cuda.empty_cache()
        scheduler = self.scheduler
        most = max(scheduler.max_num_batched_tokens, scheduler.max_num_prefill_tokens)
        budget = max(scheduler.max_num_batched_tokens // 2, scheduler.max_num_seqs)
        if budget < most:
            logger.error("out of memory: only %d tokens in one step from now on", budget)
        scheduler.max_num_batched_tokens, scheduler.max_num_prefill_tokens = budget, 0
        return budget < most

    def _take_over(self, batch: Batch, sampled: sampler.Sampled) -> list[Output]:
        token_ids, logprobs = sampled
        outputs: list[Output] = []
        ended: list[Sequence] = []
        failed: list[Sequence] = []
        start = 0
        for index in batch.sampled:
            seq, end = batch.seqs[index], start + len(batch.drafts[index]) + 1
            try:
                num_taken = self._take(batch, index, token_ids[start:end])
                delta = seq.delta(num_taken, logprobs[start:end])
                outputs.append((seq.request.request_id, delta))
            except Exception as exc:
                outputs.append((seq.request.request_id, failure(exc)))
                failed.append(seq)
            if seq.finish_reason:
                ended.append(seq)
            start = end
        self.scheduler.advance(batch)
        for seq in failed:
            self.pool.forget(seq)
        for seq in ended + failed:
            self._forget(seq)
        return outputs

    def _take(self, batch: Batch, index: int, token_ids: list[int]) -> int:
        """Append what was sampled, up to the first token that was guessed wrong; how many.

        What comes after that was computed for nothing, and is no longer in the batch.
        """
        seq, draft = batch.seqs[index], batch.drafts[index]
        before = seq.num_output_tokens
        for token_id, guess in zip_longest(token_ids, draft):
            if token_id == sampler.NO_TOKEN:
                raise EngineFailed("The model's logits are not finite.")
            seq.append(token_id)
            if token_id != guess or seq.finish_reason:
                break
        num_taken = seq.num_output_tokens - before
        self._num_generated_tokens += num_taken
        if draft:
            batch.counts[index] -= len(token_ids) - num_taken
            self.scheduler.proposer.learn(seq, len(draft), num_taken - 1)
        return num_taken

    def _score_prompts(self, batch: Batch, logits: Tensor) -> None:
        if not (scored := batch.scored_prompt_tokens()):
            return
        token_ids = [seq.token_ids[position] for _, seq, position in scored]
        num_top = [seq.params.prompt_logprobs or 0 for _, seq, _ in scored]
        entries = sampler.score(logits, token_ids, num_top)
        for (_, seq, _), entry in zip(scored, entries, strict=True):
            if seq.prompt_logprobs is not None:
                seq.prompt_logprobs.append(entry)

    def _forget(self, seq: Sequence) -> None:
        self._seqs.pop(seq.request.request_id, None)
        self.scheduler.finish(seq, FinishReason.ABORT)


def failure(exc: Exception) -> EngineError:
    """What a request is told that failed because of `exc`; the operator is told more."""
    if isinstance(exc, EngineFailed):
        logger.warning("an answer failed: %s", exc)
        return exc
    logger.error("a sequence failed", exc_info=exc)
    return EngineFailed("The model failed while answering.")
