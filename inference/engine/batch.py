"""What one step computes."""

from dataclasses import dataclass, field

from inference.engine.sequence import Sequence
from inference.model.inputs import ModelInputs


@dataclass(slots=True)
class Batch:
    """`counts[i]` new tokens of `seqs[i]`."""

    seqs: list[Sequence] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.seqs)

    def add(self, seq: Sequence, count: int) -> None:
        self.seqs.append(seq)
        self.counts.append(count)

    @property
    def sampled(self) -> list[Sequence]:
        """The sequences whose last known token is in this run: a next one can be sampled."""
        pairs = zip(self.seqs, self.counts, strict=True)
        return [seq for seq, count in pairs if count == seq.num_pending_tokens]

    def model_inputs(self) -> ModelInputs:
        """The flattened tokens. Logits come for `sampled` first, then for prompt logprobs."""
        spans = [
            (seq, seq.num_computed_tokens, seq.num_computed_tokens + count)
            for seq, count in zip(self.seqs, self.counts, strict=True)
        ]
        return ModelInputs(
            token_ids=[token for seq, start, end in spans for token in seq.token_ids[start:end]],
            counts=self.counts,
            context_lens=[end for _, _, end in spans],
            block_tables=[seq.block_table for seq in self.seqs],
            logit_rows=self._sample_rows() + [row for row, _, _ in self.scored_prompt_tokens()],
            sequence_ids=[id(seq) for seq in self.seqs],
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
        rows, start = [], 0
        for seq, count in zip(self.seqs, self.counts, strict=True):
            if count == seq.num_pending_tokens:
                rows.append(start + count - 1)
            start += count
        return rows
