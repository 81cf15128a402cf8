"""Who computes how many tokens in the next step."""

import itertools
from bisect import insort
from collections import deque
from dataclasses import dataclass
from operator import attrgetter

from inference.engine.batch import Batch
from inference.engine.block_pool import BlockPool
from inference.engine.sequence import Sequence
from inference.engine.speculative import NgramProposer
from inference.request import FinishReason

RANK = attrgetter("rank")


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
    async_scheduling: bool = False  # launch a run before the tokens of the one before are known


class Scheduler:
    """Running sequences first, then waiting ones, within a token budget; each in order of `rank`.

    Owners take turns: the n-th that one has waiting goes in the n-th turn from now, whoever came
    first. All that were admitted are of earlier turns, so what is preempted goes before them.
    Waiting sequences are only admitted while budget is left, so at most one running sequence is in
    the middle of its prompt, and decoding waits for no long prompt but one of higher priority.
    The rule (one arithmetic of computed against known tokens, no phases) is vLLM v1's.
    """

    def __init__(self, pool: BlockPool, limits: EngineLimits) -> None:
        self.pool, self.limits = pool, limits
        self.proposer = NgramProposer(limits.num_speculative_tokens, limits.max_speculative_rows)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._arrivals = itertools.count()
        self._turn = 0  # of those admitted last
        self._next_turns: dict[str, int] = {}  # of owners, where it is not the present one
        self.num_preemptions = self.num_queried_tokens = self.num_hit_tokens = 0

    def add(self, seq: Sequence) -> None:
        seq.arrival, owner = next(self._arrivals), seq.request.owner
        seq.turn = max(self._next_turns.get(owner, 0), self._turn)
        self._next_turns[owner] = seq.turn + 1
        insort(self.waiting, seq, key=RANK)

    def schedule(self) -> Batch:
        """Share out the step's token budget. Every sequence of the batch has its blocks."""
        batch, budget = Batch(), self._token_budget()
        num_preemptions = self.num_preemptions
        for seq in list(self.running):
            if seq in self.running and budget:
                budget -= self._schedule_running(seq, budget, batch)
        if num_preemptions == self.num_preemptions:
            self._schedule_waiting(budget, batch)
        return batch

    def _token_budget(self) -> int:
        """Larger while nobody waits for the next token: few large chunks take less than many."""
        if any(seq.num_pending_tokens == 1 for seq in self.running):
            return self.limits.max_num_batched_tokens
        return max(self.limits.max_num_batched_tokens, self.limits.max_num_prefill_tokens)

    def advance(self, seq: Sequence, count: int) -> None:
        """Take over that `count` more tokens have been computed, all of them known by now."""
        before = seq.num_computed_tokens
        seq.num_computed_tokens += count
        if self.limits.enable_prefix_caching:
            self.pool.cache_full_blocks(seq, before)

    def finish(self, seq: Sequence, reason: FinishReason | None = None) -> None:
        """Let go of a sequence, whatever its state, and of its blocks."""
        seq.finish_reason = seq.finish_reason or reason
        if seq in self.running:
            self.running.remove(seq)
        elif seq in self.waiting:
            self.waiting.remove(seq)
        self.pool.free(seq)

    def _schedule_running(self, seq: Sequence, budget: int, batch: Batch) -> int:
        if not (count := min(seq.num_pending_tokens, budget)):
            return 0  # the run under way brings its last token
        if self.waiting and count > 1:  # nobody waits for the end of somebody else's long prompt
            count = min(count, max(budget // 2, 1))
        draft = self.proposer.propose(seq, len(self.running))[: budget - count]
        if draft and self.pool.grow(seq, seq.num_computed_tokens + count + len(draft)):
            batch.add(seq, count, draft)
            return count + len(draft)
        while not self.pool.grow(seq, seq.num_computed_tokens + count):
            victim = self.running[-1]  # never one of the batch: that goes in the same order
            self._preempt(victim)
            if victim is seq:
                return 0
        batch.add(seq, count, [])
        return count

    def _schedule_waiting(self, budget: int, batch: Batch) -> None:
        """Admit who waits, but for those whose prefix somebody else is computing just now."""
        promised = self._promised_blocks()
        for seq in list(self.waiting):
            if not budget or len(self.running) >= self.limits.max_num_seqs:
                break
            if seq.awaited_block in promised:
                continue
            hits = self._match_prefix(seq)
            seq.awaited_block = self._next_block(seq, len(hits))
            if seq.awaited_block in promised:
                continue
            if not (count := self._admit(seq, hits, budget, batch)):
                break
            budget -= count
            promised.update(seq.block_hashes[len(hits) :])

    def _promised_blocks(self) -> set[bytes]:
        """Digests of the blocks that running sequences will have computed soon."""
        if not (self.limits.enable_prefix_caching and self.waiting):
            return set()
        size = self.pool.block_size
        return {
            digest
            for seq in self.running
            if seq.num_pending_tokens > 1
            for digest in seq.block_hashes[seq.num_computed_tokens // size :]
        }

    @staticmethod
    def _next_block(seq: Sequence, num_hits: int) -> bytes | None:
        """Digest of the first full block that is not cached, if the cache may be used."""
        if seq.prompt_logprobs is not None or num_hits >= len(seq.block_hashes):
            return None
        return seq.block_hashes[num_hits]

    def _admit(self, seq: Sequence, hits: list[int], budget: int, batch: Batch) -> int:
        """Move a waiting sequence into the batch; 0 if there is no room for it."""
        num_hit_tokens = len(hits) * self.pool.block_size
        count = min(len(seq.token_ids) - num_hit_tokens, budget)
        self.pool.share(seq, hits)
        if not self.pool.grow(seq, num_hit_tokens + count):
            self.pool.free(seq)
            return 0
        seq.num_computed_tokens = num_hit_tokens
        if seq.num_cached_tokens is None:
            seq.num_cached_tokens, seq.queue_time_s = num_hit_tokens, seq.age_s
            self.num_queried_tokens += len(seq.token_ids)
            self.num_hit_tokens += num_hit_tokens
        self.waiting.remove(seq)
        insort(self.running, seq, key=RANK)
        self._take_turn(seq)
        batch.add(seq, count, [])
        return count

    def _take_turn(self, seq: Sequence) -> None:
        """Who comes from now on comes after it, if of the same priority."""
        if seq.turn > self._turn:
            self._turn = seq.turn
            turns = self._next_turns.items()
            self._next_turns = {owner: turn for owner, turn in turns if turn > self._turn}

    def _match_prefix(self, seq: Sequence) -> list[int]:
        # a prompt whose log probabilities are wanted has to be computed, all of it
        if not self.limits.enable_prefix_caching or seq.prompt_logprobs is not None:
            return []
        return self.pool.match_prefix(seq)

    def _preempt(self, seq: Sequence) -> None:
        """Back into the queue: its tokens are kept and computed again, mostly as cache hits."""
        self.running.remove(seq)
        self.pool.free(seq)
        seq.num_computed_tokens = 0
        insort(self.waiting, seq, key=RANK)
        self.num_preemptions += 1
