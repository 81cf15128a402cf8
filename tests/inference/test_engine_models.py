"""The whole engine on real model code: whatever it is put through, transformers' own answers."""

import random

import pytest
import torch

from inference.config import EngineConfig
from inference.request import Request, SamplingParams
from inference.service import reloadable
from tests.inference.memory_runner import check_blocks
from tests.inference.tiny_models import EOS_TOKEN_ID, FAMILIES, VOCAB_SIZE, save_model


def generated(model, prompt: list[int], max_tokens: int) -> list[int]:
    """Greedy, by transformers, one request alone."""
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=EOS_TOKEN_ID,
    )
    return output[0, len(prompt) :].tolist()


def workload(rng: random.Random) -> dict[str, tuple[list[int], int]]:
    """Prompts with common beginnings, and how long to answer them."""
    common = [rng.randrange(4, VOCAB_SIZE) for _ in range(40)]
    return {
        str(i): (
            common[: rng.choice([0, 0, 16, 33, 40])]
            + [rng.randrange(4, VOCAB_SIZE) for _ in range(rng.randrange(1, 20))],
            rng.randrange(1, 24),
        )
        for i in range(10)
    }


def answers_of(core, requests: dict, rng, **sampling) -> dict[str, list[int]]:
    """The engine's answers to requests that arrive while others are being answered."""
    sampling = {"temperature": 0} | sampling
    answers: dict[str, list[int]] = {request_id: [] for request_id in requests}

    def step() -> None:
        for request_id, delta in core.step():
            answers[request_id] += delta.token_ids
        check_blocks(core)

    for request_id, (prompt, max_tokens) in requests.items():
        params = SamplingParams(max_tokens=max_tokens, **sampling)
        core.add(Request(request_id=request_id, prompt_token_ids=prompt, params=params))
        for _ in range(rng.randrange(3)):
            step()
    while core.has_work:
        step()
    return answers


WAYS = [
    *[(family, 4, True, "none") for family in FAMILIES],
    *[(family, 16, False, "none") for family in FAMILIES],
    *[("qwen3", 32, ahead, kind) for ahead in (False, True) for kind in ("none", "ngram")],
]


@pytest.mark.parametrize(("family", "block_size", "ahead", "speculative"), WAYS)
def test_arrivals_chunks_preemption_and_prefix_hits_change_nothing(
    family, block_size, ahead, speculative, tmp_path
):
    rng = random.Random(f"{family} {block_size}")
    model = save_model(tmp_path, family)
    config = EngineConfig(
        model=str(tmp_path),
        device="cpu",
        max_model_len=96,
        max_num_seqs=5,
        max_num_batched_tokens=24,
        block_size=block_size,
        kv_cache_memory=2**24,
        async_scheduling=ahead,
        speculative=speculative,
    )
    core, info = reloadable(config)(lambda stage: None)
    requests = workload(rng)
    core.pool = core.scheduler.pool = small_pool(core, block_size)

    assert info.max_model_len == 96
    assert answers_of(core, requests, rng) == {
        request_id: generated(model, *request) for request_id, request in requests.items()
    }
    stats = core.stats()
    assert stats.num_preemptions > 0
    assert stats.num_hit_tokens > 0
    assert core.pool.num_free == core.pool.num_blocks - 1


def small_pool(core, block_size: int):
    """Room for one sequence of full length and a little more, so that five have to fight."""
    return type(core.pool)(96 // block_size + 3, block_size)


def test_a_seed_decides_whatever_the_scheduler_does(tmp_path):
    rng = random.Random(2)
    save_model(tmp_path, "qwen3")
    requests = workload(rng)
    sampling = {"temperature": 1.0, "top_p": 0.9, "seed": 7, "repetition_penalty": 1.1}

    def answers(*, crowded: bool) -> dict[str, list[int]]:
        config = EngineConfig(
            model=str(tmp_path),
            device="cpu",
            max_model_len=96,
            max_num_seqs=5 if crowded else 1,
            max_num_batched_tokens=24 if crowded else 96,
            kv_cache_memory=2**24,
            block_size=4,
            enable_prefix_caching=crowded,
            async_scheduling=crowded,
        )
        core, _ = reloadable(config)(lambda stage: None)
        if crowded:
            core.pool = core.scheduler.pool = small_pool(core, 4)
        found = answers_of(core, requests, rng, **sampling)
        assert (core.stats().num_preemptions > 0) == crowded
        return found

    assert answers(crowded=True) == answers(crowded=False)


def test_a_recurrent_model_is_served_one_by_one(tmp_path):
    rng = random.Random(1)
    model = save_model(tmp_path, "mamba")
    core, _ = reloadable(EngineConfig(model=str(tmp_path), device="cpu"))(lambda stage: None)
    requests = workload(rng)

    assert core.limits.max_num_seqs == 1
    assert answers_of(core, requests, rng) == {
        request_id: generated(model, *request) for request_id, request in requests.items()
    }
