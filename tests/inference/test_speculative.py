"""With guesses every request gets the tokens that it gets without."""

import random

import pytest
import torch

from inference.engine.core import EngineCore, EngineLimits
from inference.engine.sequence import Sequence
from inference.engine.speculative import NgramProposer
from inference.request import FinishReason, Request, SamplingParams
from tests.inference.memory_runner import (
    VOCAB_SIZE,
    MemoryRunner,
    make_core,
    make_request,
    mostly_copied,
    naive,
)
from tests.inference.test_engine import drain, take_step

GUESSING = {"answer": mostly_copied, "num_speculative_tokens": 8}


@pytest.mark.parametrize("seed", range(30))
def test_random_arrivals_get_the_naive_answers(seed):
    rng = random.Random(seed)
    block_size = rng.choice([1, 4, 16])
    core = make_core(
        num_blocks=rng.choice([64, 90, 200]) // block_size + 64 // block_size + 1,
        block_size=block_size,
        max_num_seqs=rng.choice([1, 3, 8]),
        max_num_batched_tokens=rng.choice([8, 13, 64]),
        enable_prefix_caching=rng.random() < 0.8,
        **GUESSING,
    )
    common = [rng.randrange(1, 97) for _ in range(24)]
    expected, answers = {}, {}
    for i in range(25):
        prompt = common[: rng.randrange(25)] + [rng.randrange(1, 97) for _ in range(1 + i % 9)]
        max_tokens = rng.randrange(1, 25)
        expected[str(i)] = naive(prompt, max_tokens, mostly_copied)
        core.add(make_request(str(i), prompt, max_tokens))
        for _ in range(rng.randrange(4)):
            take_step(core, answers)
    drain(core, answers)

    assert answers == expected
    assert core.pool.num_free == core.pool.num_blocks - 1
    stats = core.stats()
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
    assert stats.num_generated_tokens == sum(map(len, expected.values()))


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


def generated(params: dict, num_speculative_tokens: int):
    limits = EngineLimits(
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        block_size=4,
        eos_token_ids=frozenset({0}),
        num_speculative_tokens=num_speculative_tokens,
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
