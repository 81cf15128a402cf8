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
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from inference.request import SamplingParams, TokenLogprob

GREEDY_TEMPERATURE = 1e-5  # below this, dividing by it only overflows
LADDER = (64, 1024)  # candidates that are sorted before the whole vocabulary is
MASK64 = 2**64 - 1


class SamplingRow(Protocol):
    """What the sampler needs to know of a sequence. `stop_token_ids` holds EOS unless ignored."""

    token_ids: list[int]
    num_prompt_tokens: int
    noise_key: int
    stop_token_ids: frozenset[int]

    @property
    def params(self) -> SamplingParams: ...

    @property
    def num_output_tokens(self) -> int: ...


class Sampled(NamedTuple):
    """One token per row, and its log probability where the row asks for it."""

    token_ids: list[int]
    logprobs: list[TokenLogprob | None]


def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> Sampled:
    """Choose the next token of each row. `logits` `[n, vocab_size]` float32 is used up."""
    if not rows:
        return Sampled([], [])
    wanted = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
    raw = logits[wanted] if wanted else None
    for row_logits, row in zip(logits, rows, strict=True):
        process(row_logits, row)
    tokens = logits.argmax(-1)
    random = [i for i, row in enumerate(rows) if row.params.temperature >= GREEDY_TEMPERATURE]
    if random:
        tokens[random] = draw(logits[random], [rows[i] for i in random], tokens[random])
    token_ids: list[int] = tokens.tolist()
    logprobs: list[TokenLogprob | None] = [None] * len(rows)
    if raw is not None:
        num_top = [rows[i].params.logprobs or 0 for i in wanted]
        scored = prompt_logprobs(raw, [token_ids[i] for i in wanted], num_top)
        for i, logprob in zip(wanted, scored, strict=True):
            logprobs[i] = logprob
    return Sampled(token_ids, logprobs)


def prompt_logprobs(
    logits: Tensor, next_token_ids: list[int], num_top: list[int]
) -> list[TokenLogprob]:
    """Log probabilities of the token after each row `[m, vocab_size]`, and of the likeliest."""
    if not next_token_ids:
        return []
    lse = logits.logsumexp(-1, keepdim=True)
    index = torch.tensor(next_token_ids, device=logits.device)[:, None]
    chosen = (logits.gather(1, index) - lse)[:, 0].tolist()
    values, ids = logits.topk(min(max(num_top), logits.shape[1]))
    tops = zip(ids.tolist(), (values - lse).tolist(), strict=True)
    return [
        TokenLogprob(token_id, logprob, list(zip(top_ids[:num], top_logprobs[:num], strict=True)))
        for token_id, logprob, num, (top_ids, top_logprobs) in zip(
            next_token_ids, chosen, num_top, tops, strict=True
        )
    ]


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
        bias = {id_: value for id_, value in params.logit_bias.items() if id_ < len(logits)}
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
    num_before = len(bad) - 1
    return num_before == 0 or tuple(token_ids[-num_before:]) == bad[:-1]


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


def draw(logits: Tensor, rows: Sequence[SamplingRow], likeliest: Tensor) -> Tensor:
    """Sampled tokens `[n]` of `logits` `[n, vocab_size]`; `likeliest` where nothing is allowed."""
    device = logits.device

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=device)[:, None]

    noise = column([uniform(row.noise_key, row.num_output_tokens) for row in rows])
    best = logits.amax(-1, keepdim=True)
    scaled = (logits - best) / column([row.params.temperature for row in rows])
    if any(row.params.min_p > 0 for row in rows):
        floor = column(
            [math.log(row.params.min_p) if row.params.min_p else -math.inf for row in rows]
        )
        scaled.masked_fill_(scaled < floor, -torch.inf)
    cut = [i for i, row in enumerate(rows) if row.params.top_k > 0 or row.params.top_p < 1]
    whole = sorted(set(range(len(rows))) - set(cut))
    tokens = torch.empty_like(likeliest)
    if whole:
        tokens[whole] = invert(scaled[whole].softmax(-1), noise[whole])
    if cut:
        top_k = column([rows[i].params.top_k or logits.shape[1] for i in cut])
        top_p = column([rows[i].params.top_p for i in cut])
        tokens[cut] = draw_from_top(scaled[cut], noise[cut], top_k, top_p)
    return torch.where(best[:, 0].isfinite(), tokens, likeliest)


def draw_from_top(scaled: Tensor, noise: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Draw from the nucleus of each row of `[n, vocab_size]`; the rest is `[n, 1]`.

    Sorting a vocabulary takes 10 ms. Few of the likeliest tokens nearly always hold the nucleus,
    and because their share is measured against the whole distribution, it shows if they do not.
    """
    vocab_size = scaled.shape[1]
    total = scaled.logsumexp(-1, keepdim=True)
    tokens = torch.empty(len(scaled), dtype=torch.long, device=scaled.device)
    pending = torch.arange(len(scaled), device=scaled.device)
    for size in (*(size for size in LADDER if size < vocab_size), vocab_size):
        values, candidates = scaled[pending].topk(size)
        k, p = top_k[pending], top_p[pending]
        values.masked_fill_(torch.arange(size, device=k.device) >= k, -torch.inf)
        # Renormalized after top_k, which is known only if the k likeliest are among the candidates
        norm = torch.where(k <= size, values.logsumexp(-1, keepdim=True), total[pending])
        probs = (values - norm).exp()
        mass = probs.cumsum(-1)
        done = ((k <= size) | ((k >= vocab_size) & (mass[:, -1:] >= p)))[:, 0] | (
            size == vocab_size
        )
        inside = (mass - probs < p) | (p >= 1)
        inside[:, 0] = True
        picked = invert(probs * inside, noise[pending])
        tokens[pending[done]] = candidates.gather(1, picked[:, None])[done, 0]
        pending = pending[~done]
        if not len(pending):
            break
    return tokens


def invert(weights: Tensor, noise: Tensor) -> Tensor:
    """The column `[n]` where the cumulative weights of `[n, m]` pass the share `noise` `[n, 1]`.

    Never a column of weight 0: the target stays below the total, and passing needs an increase.
    """
    mass = weights.cumsum(-1)
    total = mass[:, -1:].contiguous()
    target = torch.minimum(noise * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(mass, target, right=True)[:, 0].clamp_max(weights.shape[1] - 1)


def uniform(key: int, position: int) -> float:
    """A number in [0, 1) for an output position: SplitMix64, 24 bits of it (float32 has no more).

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    z = (key + (position + 1) * 0x9E3779B97F4A7C15) & MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return ((z ^ (z >> 31)) >> 40) / 2**24
