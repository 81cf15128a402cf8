"""Whatever the scheduler does, every request gets the answer of a loop without any cache."""

import math

import pytest
import torch

from inference.engine.core import EngineCore
from inference.errors import EngineFailed
from inference.request import FinishReason
from tests.inference.memory_runner import (
    check_blocks,
    drain,
    make_core,
    make_request,
    naive,
    random_arrivals,
)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_random_arrivals_get_the_naive_answers(seed, ahead):
    random_arrivals(seed, async_scheduling=ahead)


def test_a_small_pool_preempts_and_nobody_notices():
    core = make_core(num_blocks=17, block_size=4)
    prompts = {str(i): [i + 1] * 9 for i in range(6)}
    for request_id, prompt in prompts.items():
        core.add(make_request(request_id, prompt, 30))
    answers = drain(core)

    assert core.stats().num_preemptions > 0
    assert answers == {i: naive(prompt, 30) for i, prompt in prompts.items()}


def test_a_prefix_hit_is_counted_in_whole_blocks_and_leaves_a_token():
    core = make_core(block_size=4)
    core.add(make_request("first", list(range(1, 13)), 1))
    drain(core)
    core.add(make_request("again", list(range(1, 13)), 1))
    [(_, delta)] = core.step()

    assert delta.num_cached_tokens == 8  # 12 tokens are 3 blocks; the last one must be computed
    assert delta.token_ids == naive(list(range(1, 13)), 1)


def test_the_answer_is_cached_too():
    core = make_core(block_size=4)
    prompt = list(range(1, 9))
    core.add(make_request("turn 1", prompt, 8))
    answer = drain(core)["turn 1"]
    core.add(make_request("turn 2", [*prompt, *answer, 7, 7], 1))
    [(_, delta)] = core.step()

    assert delta.num_cached_tokens == 12  # of 16: the last sampled token was never computed


def test_salts_never_share():
    core = make_core(block_size=4)
    prompt = list(range(1, 13))
    core.add(make_request("a", prompt, 1, cache_salt="a"))
    drain(core)
    core.add(make_request("b", prompt, 1, cache_salt="b"))
    [(_, delta)] = core.step()

    assert delta.num_cached_tokens == 0


def test_the_least_recently_used_block_goes_first():
    core = make_core(num_blocks=9, block_size=4, max_model_len=32)
    old, new = [1] * 12, [2] * 12
    for i, prompt in enumerate([old, new]):
        core.add(make_request(str(i), prompt, 1))
        drain(core)
    core.add(make_request("big", [3] * 15, 1))  # takes four blocks, six hold cached tokens
    drain(core)
    hits = {}
    for name, prompt in {"new": new, "old": old}.items():
        core.add(make_request(name, prompt, 1))
        hits |= {request_id: delta.num_cached_tokens for request_id, delta in core.step()}

    assert hits["new"] == 8
    assert hits["old"] < 8


def test_decoding_never_waits_for_a_long_prompt():
    core = make_core(num_blocks=200, max_model_len=500, max_num_batched_tokens=16)
    core.add(make_request("talking", [1, 2, 3], 50))
    core.step()
    core.add(make_request("long", [5] * 400, 1))
    for _ in range(20):
        assert "talking" in dict(core.step())


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5])
def test_abort_frees_everything_in_any_state(num_steps):
    core = make_core(max_num_seqs=2, max_num_batched_tokens=8)
    for i in range(4):
        core.add(make_request(str(i), [i + 1] * 20, 40))
    for _ in range(num_steps):
        core.step()
    for i in range(4):
        core.abort(str(i))

    assert not core.has_work
    assert core.step() == []
    assert core.pool.num_free == core.pool.num_blocks - 1


def test_it_stops_at_eos_at_a_stop_token_and_at_the_context():
    prompt = [1, 2, 3]
    answer = naive(prompt, 61)
    core = make_core(num_blocks=100, max_model_len=64)
    core.add(make_request("stop", prompt, 61, params={"stop_token_ids": frozenset({answer[4]})}))
    core.add(make_request("context", prompt, 1000))
    last = {}
    while core.has_work:
        last |= dict(core.step())

    assert last["stop"].finish_reason is FinishReason.STOP
    assert last["stop"].stop_token_id == answer[4]
    assert last["context"].finish_reason is FinishReason.LENGTH


def test_a_failing_step_costs_its_batch_and_nothing_else():
    core = make_core(max_num_seqs=2)
    forward = core._runner.forward
    for i in range(3):
        core.add(make_request(str(i), [i + 1] * 4, 4))
    core._runner.forward = lambda inputs: 1 / 0
    failed = dict(core.step())
    core._runner.forward = forward
    answers = drain(core)

    assert set(failed) == {"0", "1"}
    assert all(isinstance(error, EngineFailed) for error in failed.values())
    assert answers == {"2": naive([3] * 4, 4)}
    assert core.pool.num_free == core.pool.num_blocks - 1


def test_prompt_logprobs_cover_the_prompt_once_in_spite_of_chunks_and_preemption():
    core = make_core(num_blocks=17, block_size=4, max_num_batched_tokens=8)
    for i in range(5):
        core.add(make_request(str(i), [i + 1] * 13, 30, params={"prompt_logprobs": 0}))
    found = {}
    while core.has_work:
        for request_id, delta in core.step():
            if delta.prompt_logprobs:
                found[request_id] = delta.prompt_logprobs

    assert core.stats().num_preemptions > 0
    for i in range(5):
        entries = found[str(i)]
        assert entries[0] is None
        assert [entry.token_id for entry in entries[1:]] == [i + 1] * 12


def test_who_shares_a_prefix_waits_for_the_one_who_computes_it():
    core = make_core(block_size=4, max_num_batched_tokens=8)
    common = list(range(1, 17))
    expected = {}
    for i in range(3):
        prompt = [*common, 20 + i]
        expected[str(i)] = naive(prompt, 4)
        core.add(make_request(str(i), prompt, 4))
    core.add(make_request("other", [90, 91, 92], 4))
    expected["other"] = naive([90, 91, 92], 4)
    core.step()

    assert len(core.scheduler.running) == 1  # the budget was spent on the leader
    answers = drain(core)
    assert answers == expected
    assert core.stats().num_hit_tokens == 2 * len(common)


def test_others_are_not_held_up_by_those_who_wait_for_a_prefix():
    core = make_core(block_size=4, max_num_batched_tokens=12)
    common = list(range(1, 9))
    for request_id, prompt in {"a": [*common, 20], "b": [*common, 21], "c": [30, 31]}.items():
        core.add(make_request(request_id, prompt, 9))
    core.step()

    assert [seq.request.request_id for seq in core.scheduler.running] == ["a", "c"]


def test_who_waits_goes_on_alone_when_the_other_leaves():
    core = make_core(block_size=4, max_num_batched_tokens=4)
    prompt = list(range(1, 17))
    for request_id in ("leaves", "stays"):
        core.add(make_request(request_id, prompt, 4))
    core.step()
    core.abort("leaves")

    assert drain(core) == {"stays": naive(prompt, 4)}


def fail_on(core: EngineCore, poison: int, error: type[Exception] = RuntimeError) -> list[int]:
    """Let each run with this token, or with more than two sequences if it is 0, fail."""
    forward, sizes = core._runner.forward, []

    def run(inputs):
        sizes.append(len(inputs.counts))
        if poison in inputs.token_ids if poison else len(inputs.counts) > 2:
            raise error("as asked")
        return forward(inputs)

    core._runner.forward = run
    return sizes


def test_only_the_sequence_that_cannot_be_computed_fails():
    core = make_core(max_num_batched_tokens=64)
    prompts = {str(i): [i + 1] * 4 for i in range(7)}
    for request_id, prompt in prompts.items():
        core.add(make_request(request_id, prompt, 4, params={"prompt_logprobs": 0}))
    fail_on(core, poison=5)
    failed = {key: item for key, item in core.step() if isinstance(item, EngineFailed)}

    assert set(failed) == {"4"}
    assert len(core.scheduler.running) == 6
    answers = {key: naive(prompt, 4)[1:] for key, prompt in prompts.items() if key != "4"}
    assert drain(core) == answers
    assert core.pool.num_free == core.pool.num_blocks - 1


def test_one_poisonous_token_among_many_sequences_costs_its_own_alone():
    """It comes up while all of them decode."""
    poison = 11
    prompts = {str(i): [7, 7, 7, 7, *[20 + i] * 3] for i in range(32)}
    answers = {key: naive(prompt, 12) for key, prompt in prompts.items()}
    poisoned = {key for key, answer in answers.items() if poison in answer[:-1]}
    assert len(poisoned) == 1
    core = make_core(num_blocks=200, max_num_batched_tokens=64, max_num_seqs=32)
    fail_on(core, poison)
    for key, prompt in prompts.items():
        core.add(make_request(key, prompt, 12))
    found, failed = outcomes(core)

    assert failed == poisoned
    assert {key: found[key] for key in set(prompts) - failed} == {
        key: answers[key] for key in set(prompts) - failed
    }
    assert core.pool.num_free == core.pool.num_blocks - 1


def outcomes(core: EngineCore) -> tuple[dict[str, list[int]], set[str]]:
    """What was answered, and who failed."""
    found, failed = {}, set()
    while core.has_work:
        for key, item in core.step():
            if isinstance(item, EngineFailed):
                failed.add(key)
            else:
                found.setdefault(key, []).extend(item.token_ids)
        check_blocks(core)
    return found, failed


def nan_on(core: EngineCore, token_id: int) -> None:
    """Let the logits of every sequence that brings this token be nan."""
    forward = core._runner.forward

    def run(inputs):
        logits, start = forward(inputs), 0
        for count in inputs.counts:
            if token_id in inputs.token_ids[start : start + count]:
                for i, row in enumerate(inputs.logit_rows):
                    if start <= row < start + count:
                        logits[i] = math.nan
            start += count
        return logits

    core._runner.forward = run


def test_logits_that_are_no_numbers_cost_their_sequence_and_leave_nothing_in_the_cache():
    core = make_core(max_num_batched_tokens=64)
    prompts = {str(i): [*range(10, 18), i + 1] for i in range(6)}
    nan_on(core, token_id=4)
    core.add(make_request("3", prompts["3"], 4))
    assert outcomes(core) == ({}, {"3"})

    for key, prompt in prompts.items():
        core.add(make_request(key, prompt, 4))
    core.step()  # the first computes what all of them share
    assert core.stats().num_hit_tokens == 0
    answers = {key: naive(prompt, 4) for key, prompt in prompts.items() if key != "3"}
    found, failed = outcomes(core)
    assert (found, failed) == (answers | {"0": answers["0"][1:]}, {"3"})


def test_an_accelerator_that_is_lost_is_nobodys_fault():
    core = make_core()
    for i in range(3):
        core.add(make_request(str(i), [i + 1] * 4))
    fail_on(core, poison=1, error=torch.AcceleratorError)
    with pytest.raises(torch.AcceleratorError):
        core.step()


def test_too_little_memory_makes_steps_smaller_and_costs_nobody():
    core = make_core(max_num_batched_tokens=64, max_num_seqs=8)
    prompts = {str(i): [i + 1] * 4 for i in range(6)}
    for request_id, prompt in prompts.items():
        core.add(make_request(request_id, prompt, 4))
    sizes = fail_on(core, poison=0, error=torch.OutOfMemoryError)

    assert drain(core) == {key: naive(prompt, 4) for key, prompt in prompts.items()}
    assert core.scheduler.limits.max_num_batched_tokens == 8
    assert min(sizes) >= 1 and sizes[:3] == [6, 3, 1]


def test_a_prompt_too_large_for_the_memory_is_read_in_smaller_chunks():
    core = make_core(max_num_batched_tokens=32, max_num_prefill_tokens=48, max_num_seqs=4)
    forward, sizes = core._runner.forward, []

    def run(inputs):
        sizes.append(len(inputs.token_ids))
        if sizes[-1] > 10:
            raise torch.OutOfMemoryError("as asked")
        return forward(inputs)

    core._runner.forward = run
    prompt = list(range(1, 51))
    core.add(make_request("long", prompt, 4))
    assert drain(core) == {"long": naive(prompt, 4)}
    assert sizes[:3] == [48, 16, 8]


def test_prompts_are_read_in_larger_chunks_while_nobody_waits_for_a_token():
    core = make_core(max_num_batched_tokens=8, max_num_prefill_tokens=32, max_model_len=200)
    sizes = []
    forward = core._runner.forward
    core._runner.forward = lambda inputs: sizes.append(len(inputs.token_ids)) or forward(inputs)
    core.add(make_request("first", list(range(1, 41)), 3))
    for _ in range(2):
        core.step()
    core.add(make_request("second", list(range(41, 81)), 1))
    drain(core)

    assert sizes[:2] == [32, 8]
    assert max(sizes[2:4]) == 8  # beside the first one, which decodes
    assert sizes[4:] == [26]


def test_a_short_prompt_is_read_beside_a_long_one():
    core = make_core(max_num_batched_tokens=8, max_model_len=400, num_blocks=200)
    core.add(make_request("long", [1 + i % 90 for i in range(300)], 1))
    core.step()
    core.add(make_request("short", [91, 92, 93], 1))
    found = [request_id for _ in range(3) for request_id, _ in core.step()]

    assert found == ["short"]
