"""From logits to tokens.

The order of processing is vLLM's: log probabilities are those of the untouched logits; then the
allowed tokens, bad tokens, minimum length, bias, penalties; greedy rows take the best; the others
go through temperature, min_p, top_k and top_p.

Sampling is stateless: a draw is the inverse of the cumulative distribution at a uniform number that
follows from the sequence's key and the position alone. So a sequence gets the same tokens whatever
else is in its batch, and after a preemption.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from inference.model.kernels import cpu
from inference.model.transfer import Download, upload
from inference.request import ConstraintState, SamplingParams, TokenLogprob

GREEDY_TEMPERATURE = 1e-5  # below this, dividing by it only overflows
LADDER = (64, 1024)  # candidates that are sorted before the whole vocabulary is
WIDE = 2**14  # vocabularies that are worth some more care on a CPU
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

    The token is NO_TOKEN where the logits hold nan or inf. Of the rows in `late`,
    `Sampling.tokens` had said another token at first.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob | None]
    late: frozenset[int] = frozenset()


@torch.inference_mode()
def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> "Sampling":
    """Begin to choose the next token of each row, without waiting for the device.

    `logits` `[n, vocab_size]` float32 is used up.
    """
    scored = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
    raw = logits[upload(scored, logits.device)] if scored else None
    constrain(logits, rows)
    for row_logits, row in zip(logits, rows, strict=True):
        process(row_logits, row)
    best, tokens = likeliest(logits)
    random = [i for i, row in enumerate(rows) if row.params.temperature >= GREEDY_TEMPERATURE]
    size = logits.shape[1]
    cut = [i for i in random if 0 < rows[i].params.top_k < size or rows[i].params.top_p < 1]
    if whole := sorted({*random} - {*cut}):
        warp = Warp.of([rows[i] for i in whole], take(best, whole))
        weights = warp.apply_(take(logits, whole)).exp_()
        tokens = put(tokens, whole, invert(weights, warp.noise), warp)
    nucleus = None
    if cut:
        warp = Warp.of([rows[i] for i in cut], take(best, cut))
        nucleus = Nucleus(cut, warp.apply_(take(logits, cut)), warp)
    return Sampling(rows, tokens, best, scored, raw, nucleus)


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """As `logits.max(-1, keepdim=True)`, whose search for the index takes a CPU seven times longer
    than all of this: only the part that holds the maximum is searched.
    """
    size, width = logits.shape[1], 256
    if is_far(logits.device) or size < WIDE:
        return logits.max(-1, keepdim=True)
    end = size - size % width
    parts = logits[:, :end].unflatten(1, (-1, width)).amax(-1)
    if end < size:
        parts = torch.cat([parts, logits[:, end:].amax(-1, keepdim=True)], 1)
    best, part = parts.max(-1, keepdim=True)
    index = (part * width + torch.arange(width)).clamp_max(size - 1)
    return best, part * width + logits.gather(1, index).argmax(-1, keepdim=True)


def is_far(device: torch.device) -> bool:
    """Whether looking at a tensor means to wait until the device has done all it was given."""
    return device.type != "cpu"


class Sampling:
    """Tokens `[n, 1]` that the device chooses, and one copy to the host of all there is to know."""

    def __init__(
        self,
        rows: Sequence[SamplingRow],
        tokens: Tensor,
        best: Tensor,
        scored: list[int],
        raw: Tensor | None,
        nucleus: "Nucleus | None",
    ) -> None:
        self._is_broken = ~(best < torch.inf)  # the best of nan and others is nan
        self.tokens, self._scored, self._raw, self._nucleus = tokens, scored, raw, nucleus
        self._num_top = [rows[i].params.logprobs or 0 for i in scored]
        self._asked = [rows[i].params.logprob_token_ids for i in scored]
        self._send(wait=not is_far(tokens.device))

    def _send(self, *, wait: bool) -> None:
        parts = []
        if self._nucleus is not None:
            self.tokens, num_unsure = self._nucleus.draw(self.tokens, wait=wait)
            parts.append(num_unsure)
        if self._raw is not None:
            chosen = take(self.tokens, self._scored)
            parts.append(score_on_device(self._raw, chosen, self._num_top, self._asked))
        everything = self.tokens.masked_fill(self._is_broken, NO_TOKEN)[:, 0]
        if parts:  # float64 holds every token id
            everything = torch.cat([part.flatten().double() for part in (everything, *parts)])
        self._download = Download(everything)

    @torch.inference_mode()
    def result(self) -> Sampled:
        """Wait for the device."""
        token_ids, others = self._received()
        first = token_ids
        if self._nucleus is not None and others[0]:
            self._send(wait=True)
            token_ids, others = self._received()
        late = frozenset(i for i, token_id in enumerate(first) if token_id != token_ids[i])
        logprobs: list[TokenLogprob | None] = [None] * len(token_ids)
        if self._scored:
            scores = others[int(self._nucleus is not None) :]
            chosen = [token_ids[i] for i in self._scored]
            entries = logprobs_of(chosen, scores, self._num_top, self._asked)
            for i, entry in zip(self._scored, entries, strict=True):
                logprobs[i] = entry
        return Sampled(token_ids, logprobs, late)

    def _received(self) -> tuple[list[int], Tensor]:
        """The tokens, and what came with them."""
        values, num_rows = self._download.wait(), len(self.tokens)
        return values[:num_rows].long().tolist(), values[num_rows:]


def score(logits: Tensor, next_token_ids: list[int], num_top: list[int]) -> list[TokenLogprob]:
    """Log probabilities of the token after each row `[m, vocab_size]`, and of the likeliest.

    Waits for the device.
    """
    asked: list[tuple[int, ...]] = [()] * len(num_top)
    tokens = upload(next_token_ids, logits.device, torch.long)[:, None]
    scores = score_on_device(logits, tokens, num_top, asked)
    return logprobs_of(next_token_ids, scores.cpu(), num_top, asked)


def score_on_device(
    logits: Tensor, tokens: Tensor, num_top: list[int], asked: Sequence[tuple[int, ...]]
) -> Tensor:
    """`[m, 2 + 2 * w]` float64, for `logprobs_of`: log probability and rank of `tokens` `[m, 1]`,
    then ids and log probabilities of the likeliest, or of those that the row names in `asked`.
    """
    lse = logits.logsumexp(-1, keepdim=True)
    values = logits.gather(1, tokens)
    ranks = (logits > values).sum(-1, keepdim=True) + 1
    width = max([*num_top, *map(len, asked)], default=0)
    ids = logits.topk(min(width, logits.shape[1])).indices
    if any(asked):
        ids = torch.nn.functional.pad(ids, (0, width - ids.shape[1]))
        named = [[*tokens, *[0] * (width - len(tokens))] for tokens in asked]
        names = upload([[bool(tokens)] for tokens in asked], logits.device)
        ids = torch.where(names, upload(named, logits.device), ids)
    tops = logits.gather(1, ids) - lse
    return torch.cat([part.double() for part in (values - lse, ranks, ids, tops)], -1)


def logprobs_of(
    token_ids: list[int], scores: Tensor, num_top: list[int], asked: Sequence[tuple[int, ...]]
) -> list[TokenLogprob]:
    """What `score_on_device` has found."""
    rows = scores.view(len(token_ids), -1).tolist() if token_ids else []
    entries = []
    for row, token_id, count, names in zip(rows, token_ids, num_top, asked, strict=True):
        logprob, rank, *top = row
        ids, logprobs = map(int, top[: len(top) // 2]), top[len(top) // 2 :]
        pairs = list(zip(ids, logprobs, strict=True))[: len(names) or count]
        entries.append(TokenLogprob(token_id, logprob, pairs, int(rank)))
    return entries


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
    banned = upload(torch.from_numpy(allowed == 0), logits.device)
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
        logits[token_index(bias, logits)] += upload(list(bias.values()), logits.device)
    penalize(logits, row)


def token_index(token_ids: Collection[int], logits: Tensor) -> Tensor:
    """Token ids as an index, without those the model does not have."""
    known = [token_id for token_id in token_ids if 0 <= token_id < len(logits)]
    return upload(known, logits.device, torch.long)


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
        said = Counter(row.token_ids[row.num_prompt_tokens :])
        known = {token_id: count for token_id, count in said.items() if token_id < len(logits)}
        counts = upload(list(known.values()), logits.device, torch.float32)
        values = params.frequency_penalty * counts + params.presence_penalty
        logits[token_index(known, logits)] -= values


class Warp(NamedTuple):
    """How rows of logits become distributions: one column `[n, 1]` per setting."""

    best: Tensor
    temperature: Tensor
    top_k: Tensor  # the largest number for none
    top_p: Tensor
    noise: Tensor
    floor: Tensor | None  # min_p, as a logit relative to the best

    @classmethod
    def of(cls, rows: Sequence[SamplingRow], best: Tensor) -> Self:
        columns = [
            (
                row.params.temperature,
                row.params.top_k or NO_TOP_K,
                row.params.top_p,
                uniform(row.noise_key, row.num_output_tokens),
                math.log(row.params.min_p) if row.params.min_p > 0 else -math.inf,
            )
            for row in rows
        ]
        warp = cls(best, *upload(columns, best.device).T[..., None])
        has_floor = any(row.params.min_p > 0 for row in rows)
        return warp if has_floor else warp._replace(floor=None)

    def rows(self, index: Tensor) -> Self:
        columns = (column if column is None else take(column, index) for column in self)
        return type(self)._make(columns)

    def apply_(self, logits: Tensor) -> Tensor:
        """Scale in place: 0 is the best, -inf what min_p cuts off.

        Work goes on in place: fresh memory of this size costs more page faults than arithmetic.
        """
        logits.sub_(self.best).div_(self.temperature)
        if self.floor is not None:
            logits.masked_fill_(logits < self.floor, -torch.inf)
        return logits


def take(rows: Tensor, index: list[int] | Tensor) -> Tensor:
    """`rows[index]` for an ascending index, without a copy where that is all of them."""
    if len(index) == len(rows):
        return rows
    return rows[upload(index, rows.device, torch.long) if isinstance(index, list) else index]


def put(tokens: Tensor, index: list[int], drawn: Tensor, warp: Warp) -> Tensor:
    """`tokens` with those `drawn`, but for rows without a finite logit: these draw nothing."""
    drawn = torch.where(warp.best.isfinite(), drawn, take(tokens, index))
    if len(index) == len(tokens):
        return drawn
    return tokens.index_copy(0, upload(index, tokens.device), drawn)


class Nucleus(NamedTuple):
    """The rows from which top_k or top_p cut something off, scaled."""

    members: list[int]
    scaled: Tensor
    warp: Warp

    def draw(self, tokens: Tensor, *, wait: bool) -> tuple[Tensor, Tensor]:
        """`tokens` with those of these rows, and of how many `[]` that may be wrong.

        Sorting a vocabulary takes 10 ms. Few of the likeliest tokens nearly always hold the
        nucleus, and because their share is measured against the whole distribution, it shows if
        they do not. Who must not `wait` for that gets what a fixed number of them says.
        """
        warp, vocab_size = self.warp, self.scaled.shape[1]
        if not is_far(tokens.device) and vocab_size >= WIDE:
            drawn = cpu.draw_from_nucleus(self.scaled, warp.top_k, warp.top_p, warp.noise)
            if drawn is not None:
                return put(tokens, self.members, drawn, warp), torch.zeros(())
        ladder = *(size for size in LADDER if size < vocab_size), vocab_size
        pending = torch.arange(len(self.members), device=tokens.device)
        drawn = torch.empty_like(self.warp.noise, dtype=torch.long)
        for size in ladder if wait else [min(LADDER[-1], vocab_size)]:
            scaled, warp = take(self.scaled, pending), self.warp.rows(pending)
            drawn[pending], is_sure = draw_from_top(scaled, warp, size)
            if wait:
                pending = pending[~is_sure[:, 0]]
                if not len(pending):
                    break
        return put(tokens, self.members, drawn, self.warp), (~is_sure).sum()


def draw_from_top(scaled: Tensor, warp: Warp, size: int) -> tuple[Tensor, Tensor]:
    """Draw from what top_k and top_p leave of the `size` likeliest of each row.

    Tokens, and whether there was more that would have been left, both `[n, 1]`.
    """
    vocab_size = scaled.shape[1]
    values, candidates = scaled.topk(size)
    free = warp.top_k >= vocab_size
    weights = values.exp_() * (torch.arange(size, device=scaled.device) < warp.top_k)
    whole = scaled.logsumexp(-1, keepdim=True).exp()
    probs = weights / torch.where(free, whole, weights.sum(-1, keepdim=True))
    mass = probs.cumsum(-1)
    inside = (mass - probs < warp.top_p) | (warp.top_p >= 1)
    inside[:, 0] = True
    is_sure = (warp.top_k <= size) | (free & (mass[:, -1:] >= warp.top_p)) | (size == vocab_size)
    return candidates.gather(1, invert(probs * inside, warp.noise)), is_sure


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
