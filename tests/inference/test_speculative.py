"""With guesses every request gets the tokens that it gets without."""

import pytest
import torch

from inference.engine.core import EngineCore
from inference.engine.scheduler import EngineLimits
from inference.engine.sequence import Sequence
from inference.engine.speculative import NgramProposer
from inference.request import FinishReason, Request, SamplingParams
from tests.inference.memory_runner import (
    VOCAB_SIZE,
    MemoryRunner,
    drain,
    make_core,
    make_request,
    mostly_copied,
    random_arrivals,
)

GUESSING = {"answer": mostly_copied, "num_speculative_tokens": 8}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_random_arrivals_get_the_naive_answers(seed, ahead):
    max_rows = 5 if seed % 3 == 1 else 16  # with 5 there is room for guesses only now and then
    limits = {"max_speculative_rows": max_rows, "async_scheduling": ahead}
    stats = random_arrivals(seed, **GUESSING, **limits).stats()
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens


def test_copies_take_few_steps():
    core = make_core(**GUESSING | {"answer": lambda token_ids: token_ids[-7]})
    core.add(make_request("copy", [1, 2, 3, 4, 5, 6, 7, 1, 2, 3], 48))
    drain(core)
    assert core.stats().num_steps < 12


def test_failed_guesses_become_rare():
    seq = Sequence(make_request("r", [1, 2, 3] * 9, 600), 600, frozenset(), num_computed_tokens=26)
    proposer, num_guesses = NgramProposer(max_draft=8, max_rows=16), 0
    for _ in range(500):
        if draft := proposer.propose(seq, num_running=1):
            num_guesses += 1
            proposer.learn(seq, len(draft), 0)

    assert 5 < num_guesses < 15


def test_who_does_not_know_its_last_token_guesses_nothing():
    seq = Sequence(make_request("r", [1, 2, 3] * 9, 600), 600, frozenset(), num_computed_tokens=26)
    proposer = NgramProposer(max_draft=8, max_rows=16)
    assert proposer.propose(seq, num_running=1)

    seq.num_computed_tokens, seq.num_output_placeholders = 27, 1
    assert seq.num_pending_tokens == 1
    assert proposer.propose(seq, num_running=1) == []


def test_many_sequences_leave_no_room_for_guesses():
    seq = Sequence(make_request("r", [1, 2, 3] * 9, 600), 600, frozenset(), num_computed_tokens=26)
    proposer = NgramProposer(max_draft=8, max_rows=16)

    assert proposer.propose(seq, num_running=8) == [1]
    assert proposer.propose(seq, num_running=9) == []


def test_a_stop_token_inside_a_guess_is_the_last():
    core = make_core(**GUESSING | {"answer": lambda token_ids: token_ids[-7]})
    core.add(make_request("s", [1, 2, 3, 4, 5, 6, 7] * 2, 30, params={"stop_token_ids": {5}}))
    deltas = []
    while core.has_work:
        deltas += [delta for _, delta in core.step()]

    assert [token for delta in deltas for token in delta.token_ids] == [1, 2, 3, 4, 5]
    assert (deltas[-1].finish_reason, deltas[-1].stop_token_id) == (FinishReason.STOP, 5)
    assert core.pool.num_free == core.pool.num_blocks - 1


class RandomRunner(MemoryRunner):
    """Logits that follow from the last token: few contexts, so that they return."""

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(token_ids[-1] % 5)
        return torch.randn(VOCAB_SIZE, generator=generator) * 4


PARAMS = {
    "seeded": {"temperature": 0.8, "seed": 5},
    "top_p": {"temperature": 1.2, "top_p": 0.7, "seed": 1},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    "bad words": {"temperature": 0.0, "bad_token_ids": ((3, 4), (7,))},
    "minimum": {
        "temperature": 0.5,
        "seed": 2,
        "min_tokens": 30,
        "stop_token_ids": frozenset(range(0, 97, 3)),
    },
    "logprobs": {"temperature": 0.0, "logprobs": 3},
}


def generated(params: dict, num_speculative_tokens: int, *, ahead: bool = False):
    limits = EngineLimits(
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        block_size=4,
        eos_token_ids=frozenset({0}),
        num_speculative_tokens=num_speculative_tokens,
        async_scheduling=ahead,
    )
    core = EngineCore(RandomRunner(512, 4), limits)
    params = SamplingParams(**{"max_tokens": 80, "ignore_eos": True} | params)
    core.add(Request(request_id="r", prompt_token_ids=[5, 6, 7], params=params))
    token_ids, logprobs = [], []
    while core.has_work:
        for _, delta in core.step():
            token_ids += delta.token_ids
            logprobs += delta.logprobs
    return token_ids, logprobs, core.stats()


@pytest.mark.parametrize("name", PARAMS)
def test_every_parameter_gives_the_same_tokens_with_guesses(name):
    plain, plain_logprobs, before = generated(PARAMS[name], 0)
    token_ids, logprobs, stats = generated(PARAMS[name], 8)

    assert token_ids == plain
    assert [(e.token_id, e.top) for e in logprobs] == [(e.token_id, e.top) for e in plain_logprobs]
    assert before.num_draft_tokens == 0
    assert stats.num_draft_tokens > 0


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("num_speculative_tokens", [0, 8])
def test_every_parameter_gives_the_same_when_steps_overlap(name, num_speculative_tokens):
    expected = generated(PARAMS[name], num_speculative_tokens)
    assert generated(PARAMS[name], num_speculative_tokens, ahead=True)[:2] == expected[:2]
