"""What one step computes."""

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import accumulate

from torch import Tensor

from inference.engine.sequence import Sequence
from inference.model.inputs import ModelInputs


class DraftRow:
    """A sequence as it would be after some tokens of its draft: what the sampler looks at."""

    constraint = None  # sequences with one have no drafts

    def __init__(self, seq: Sequence, draft: list[int]) -> None:
        self._seq, self._draft = seq, draft
        self.params, self.noise_key = seq.params, seq.noise_key
        self.stop_token_ids = seq.stop_token_ids
        self.num_prompt_tokens = seq.num_prompt_tokens
        self.num_output_tokens = seq.num_output_tokens + len(draft)

    @property
    def token_ids(self) -> list[int]:
        return self._seq.token_ids + self._draft


@dataclass(slots=True)
class Batch:
    """`counts[i]` new tokens of `seqs[i]`, the last of which are guesses: `drafts[i]`."""

    seqs: list[Sequence] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    drafts: list[list[int]] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)  # whose last known token is in this run

    def __bool__(self) -> bool:
        return bool(self.seqs)

    def add(self, seq: Sequence, count: int, draft: list[int]) -> None:
        if count == seq.num_pending_tokens:
            self.sampled.append(len(self.seqs))
        self.seqs.append(seq)
        self.counts.append(count + len(draft))
        self.drafts.append(draft)

    def without(self, seqs: Collection[Sequence]) -> "Batch":
        if not seqs:
            return self
        rest = Batch()
        for seq, count, draft in zip(self.seqs, self.counts, self.drafts, strict=True):
            if seq not in seqs:
                rest.add(seq, count - len(draft), draft)
        return rest

    def rows(self) -> list[Sequence | DraftRow]:
        """What is sampled: the token after each of these, and after every token of its draft."""
        rows: list[Sequence | DraftRow] = []
        for index in self.sampled:
            seq, draft = self.seqs[index], self.drafts[index]
            rows.append(seq)
            rows += [DraftRow(seq, draft[: n + 1]) for n in range(len(draft))]
        return rows

    def model_inputs(self, before: "Batch", sampled: Tensor | None) -> ModelInputs:
        """The flattened tokens. Logits come for `rows` first, then for prompt logprobs.

        What the run `before` has `sampled` stands in for tokens that nobody has seen yet.
        """
        places = {before.seqs[index]: row for row, index in enumerate(before.sampled)}
        spans = [
            (seq, seq.num_computed_tokens, seq.num_computed_tokens + count)
            for seq, count in zip(self.seqs, self.counts, strict=True)
        ]
        token_ids: list[int] = []
        for (seq, start, end), draft in zip(spans, self.drafts, strict=True):
            token_ids += seq.token_ids[start:end] + draft
            if len(seq.token_ids) < end - len(draft):
                token_ids.append(-1 - places[seq])
        return ModelInputs(
            token_ids=token_ids,
            counts=self.counts,
            context_lens=[end for _, _, end in spans],
            block_tables=[seq.block_table for seq in self.seqs],
            logit_rows=self._sample_rows() + [row for row, _, _ in self.scored_prompt_tokens()],
            sequence_ids=[id(seq) for seq in self.seqs],
            sampled=sampled if min(token_ids) < 0 else None,
        )

    def scored_prompt_tokens(self) -> list[tuple[int, Sequence, int]]:
        """(row, sequence, prompt position scored by that row) for each prompt logprob of this run.

        The row of position p holds the distribution of the token at p + 1.
        """
        scored, start = [], 0
        for seq, count in zip(self.seqs, self.counts, strict=True):
            if seq.prompt_logprobs is not None:
                first = seq.num_computed_tokens
                last = min(first + count, seq.num_prompt_tokens - 1)
                # after a preemption the prompt runs again: what is known is not asked twice
                known = len(seq.prompt_logprobs) - 1
                scored += [(start + p - first, seq, p + 1) for p in range(max(first, known), last)]
            start += count
        return scored

    def _sample_rows(self) -> list[int]:
        ends = list(accumulate(self.counts))
        return [
            row
            for index in self.sampled
            for row in range(ends[index] - len(self.drafts[index]) - 1, ends[index])
        ]
