"""The engine: everything between a request and its tokens, in one thread."""

import logging
from bisect import bisect_left
from dataclasses import replace
from itertools import zip_longest
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from inference.engine.batch import Batch
from inference.engine.block_pool import BlockPool
from inference.engine.scheduler import EngineLimits, Scheduler
from inference.engine.sequence import Sequence
from inference.errors import EngineError, EngineFailed, QueueTimeout
from inference.metrics import STEP_SIZES, EngineStats
from inference.model import sampler
from inference.model.inputs import ModelInputs
from inference.request import Delta, FinishReason, Request, TokenLogprob

logger = logging.getLogger(__name__)

Output = tuple[str, Delta | EngineError]  # request id, what the step brought for it


class Runner(Protocol):
    """A model with its KV cache."""

    num_blocks: int

    def forward(self, inputs: ModelInputs) -> Tensor:
        """Float32 logits, `[len(inputs.logit_rows), vocab_size]`."""


class UnderWay(NamedTuple):
    """A run whose tokens only the device knows yet."""

    batch: Batch
    sampling: sampler.Sampling | None


class EngineCore:
    """Scheduler, model and sampler. Not thread-safe: one thread calls everything."""

    def __init__(self, runner: Runner, limits: EngineLimits, cache_root: bytes = b"") -> None:
        self.limits, self._runner = limits, runner
        self.pool = BlockPool(runner.num_blocks, limits.block_size, cache_root)
        self.scheduler = Scheduler(self.pool, limits)
        self._seqs: dict[str, Sequence] = {}
        self._outputs: list[Output] = []  # not handed on yet
        self._under_way = UnderWay(Batch(), None)
        self.num_restarts = 0  # of the engine, before this core
        self._num_generated_tokens = self._num_computed_tokens = 0
        self._steps_by_size = [0] * (len(STEP_SIZES) + 1)

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
            self._outputs.append((request.request_id, failure(exc)))
            return
        self._seqs[request.request_id] = seq
        self.scheduler.add(seq)

    def abort(self, request_id: str) -> None:
        """Drop a request, waiting or running. One that has already ended is no error."""
        if (seq := self._seqs.pop(request_id, None)) is not None:
            self.scheduler.finish(seq, FinishReason.ABORT)

    def step(self) -> list[Output]:
        """Advance every scheduled sequence by one model run; what there is to hand on.

        With `async_scheduling` a run is scheduled and launched before the tokens of the run before
        are known: what is under way brings each of its sequences one token, and the device takes
        that from its own memory. So it never waits for what the host makes of tokens, and the
        tokens of a step are those of the run before. Guessing needs to know all of them first.

        A run that raises is tried again in halves: it costs the sequence that cannot be computed,
        or nobody, if there was only too little memory for all at once.
        """
        self._refuse_late()
        proposer, num_running = self.scheduler.proposer, len(self.scheduler.running)
        if any(self._under_way.batch.drafts) or proposer.may_guess(num_running):
            self._land()
        batch = self.scheduler.schedule()
        if batch:
            self._run(batch)
        if not (batch and self.limits.async_scheduling):
            self._land()
        outputs, self._outputs = self._outputs, []
        return outputs

    @property
    def has_work(self) -> bool:
        return bool(self._seqs or self._outputs)

    def stats(self) -> EngineStats:
        scheduler = self.scheduler
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            kv_cache_usage=self.pool.usage,
            num_steps=sum(self._steps_by_size),
            num_prompt_tokens=scheduler.num_queried_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_computed_tokens=self._num_computed_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_queried_tokens=scheduler.num_queried_tokens,
            num_hit_tokens=scheduler.num_hit_tokens,
            num_draft_tokens=scheduler.proposer.num_draft_tokens,
            num_accepted_tokens=scheduler.proposer.num_accepted_tokens,
            num_restarts=self.num_restarts,
            steps_by_size=tuple(self._steps_by_size),
        )

    def _refuse_late(self) -> None:
        for seq in [seq for seq in self.scheduler.waiting if seq.waits_too_long]:
            waited_s = round(seq.age_s)
            message = f"The server is busy: your request has waited {waited_s} s in vain."
            self._hand_on(seq, QueueTimeout(message, waited_s))

    def _run(self, batch: Batch) -> None:
        """Launch a run, and look only then at what the one before has brought.

        Blocks can be given away as soon as their sequence has ended or was preempted: the device
        does one run after the other, and who gets them writes after whoever had them.
        """
        before = self._under_way
        tokens = before.sampling.tokens if before.sampling else None
        try:
            logits = self._runner.forward(batch.model_inputs(before.batch, tokens))
        except Exception as exc:
            if isinstance(exc, torch.AcceleratorError):
                raise  # whatever the device is asked from now on fails as well
            failed, kept = exc, batch.without(self._land())
        else:
            kept = batch.without(self._land())
            try:
                self._sample(batch, kept, logits)
            except Exception as exc:
                failed = exc
            else:
                return
        if isinstance(failed, torch.OutOfMemoryError):  # whose frames hold what was computed
            failed = failed.with_traceback(None)
        self._run_in_halves(kept, failed)

    def _run_in_halves(self, batch: Batch, exc: Exception) -> None:
        is_smaller = isinstance(exc, torch.OutOfMemoryError) and self._need_less_memory()
        logger.warning("a step with %d sequences failed: %r", len(batch.seqs), exc)
        if len(batch.seqs) > 1:
            middle = len(batch.seqs) // 2
            self._run(batch.without(batch.seqs[middle:]))
            self._run(batch.without(batch.seqs[:middle]))
        elif batch and not is_smaller:  # else its next chunk will be smaller
            self._hand_on(batch.seqs[0], failure(exc))

    def _sample(self, batch: Batch, kept: Batch, logits: Tensor) -> None:
        """Choose tokens for who is `kept` of the batch. No sequence has moved on if this raises."""
        num_rows = len(batch.rows())
        self._score_prompts(batch, logits[num_rows:])
        logits = logits[:num_rows]
        if kept is not batch:  # then nobody has a draft, and everybody one row
            rows = [n for n, i in enumerate(batch.sampled) if batch.seqs[i] in kept.seqs]
            logits = sampler.take(logits, rows)
        self._under_way = UnderWay(kept, sampler.sample(logits, kept.rows()))
        num_tokens = sum(batch.counts)
        self._num_computed_tokens += num_tokens
        self._steps_by_size[bisect_left(STEP_SIZES, num_tokens)] += 1
        for seq, count, draft in zip(kept.seqs, kept.counts, kept.drafts, strict=True):
            self.scheduler.advance(seq, count - len(draft))
        for index in kept.sampled:
            seq = kept.seqs[index]
            seq.num_output_placeholders = int(seq.num_output_tokens + 1 < seq.max_tokens)

    def _need_less_memory(self) -> bool:
        """From now on compute fewer tokens at once, if it can be fewer."""
        torch.cuda.empty_cache()
        limits = self.scheduler.limits
        most = max(limits.max_num_batched_tokens, limits.max_num_prefill_tokens)
        budget = max(limits.max_num_batched_tokens // 2, limits.max_num_seqs)
        if budget < most:
            logger.error("out of memory: only %d tokens in one step from now on", budget)
        self.scheduler.limits = replace(
            limits, max_num_batched_tokens=budget, max_num_prefill_tokens=0
        )
        return budget < most

    def _land(self) -> set[Sequence]:
        """Wait for the run under way, and hand on its tokens.

        The sequences for which a run that was launched since has been in vain: they have ended, or
        go on with another token than it had.
        """
        (batch, sampling), self._under_way = self._under_way, UnderWay(Batch(), None)
        if sampling is None:
            return set()
        token_ids, logprobs, late = sampling.result()
        start, lost = 0, set()
        for index in batch.sampled:
            seq, end = batch.seqs[index], start + len(batch.drafts[index]) + 1
            if seq.finish_reason is None:  # not aborted meanwhile
                self._take_over(batch, index, token_ids[start:end], logprobs[start:end])
            if seq.finish_reason or start in late:
                lost.add(seq)
            start = end
        return lost

    def _take_over(
        self, batch: Batch, index: int, token_ids: list[int], logprobs: list[TokenLogprob | None]
    ) -> None:
        seq = batch.seqs[index]
        try:
            item: Delta | EngineError = seq.delta(self._take(batch, index, token_ids), logprobs)
        except Exception as exc:
            item = failure(exc)
            self.pool.forget(seq)
        self._hand_on(seq, item)

    def _take(self, batch: Batch, index: int, token_ids: list[int]) -> int:
        """Append what was sampled, up to the first token that was guessed wrong; how many.

        What comes after that was computed for nothing.
        """
        seq, draft = batch.seqs[index], batch.drafts[index]
        before, seq.num_output_placeholders = seq.num_output_tokens, 0
        for token_id, guess in zip_longest(token_ids, draft):
            if token_id == sampler.NO_TOKEN:
                raise EngineFailed("The model's logits are not finite.")
            seq.append(token_id)
            if token_id != guess or seq.finish_reason:
                break
        num_taken = seq.num_output_tokens - before
        self._num_generated_tokens += num_taken
        if draft:
            self.scheduler.advance(seq, num_taken - 1)
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

    def _hand_on(self, seq: Sequence, item: Delta | EngineError) -> None:
        """What there is to say of a sequence, which is let go of if it has ended or fails."""
        self._outputs.append((seq.request.request_id, item))
        if seq.finish_reason or isinstance(item, EngineError):
            self._seqs.pop(seq.request.request_id, None)
            self.scheduler.finish(seq, FinishReason.ABORT)


def failure(exc: Exception) -> EngineError:
    """What a request is told that failed because of `exc`; the operator is told more."""
    if isinstance(exc, EngineFailed):
        logger.warning("an answer failed: %s", exc)
        return exc
    logger.error("a sequence failed", exc_info=exc)
    return EngineFailed("The model failed while answering.")
