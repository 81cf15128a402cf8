"""Runs that are launched before the tokens of the run before are known."""

import pytest
import torch

from inference.engine.core import EngineCore
from inference.engine.scheduler import EngineLimits
from inference.errors import EngineFailed
from inference.model import sampler
from inference.request import FinishReason, Request, SamplingParams
from tests.inference.memory_runner import (
    MemoryRunner,
    check_blocks,
    drain,
    make_core,
    make_request,
    mostly_copied,
    naive,
)


def watched(core: EngineCore) -> list[list[int]]:
    """The token ids of each run from now on, as the runner is told them."""
    forward, runs = core._runner.forward, []
    core._runner.forward = lambda inputs: runs.append(inputs.token_ids) or forward(inputs)
    return runs


def test_a_run_is_launched_before_the_tokens_of_the_one_before_are_known():
    core = make_core(async_scheduling=True)
    runs = watched(core)
    for request_id, prompt in {"a": [1, 2, 3], "b": [4, 5]}.items():
        core.add(make_request(request_id, prompt, 5))

    assert core.step() == []
    assert runs == [[1, 2, 3, 4, 5]]
    first = {request_id: delta.token_ids for request_id, delta in core.step()}
    assert first == {"a": naive([1, 2, 3], 1), "b": naive([4, 5], 1)}
    assert runs[1:] == [[-1, -2]]  # the first and the second token of the run before


def test_only_who_stops_by_surprise_is_computed_once_too_often():
    answer = naive([1, 2, 3], 4)
    core = make_core(async_scheduling=True)
    runs = watched(core)
    core.add(make_request("length", [1, 2, 3], 4))
    assert drain(core) == {"length": answer}
    assert len(runs) == 4

    runs.clear()
    core.add(make_request("stop", [1, 2, 3], 9, params={"stop_token_ids": {answer[3]}}))
    assert drain(core) == {"stop": answer}
    assert len(runs) == 5
    assert core.stats().num_generated_tokens == 8


def test_a_request_that_leaves_takes_its_run_with_it():
    core = make_core(async_scheduling=True)
    core.add(make_request("a", [1, 2, 3], 5))
    core.step()
    core.abort("a")
    assert core.pool.num_free == core.pool.num_blocks - 1
    core.add(make_request("a", [7, 8], 5))  # another one of that name

    assert drain(core) == {"a": naive([7, 8], 5)}


def test_a_run_that_fails_costs_nothing_of_the_one_before():
    core = make_core(async_scheduling=True, max_num_batched_tokens=64)
    prompts = {"a": [1, 2, 3], "b": [4, 5]}
    for request_id, prompt in prompts.items():
        core.add(make_request(request_id, prompt, 5))
    core.step()
    forward = core._runner.forward
    core._runner.forward = lambda inputs: 1 / 0 if 9 in inputs.token_ids else forward(inputs)
    core.add(make_request("bad", [9, 9], 5))
    answers, failed = {}, []
    for request_id, item in core.step():
        if isinstance(item, EngineFailed):
            failed.append(request_id)
        else:
            answers.setdefault(request_id, []).extend(item.token_ids)

    assert failed == ["bad"]
    assert drain(core, answers) == {key: naive(prompt, 5) for key, prompt in prompts.items()}
    assert core.pool.num_free == core.pool.num_blocks - 1


def test_guesses_are_made_from_known_tokens_and_the_others_overlap():
    core = make_core(
        answer=mostly_copied,
        num_speculative_tokens=8,
        max_speculative_rows=4,
        async_scheduling=True,
    )
    runs = watched(core)
    core.add(make_request("alone", [1, 2, 3, 4, 5, 6, 7, 1, 2], 40))
    drain(core)
    assert min(map(min, runs)) >= 0
    assert core.stats().num_accepted_tokens > 0

    for i in range(4):  # too many for guesses
        core.add(make_request(str(i), [10 + i, 2, 3], 5))
    drain(core)
    assert min(map(min, runs)) == -4


class FlatRunner(MemoryRunner):
    """Hardly prefers any token: what top_p leaves is much."""

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(token_ids))
        return torch.randn(self.vocab_size, generator=generator)


def flat_answers(monkeypatch, *, is_far: bool) -> tuple[dict[str, list], int]:
    """What three requests get, with log probabilities, and the number of runs."""
    monkeypatch.setattr(sampler, "LADDER", (16,))
    monkeypatch.setattr(sampler, "is_far", lambda device: is_far)
    limits = EngineLimits(
        max_model_len=64,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        block_size=4,
        eos_token_ids=frozenset(range(0, 97, 40)),
        async_scheduling=is_far,
    )
    core = EngineCore(FlatRunner(64, 4), limits)
    for i, top_p in enumerate((0.3, 0.7, 0.8)):
        params = SamplingParams(top_p=top_p, seed=i, max_tokens=40, logprobs=2)
        core.add(Request(request_id=str(i), prompt_token_ids=[i + 1] * 5, params=params))
    answers: dict[str, list] = {}
    while core.has_work:
        for request_id, delta in core.step():
            answers.setdefault(request_id, []).extend(delta.logprobs)
            answers[request_id] += [delta.finish_reason] if delta.finish_reason else []
        check_blocks(core)
    return answers, core.stats().num_steps


def test_a_draw_that_has_to_be_repeated_is_put_right(monkeypatch):
    answers, num_runs = flat_answers(monkeypatch, is_far=True)
    expected, num_needed = flat_answers(monkeypatch, is_far=False)

    assert answers == expected
    assert {answer[-1] for answer in answers.values()} <= set(FinishReason)
    assert num_needed + 5 < num_runs  # some were in vain


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_who_wants_no_more_than_the_prompt_runs_once(max_tokens):
    core = make_core(async_scheduling=True)
    runs = watched(core)
    core.add(make_request("a", [1, 2, 3], max_tokens, params={"prompt_logprobs": 0}))
    assert core.step() == []
    [(_, delta)] = core.step()

    assert delta.token_ids == naive([1, 2, 3], max_tokens)
    assert [entry.token_id for entry in delta.prompt_logprobs[1:]] == [2, 3]
    assert len(runs) == 1
    assert not core.has_work
