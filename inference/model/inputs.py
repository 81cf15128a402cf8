"""What one model run computes, in the model's own terms: rows of tokens and where their keys go."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """New tokens of several sequences, laid end to end.

    `token_ids` has sum(counts) entries. Sequence i brings `counts[i]` new tokens, the last of them
    at position `context_lens[i]` - 1; its keys and values live in the blocks `block_tables[i]`.
    `logit_rows` are the rows of `token_ids` whose logits are wanted. `sequence_ids` tell a runner
    without a paged cache which sequence it continues.
    """

    token_ids: list[int]
    counts: list[int]
    context_lens: list[int]
    block_tables: list[list[int]]
    logit_rows: list[int]
    sequence_ids: list[int]
