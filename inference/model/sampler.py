"""From logits to tokens.

The order of processing is vLLM's: log probabilities are those of the untouched logits; then the
allowed tokens, bad tokens, minimum length, bias, penalties; greedy rows take the best; the others
go through temperature, min_p, top_k and top_p.

Sampling is stateless: a draw is the inverse of the cumulative distribution at a uniform number that
follows from the sequence's key and the position alone. So a sequence gets the same tokens whatever
else is in its batch, and after a preemption.
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from inference.request import ConstraintState, SamplingParams, TokenLogprob

GREEDY_TEMPERATURE = 1e-5  # below this, dividing by it only overflows
LADDER = (64, 1024)  # candidates that are sorted before the whole vocabulary is
NO_TOP_K = 2**24  # exact in float32, above any vocabulary
MASK64 = 2**64 - 1
NO_TOKEN = -1


class SamplingRow(Protocol):
    """What the sampler needs to know of a sequence. `stop_token_ids` holds EOS unless ignored."""

    token_ids: list[int]
    num_prompt_tokens: int
    noise_key: int
    stop_token_ids: frozenset[int]
    constraint: ConstraintState | None

    @property
    def params(self) -> SamplingParams: ...

    @property
    def num_output_tokens(self) -> int: ...


class Sampled(NamedTuple):
    """One token per row, and its log probability where the row asks for it.

    The token is NO_TOKEN where the logits hold nan or inf.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob | None]


@torch.inference_mode()
def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> Sampled:
    """Choose the next token of each row. `logits` `[n, vocab_size]` float32 is used up."""
    if not rows:
        return Sampled([], [])
    wanted = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
    raw = logits[wanted] if wanted else None
    constrain(logits, rows)
    for row_logits, row in zip(logits, rows, strict=True):
        process(row_logits, row)
    best, tokens = logits.max(-1, keepdim=True)
    random = [i for i, row in enumerate(rows) if row.params.temperature >= GREEDY_TEMPERATURE]
    if random:
        warp = Warp.of([rows[i] for i in random], take(best, random))
        drawn = draw(take(logits, random), warp)
        # Of a row without a finite logit nothing can be drawn
        tokens[random] = torch.where(warp.best.isfinite(), drawn, take(tokens, random))
    tokens.masked_fill_(~(best < torch.inf), NO_TOKEN)  # the best of nan and others is nan
    token_ids: list[int] = tokens[:, 0].tolist()
    logprobs: list[TokenLogprob | None] = [None] * len(rows)
    if raw is not None:
        num_top = [rows[i].params.logprobs or 0 for i in wanted]
        asked = [rows[i].params.logprob_token_ids for i in wanted]
        scored = score(raw, [max(token_ids[i], 0) for i in wanted], num_top, asked)
        for i, logprob in zip(wanted, scored, strict=True):
            logprobs[i] = logprob
    return Sampled(token_ids, logprobs)


def score(
    logits: Tensor,
    next_token_ids: list[int],
    num_top: list[int],
    asked: Sequence[tuple[int, ...]] | None = None,
) -> list[TokenLogprob]:
    """Log probabilities of the token after each row `[m, vocab_size]`, and of the likeliest.

    Rows that name tokens in `asked` get those instead of the likeliest.
    """
    if not next_token_ids:
        return []
    lse = logits.logsumexp(-1, keepdim=True)
    index = torch.tensor(next_token_ids, device=logits.device)[:, None]
    values = logits.gather(1, index)
    chosen, ranks = (values - lse)[:, 0].tolist(), ((logits > values).sum(-1) + 1).tolist()
    top_values, top_ids = logits.topk(min(max(num_top), logits.shape[1]))
    ids, logprobs = top_ids.tolist(), (top_values - lse).tolist()
    tops = [
        list(zip(row[:num], row_logprobs[:num], strict=True))
        for row, row_logprobs, num in zip(ids, logprobs, num_top, strict=True)
    ]
    for i, tokens in enumerate(asked or ()):
        if tokens:
            tops[i] = list(zip(tokens, (logits[i, list(tokens)] - lse[i]).tolist(), strict=True))
    return [TokenLogprob(*entry) for entry in zip(next_token_ids, chosen, tops, ranks, strict=True)]


def constrain(logits: Tensor, rows: Sequence[SamplingRow]) -> None:
    """Leave to each row that has a constraint, in place, only the tokens that it allows."""
    states = [(i, row.constraint) for i, row in enumerate(rows) if row.constraint is not None]
    if not states:
        return
    vocab_size = logits.shape[1]
    bits = np.full((len(states), -(-vocab_size // 32)), -1, dtype=np.int32)
    for bitmask, (_, state) in zip(bits, states, strict=True):
        state.fill(bitmask)
    allowed = np.unpackbits(bits.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
    banned = torch.from_numpy(allowed == 0).to(logits.device)
    if len(states) == len(rows):
        logits.masked_fill_(banned, -torch.inf)
        return
    for (i, _), row in zip(states, banned, strict=True):
        logits[i].masked_fill_(row, -torch.inf)


def process(logits: Tensor, row: SamplingRow) -> None:
    """Apply, in place, whatever the row asks for that holds for greedy decoding as well."""
    params = row.params
    if params.allowed_token_ids is not None:
        keep_only(logits, params.allowed_token_ids)
    banned = [bad[-1] for bad in params.bad_token_ids if completes(row.token_ids, bad)]
    if row.num_output_tokens < params.min_tokens:
        banned += row.stop_token_ids
    if banned:
        logits[token_index(banned, logits)] = -torch.inf
    if params.logit_bias:
        bias = {id_: value for id_, value in params.logit_bias.items() if 0 <= id_ < len(logits)}
        values = torch.tensor(list(bias.values()), device=logits.device)
        logits[token_index(bias, logits)] += values
    penalize(logits, row)


def token_index(token_ids: Collection[int], logits: Tensor) -> Tensor:
    """Token ids as an index, without those the model does not have."""
    known = [token_id for token_id in token_ids if 0 <= token_id < len(logits)]
    return torch.tensor(known, dtype=torch.long, device=logits.device)


def keep_only(logits: Tensor, token_ids: Collection[int]) -> None:
    index = token_index(token_ids, logits)
    kept = logits[index]
    logits.fill_(-torch.inf)
    logits[index] = kept


def completes(token_ids: list[int], bad: tuple[int, ...]) -> bool:
    """Whether the last token of `bad` would complete it."""
    return bool(bad) and tuple(token_ids[len(token_ids) - len(bad) + 1 :]) == bad[:-1]


def penalize(logits: Tensor, row: SamplingRow) -> None:
    """Repetition penalty over prompt and output; frequency and presence over the output."""
    params = row.params
    if params.repetition_penalty != 1.0:
        seen = token_index(set(row.token_ids), logits)
        values, penalty = logits[seen], params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if params.frequency_penalty or params.presence_penalty:
        output = token_index(row.token_ids[row.num_prompt_tokens :], logits)
        said, counts = output.unique(return_counts=True)
        logits[said] -= params.frequency_penalty * counts + params.presence_penalty


class Warp(NamedTuple):
    """How rows of logits become distributions: one column `[n, 1]` per setting."""

    best: Tensor
    temperature: Tensor
    floor: Tensor  # min_p, as a logit relative to the best
    top_k: Tensor  # the largest number for none
    top_p: Tensor
    noise: Tensor

    @classmethod
    def of(cls, rows: Sequence[SamplingRow], best: Tensor) -> Self:
        columns = [
            (
                row.params.temperature,
                math.log(row.params.min_p) if row.params.min_p > 0 else -math.inf,
                row.params.top_k or NO_TOP_K,
                row.params.top_p,
                uniform(row.noise_key, row.num_output_tokens),
            )
            for row in rows
        ]
        return cls(best, *torch.tensor(columns, device=best.device).T[..., None])

    def rows(self, index: list[int] | Tensor) -> Self:
        return type(self)(*(take(column, index) for column in self))

    def apply_(self, logits: Tensor) -> Tensor:
        """Scale in place: 0 is the best, -inf what min_p cuts off."""
        logits.sub_(self.best).div_(self.temperature)
        if self.floor.isfinite().any():
            logits.masked_fill_(logits < self.floor, -torch.inf)
        return logits


def take(rows: Tensor, index: list[int] | Tensor) -> Tensor:
    """`rows[index]` for an ascending index, without a copy where that is all of them."""
    return rows if len(index) == len(rows) else rows[index]


def draw(logits: Tensor, warp: Warp) -> Tensor:
    """Sampled tokens `[n, 1]` of `logits` `[n, vocab_size]`, which are used up.

    Work goes on in place: fresh memory of this size costs more page faults than arithmetic.
    """
    scaled = warp.apply_(logits)
    tokens = torch.empty(len(logits), 1, dtype=torch.long, device=logits.device)
    is_cut = ((warp.top_k < logits.shape[1]) | (warp.top_p < 1))[:, 0]
    cut, whole = is_cut.nonzero()[:, 0], (~is_cut).nonzero()[:, 0]
    if len(whole):
        tokens[whole] = invert(take(scaled, whole).exp_(), take(warp.noise, whole))
    if len(cut):
        tokens[cut] = draw_from_top(take(scaled, cut), warp.rows(cut))
    return tokens


def draw_from_top(scaled: Tensor, warp: Warp) -> Tensor:
    """Draw from what top_k and top_p leave of each row: tokens `[n, 1]`.

    Sorting a vocabulary takes 10 ms. Few of the likeliest tokens nearly always hold the nucleus,
    and because their share is measured against the whole distribution, it shows if they do not.
    """
    vocab_size = scaled.shape[1]
    unlimited = warp.top_k >= vocab_size
    whole_mass = scaled.logsumexp(-1, keepdim=True).exp() if unlimited.any() else warp.noise
    tokens = torch.empty_like(unlimited, dtype=torch.long)
    pending = torch.arange(len(scaled), device=scaled.device)
    for size in (*(size for size in LADDER if size < vocab_size), vocab_size):
        part, free = warp.rows(pending), take(unlimited, pending)
        values, candidates = take(scaled, pending).topk(size)
        weights = values.exp_() * (torch.arange(size, device=scaled.device) < part.top_k)
        total = torch.where(free, take(whole_mass, pending), weights.sum(-1, keepdim=True))
        probs = weights / total
        mass = probs.cumsum(-1)
        inside = (mass - probs < part.top_p) | (part.top_p >= 1)
        inside[:, 0] = True
        drawn = candidates.gather(1, invert(probs * inside, part.noise))
        done = (part.top_k <= size) | (free & (mass[:, -1:] >= part.top_p)) | (size == vocab_size)
        tokens[pending[done[:, 0]]] = drawn[done[:, 0]]
        pending = pending[~done[:, 0]]
        if not len(pending):
            break
    return tokens


def invert(weights: Tensor, noise: Tensor) -> Tensor:
    """The column `[n, 1]` where `weights` `[n, m]`, added up in place, pass the share `noise`.

    Never a column of weight 0: the target stays below the total, and passing needs an increase.
    """
    mass = weights.cumsum_(-1)
    total = mass[:, -1:].contiguous()
    target = torch.minimum(noise * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(mass, target, right=True).clamp_max(mass.shape[1] - 1)


def uniform(key: int, position: int) -> float:
    """A number in [0, 1) for an output position: SplitMix64, 24 bits of it (float32 has no more).

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    z = (key + (position + 1) * 0x9E3779B97F4A7C15) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return ((z ^ (z >> 31)) >> 40) / 2**24
