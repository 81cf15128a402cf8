"""What one model run computes, in the model's own terms: rows of tokens and where their keys go."""

from dataclasses import dataclass

import torch
from torch import Tensor

from inference.model.transfer import upload


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """New tokens of several sequences, laid end to end.

    `token_ids` has sum(counts) entries. Sequence i brings `counts[i]` new tokens, the last of them
    at position `context_lens[i]` - 1; its keys and values live in the blocks `block_tables[i]`.
    `logit_rows` are the rows of `token_ids` whose logits are wanted. `sequence_ids` tell a runner
    without a paged cache which sequence it continues.

    A token id of -1 - k is entry k of `sampled`, `[n, 1]`: the tokens of the run before, which only
    the device knows yet.
    """

    token_ids: list[int]
    counts: list[int]
    context_lens: list[int]
    block_tables: list[list[int]]
    logit_rows: list[int]
    sequence_ids: list[int]
    sampled: Tensor | None = None

    def tokens(self, device: torch.device) -> Tensor:
        """`[T]` token ids on the device, all of them real ones."""
        tokens = upload(self.token_ids, device, torch.long)
        if self.sampled is None:
            return tokens
        newest = self.sampled[:, 0].index_select(0, (-1 - tokens).clamp_min(0))
        return torch.where(tokens < 0, newest, tokens)
