"""Tokens from logits, against transformers' warpers, a naive loop and the exact distribution."""

import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, is_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from inference.model import sampler
from inference.model.kernels import cpu
from inference.model.sampler import NO_TOKEN, Sampled, score, uniform
from inference.request import ConstraintState, SamplingParams

torch.set_num_threads(1)

NUM_DRAWS = 4000
META = torch.device("meta")


@dataclass
class Row:
    params: SamplingParams
    token_ids: list[int] = field(default_factory=lambda: [0])
    num_prompt_tokens: int = 1
    noise_key: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    constraint: ConstraintState | None = None

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens


def sample(logits: Tensor, rows: list[Row]) -> Sampled:
    return sampler.sample(logits, rows).result()


def random_logits(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def greedy(logits: Tensor, row: Row) -> int:
    return sample(logits[None].clone(), [row]).token_ids[0]


def drawn(logits: Tensor, params: SamplingParams, num_draws: int = NUM_DRAWS) -> Counter[int]:
    rows = [Row(params, noise_key=key * 7919) for key in range(num_draws)]
    return Counter(sample(logits.expand(num_draws, -1).clone(), rows).token_ids)


def assert_distributed(counts: Counter[int], probs: Tensor) -> None:
    """Chi-square of the counts, five standard deviations wide; nothing outside of the support."""
    num_draws = sum(counts.values())
    support = [token for token, prob in enumerate(probs.tolist()) if prob > 0]
    assert set(counts) <= set(support)
    expected = {token: num_draws * float(probs[token]) for token in support}
    chi2 = sum((counts[token] - mean) ** 2 / mean for token, mean in expected.items())
    freedom = len(support) - 1
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom) + 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 1000},
        {"top_p": 0.3},
        {"top_p": 0.8},
        {"top_p": 1e-6},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"top_k": 8, "top_p": 0.7},
        {"min_p": 0.1, "top_k": 6, "top_p": 0.9, "temperature": 1.3},
    ],
)
def test_draws_follow_the_warped_softmax(settings):
    logits = random_logits(24)
    warped = logits[None] / settings.get("temperature", 1.0)
    if "min_p" in settings:
        warped = MinPLogitsWarper(settings["min_p"])(None, warped)
    if "top_k" in settings:
        warped = TopKLogitsWarper(settings["top_k"])(None, warped)
    if "top_p" in settings:
        warped = TopPLogitsWarper(settings["top_p"])(None, warped)
    counts = drawn(logits, SamplingParams(**settings))
    kept = warped[0].softmax(-1)
    assert_distributed(counts, kept)
    likely = {token for token, prob in enumerate(kept.tolist()) if prob > 0.005}
    assert likely <= set(counts)


@pytest.mark.parametrize("scale", [0.1, 2.0])
@pytest.mark.parametrize("way", ["kernel", "ladder"])
def test_the_likeliest_tokens_are_found_without_sorting_all(way, scale, monkeypatch):
    settings = [
        {"top_k": 50},
        {"top_k": 500, "top_p": 0.9},
        {"top_k": 5000},
        {"top_p": 0.5},
        {"top_p": 0.99},
        {"top_p": 0.9999, "min_p": 0.01},
        {"top_k": 150_000, "top_p": 0.95},
    ]
    rows = [Row(SamplingParams(**kind), noise_key=key) for kind in settings for key in range(2)]
    logits = random_logits(1, 150_000, scale=scale).expand(len(rows), -1)
    if way == "kernel":
        if cpu.library() is None:
            pytest.skip("needs a C++ compiler")
        monkeypatch.setattr(sampler, "draw_from_top", None)
        fast = sample(logits.clone(), rows).token_ids
        monkeypatch.undo()
    monkeypatch.setattr(cpu, "draw_from_nucleus", lambda *tensors: None)
    if way == "ladder":
        fast = sample(logits.clone(), rows).token_ids
    monkeypatch.setattr(sampler, "LADDER", ())
    assert fast == sample(logits.clone(), rows).token_ids
    assert len(set(fast)) > 5


@pytest.mark.skipif(cpu.library() is None, reason="needs a C++ compiler")
def test_the_kernel_draws_what_a_sort_draws():
    """Many rows of odd sizes, with ties, and tokens that cannot be."""
    generator = torch.Generator().manual_seed(3)
    for size in (1, 15, 16, 700, 5003):
        logits = torch.randn(200, size, generator=generator).mul_(3).round_(decimals=1)
        logits[:, 1::7] = -math.inf
        scaled = logits - logits.amax(-1, keepdim=True)
        top_k, top_p, noise = torch.rand(3, 200, 1, generator=generator)
        top_k = torch.where(top_k < 0.5, (top_k * 2 * size).ceil().clamp_min(1), sampler.NO_TOP_K)
        top_p = torch.where(top_p < 0.8, top_p / 0.8, 1.0).clamp_min(1e-9)
        tokens = cpu.draw_from_nucleus(scaled, top_k, top_p, noise)
        values, order = scaled.double().sort(dim=-1, descending=True, stable=True)
        weights = values.exp() * (torch.arange(size) < top_k)
        mass = weights.cumsum(-1)
        weights[mass - weights >= top_p * mass[:, -1:]] = 0
        mass = weights.cumsum(-1)
        place = (mass <= noise * mass[:, -1:]).sum(-1, keepdim=True).clamp_max(size - 1)
        assert (tokens == order.gather(1, place)).float().mean() > 0.99  # but for rounding


class NoLists(TorchFunctionMode):
    """Refuses a list as an index: torch would wait until the device has it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            assert not isinstance(args[1], list)
        return func(*args, **(kwargs or {}))


class NoWaiting(TorchDispatchMode):
    """Refuses a copy to the device that is waited for.

    From the meta device nothing can be read at all, as by `item`, `tolist`, `nonzero` or a mask.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if is_tensor(x)]
        far = any(x.device.type == "meta" for x in leaves) or kwargs.get("device") == META
        if far and any(x.device.type == "cpu" and x.dim() for x in leaves):
            assert kwargs.get("non_blocking"), f"{func} waits"
        return func(*args, **kwargs)


class Bits:
    def fill(self, bitmask) -> None:
        bitmask[:] = 1


@pytest.mark.parametrize("num_rows", [1, 4])
@pytest.mark.parametrize("vocab_size", [50, 5000])
@pytest.mark.parametrize(
    "kind",
    [
        {"temperature": 0.0},
        {},
        {"top_p": 0.9},
        {"top_k": 5},
        {"top_k": 5, "top_p": 0.5, "min_p": 0.1},
        {"logprobs": 3},
        {"logprobs": 0, "logprob_token_ids": (4, 5)},
        {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.1},
        {"logit_bias": {3: 1.0}, "bad_token_ids": ((2,), (0, 3))},
        {"allowed_token_ids": (1, 2, 3), "min_tokens": 5},
    ],
)
@pytest.mark.parametrize("constraint", [None, Bits()])
def test_nothing_waits_for_the_device_and_one_copy_comes_back(
    kind, constraint, vocab_size, num_rows, monkeypatch
):
    copies = []
    monkeypatch.setattr(sampler, "Download", copies.append)
    rows = [Row(SamplingParams(**kind), constraint=constraint) for _ in range(num_rows)]
    rows += [Row(SamplingParams(temperature=0.0)), Row(SamplingParams(top_p=0.5))][: num_rows - 1]
    with NoLists(), NoWaiting():
        sampler.sample(torch.empty(len(rows), vocab_size, device="meta"), rows)

    assert [copy.device.type for copy in copies] == ["meta"]


def test_a_draw_does_not_depend_on_the_batch():
    logits = random_logits(6, 300)
    kinds: list[dict] = [{}, {"top_p": 0.9}, {"top_k": 3}, {"temperature": 0.0}, {"min_p": 0.1}, {}]
    rows = [Row(SamplingParams(**kind), noise_key=99 + i) for i, kind in enumerate(kinds)]
    together = sample(logits.clone(), rows).token_ids
    alone = [sample(logits[i : i + 1].clone(), rows[i : i + 1]).token_ids[0] for i in range(6)]
    assert together == alone
    turned = sample(logits.flip(0).clone(), rows[::-1]).token_ids
    assert together == turned[::-1]


def test_a_draw_depends_on_key_and_position():
    logits = random_logits(5000)
    params = SamplingParams()
    key = {greedy(logits, Row(params, noise_key=key)) for key in range(20)}
    position = {greedy(logits, Row(params, token_ids=[0] * n)) for n in range(1, 21)}
    assert len(key) > 15
    assert len(position) > 15


def test_uniform_is_splitmix64():
    # The first outputs of the reference implementation for seed 1234567
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [uniform(1234567, i) for i in range(3)] == [(x >> 40) / 2**24 for x in reference]
    draws = [uniform(key, position) for key in range(100) for position in range(100)]
    assert 0 <= min(draws) < 0.001
    assert 0.999 < max(draws) < 1
    assert abs(sum(draws) / len(draws) - 0.5) < 0.01


@pytest.mark.parametrize("noise", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("settings", [{}, {"top_p": 0.9}, {"top_k": 10}])
def test_the_ends_of_the_distribution_are_safe(noise, settings, monkeypatch):
    monkeypatch.setattr(sampler, "uniform", lambda key, position: noise)
    logits = torch.full((1000,), -torch.inf)
    logits[[400, 401, 600]] = torch.tensor([1.0, 1.0, 1.0])
    row = Row(SamplingParams(**settings))
    assert greedy(logits, row) in (400, 401, 600)
    flat = torch.zeros(200_000)
    assert 0 <= greedy(flat, row) < 200_000


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_p": 0.5}, {"min_p": 0.5}])
def test_nothing_allowed_still_gives_a_token(settings):
    row = Row(SamplingParams(**settings, logprobs=2))
    (token_id,) = sample(torch.full((1, 100), -torch.inf), [row]).token_ids
    assert 0 <= token_id < 100


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_p": 0.5}, {"min_p": 0.5}])
def test_a_row_that_is_not_finite_gives_none_and_changes_no_other(settings, wrong):
    logits = random_logits(3, 100)
    rows = [Row(SamplingParams(**settings, seed=i, logprobs=2)) for i in range(3)]
    expected = sample(logits.clone(), rows)
    logits[1, 17] = wrong
    token_ids, logprobs, _ = sample(logits, rows)

    assert token_ids == [expected.token_ids[0], NO_TOKEN, expected.token_ids[2]]
    assert [logprobs[0], logprobs[2]] == [expected.logprobs[0], expected.logprobs[2]]


def test_greedy_takes_the_best_and_tiny_temperatures_are_greedy():
    logits = random_logits(4, 50)
    rows = [Row(SamplingParams(temperature=t)) for t in (0.0, 0.0, 1e-6, 1e-4)]
    assert sample(logits.clone(), rows).token_ids == logits.argmax(-1).tolist()
    assert sample(logits[:0], []) == ([], [], frozenset())


@pytest.mark.parametrize("size", [100, 16384, 16384 + 1, 20000])
def test_the_likeliest_are_the_maximum_and_its_first_place(size):
    logits = torch.randn(6, size)
    logits[1, [size - 1, 70, 90]] = 99.0
    logits[2, size - 1] = 99.0
    logits[3, 60] = math.nan
    logits[4] = -math.inf
    logits[5, [60, 50]] = math.inf
    best, tokens = sampler.likeliest(logits)
    expected = logits.max(-1, keepdim=True)

    assert torch.equal(best.nan_to_num(7), expected.values.nan_to_num(7))
    assert torch.equal(tokens, expected.indices)


def test_logits_of_a_model_run_can_be_processed():
    with torch.inference_mode():
        logits = random_logits(2, 50)
    rows = [Row(SamplingParams(top_p=0.9, logit_bias={7: 100.0})), Row(SamplingParams(min_p=0.1))]
    assert sample(logits, rows).token_ids[0] == 7


def naive_penalties(logits: list[float], row: Row) -> list[float]:
    params, out = row.params, list(logits)
    output = row.token_ids[row.num_prompt_tokens :]
    for token in set(row.token_ids):
        rate = params.repetition_penalty
        out[token] = out[token] / rate if out[token] > 0 else out[token] * rate
    for token in set(output):
        out[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    return out


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.7},
        {"frequency_penalty": 0.6},
        {"presence_penalty": -0.9},
        {"repetition_penalty": 0.8, "frequency_penalty": -0.3, "presence_penalty": 1.1},
    ],
)
def test_penalties_equal_a_naive_loop(settings):
    row = Row(SamplingParams(**settings), token_ids=[3, 4, 4, 9, 9, 9, 2, 4], num_prompt_tokens=3)
    logits = random_logits(20)
    processed = logits.clone()
    sampler.process(processed, row)
    torch.testing.assert_close(processed, torch.tensor(naive_penalties(logits.tolist(), row)))


def test_penalties_leave_the_neighbours_alone():
    logits = random_logits(3, 20)
    rows = [Row(SamplingParams(temperature=0)) for _ in range(3)]
    tokens = [0, int(logits[1].argmax())]
    rows[1] = Row(SamplingParams(temperature=0, presence_penalty=2.0, logprobs=0), tokens)
    before = logits.argmax(-1).tolist()
    ids, logprobs, _ = sample(logits.clone(), rows)
    assert ids[0] == before[0]
    assert ids[1] != before[1]
    assert ids[2] == before[2]
    # Log probabilities are those of the untouched logits
    assert logprobs[1].logprob == pytest.approx(float(logits[1].log_softmax(-1)[ids[1]]), abs=1e-5)


def test_allowed_tokens_and_bias():
    logits = random_logits(30)
    second = int(logits.argsort(descending=True)[1])
    row = Row(SamplingParams(temperature=0, allowed_token_ids=(second, 29, 10**6)))
    assert greedy(logits, row) in (second, 29)
    assert set(drawn(logits, SamplingParams(allowed_token_ids=(1, 2)), 200)) == {1, 2}
    row = Row(SamplingParams(temperature=0, logit_bias={7: 100.0, 10**6: 100.0}))
    assert greedy(logits, row) == 7
    counts = drawn(logits, SamplingParams(logit_bias={7: -100.0}))
    assert 7 not in counts


def test_bad_tokens():
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0])
    params = SamplingParams(temperature=0, bad_token_ids=((3,), (0, 1, 2)))
    assert greedy(logits, Row(params, token_ids=[1, 0, 1])) == 1
    assert greedy(logits, Row(params, token_ids=[0, 0, 0])) == 2
    assert greedy(logits, Row(params, token_ids=[1])) == 2


def test_min_tokens_hold_back_the_stop_ids():
    logits = torch.tensor([0.0, 1.0, 2.0])
    params = SamplingParams(temperature=0, min_tokens=2)
    stops = frozenset({1, 2})
    assert greedy(logits, Row(params, [5, 0], stop_token_ids=stops)) == 0
    assert greedy(logits, Row(params, [5, 0, 0], stop_token_ids=stops)) == 2
    assert greedy(logits, Row(params, [5, 0])) == 2


def test_logprobs_equal_log_softmax():
    logits = random_logits(3, 40)
    wanted = [None, 0, 5]
    rows = [Row(SamplingParams(temperature=0.7, top_k=4, logprobs=k)) for k in wanted]
    ids, (none, bare, full), _ = sample(logits.clone(), rows)
    exact = logits.log_softmax(-1)
    assert none is None
    assert bare.top == []
    assert bare.token_id == ids[1]
    assert bare.logprob == pytest.approx(float(exact[1, ids[1]]), abs=1e-5)
    values, order = exact[2].topk(5)
    assert [token for token, _ in full.top] == order.tolist()
    assert [logprob for _, logprob in full.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_rows_that_name_tokens_get_those_beside_rows_that_do_not():
    logits = random_logits(3, 40)
    named = [(7, 3), (), (1, 2, 3, 4, 5)]
    kinds = [
        {"logprobs": k, "logprob_token_ids": names}
        for k, names in zip((4, 3, 0), named, strict=True)
    ]
    rows = [Row(SamplingParams(temperature=0.0, **kind)) for kind in kinds]
    entries = sample(logits.clone(), rows).logprobs
    exact = logits.log_softmax(-1)
    expected = [[7, 3], exact[1].topk(3).indices.tolist(), [1, 2, 3, 4, 5]]
    assert [[token for token, _ in entry.top] for entry in entries] == expected
    for row, entry in zip(exact, entries, strict=True):
        assert [p for _, p in entry.top] == pytest.approx([float(row[t]) for t, _ in entry.top])


def test_prompt_logprobs():
    logits = random_logits(3, 40)
    entries = score(logits, [7, 8, 9], [0, 2, 100])
    exact = logits.log_softmax(-1)
    chosen = [float(exact[i, i + 7]) for i in range(3)]
    assert [entry.token_id for entry in entries] == [7, 8, 9]
    assert [entry.logprob for entry in entries] == pytest.approx(chosen, abs=1e-5)
    assert [len(entry.top) for entry in entries] == [0, 2, 40]
    assert entries[1].top[0][0] == int(logits[1].argmax())
    assert score(logits[:0], [], []) == []
