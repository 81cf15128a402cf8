"""What /metrics says: the names and buckets of vLLM, and numbers that are true."""

import asyncio
import json
import re
import time

import httpx2
import openai
import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from inference import service
from nanollmserve_site.handlers import http_application
from nanollmserve_site.request_id import with_request_id
from openai_api import metrics
from tests.helpers import FAILURE, in_process_client, scripted_engine

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def engine():
    answers = {"fail": FAILURE, "long": 2000 * "x"}
    engine = scripted_engine(
        lambda prompt: answers.get(prompt, "abcdefgh"), before_step=lambda: time.sleep(0.005)
    )
    service.install(engine)
    yield engine
    service.install(None)
    engine.close()


def samples() -> dict[str, float]:
    """All series but buckets, by name and the labels that differ."""
    return {
        " ".join([sample.name, *sorted(set(sample.labels.values()) - {"m", "0"})]): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if "le" not in sample.labels
    }


class Growth:
    """By how much series have grown since this was made."""

    def __init__(self) -> None:
        self.before = samples()

    def __getitem__(self, name: str) -> float:
        return samples()[name] - self.before.get(name, 0.0)


def test_a_histogram_is_prometheus_own():
    """The same buckets for the same values, also on a bound and beyond the last."""
    registry, bounds, values = CollectorRegistry(), (0.1, 1.0, 2.5), [0.05, 0.1, 0.5, 2.5, 3, 0.1]
    theirs = Histogram("x", "", buckets=bounds, registry=registry)
    ours = metrics.Histogram("nanollm_test", "", bounds)
    metrics.registry.unregister(ours)
    for value in values:
        theirs.observe(value)
        ours.observe(value)

    expected = [
        (sample.labels["le"], sample.value)
        for family in registry.collect()
        for sample in family.samples
        if "le" in sample.labels
    ]
    assert metrics.cumulated(bounds, ours._counts) == expected
    assert ours._sum == pytest.approx(sum(values))


@pytest.mark.django_db(transaction=True)
async def test_requests_are_counted_by_how_they_end(engine):
    grown = Growth()
    async with in_process_client() as client:
        await client.chat.completions.create(**CHAT, n=3)
        await client.chat.completions.create(**CHAT, max_tokens=4)
        with pytest.raises(openai.InternalServerError):
            await client.completions.create(model="m", prompt="fail")
        call = asyncio.create_task(client.completions.create(model="m", prompt="long"))
        while not engine.stats.num_running:
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    assert grown["vllm:request_success_total stop"] == 3
    assert grown["vllm:request_success_total length"] == 1
    assert grown["vllm:request_success_total abort"] == 1
    assert grown["vllm:request_success_total error"] == 1
    assert grown["vllm:request_params_n_count"] == 4
    assert grown["vllm:request_params_n_sum"] == 3 + 1 + 1 + 1
    assert grown["nanollm_disconnects_total"] == 1
    for name in ("e2e_request_latency_seconds", "request_queue_time_seconds"):
        assert grown[f"vllm:{name}_count"] == 4  # whose answers are whole
    assert grown["vllm:request_generation_tokens_sum"] == 3 * 9 + 4
    assert grown["vllm:request_params_max_tokens_count"] == 4


@pytest.mark.django_db(transaction=True)
async def test_the_times_of_an_answer_add_up(engine):
    grown = Growth()
    async with in_process_client() as client:
        answer = await client.chat.completions.create(**CHAT)

    parts = [grown[f"vllm:request_{part}_time_seconds_sum"] for part in ("prefill", "decode")]
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(grown["vllm:request_inference_time_seconds_sum"])
    assert sum(parts) < grown["vllm:e2e_request_latency_seconds_sum"]
    assert grown["vllm:time_to_first_token_seconds_count"] == 1
    num_gaps = grown["vllm:inter_token_latency_seconds_count"]
    assert 1 <= num_gaps < answer.usage.completion_tokens == 9
    assert grown["vllm:time_per_output_token_seconds_count"] == num_gaps
    assert grown["vllm:inter_token_latency_seconds_sum"] == pytest.approx(parts[1])
    # these are of the engine, which is new
    assert samples()["vllm:prompt_tokens_total"] == answer.usage.prompt_tokens
    assert samples()["vllm:generation_tokens_total"] == 9
    assert samples()["vllm:iteration_tokens_total_count"] == 9
    assert samples()["vllm:iteration_tokens_total_sum"] == answer.usage.prompt_tokens + 8


@pytest.mark.django_db(transaction=True)
async def test_buckets_of_tokens_go_as_far_as_the_context(engine):
    found = re.findall(r'vllm:request_prompt_tokens_bucket{.*le="(.*?)"', metrics.text().decode())
    bounds = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]  # of 2,048 tokens
    assert found == [*map(str, map(float, bounds)), "+Inf"]


@pytest.mark.django_db(transaction=True)
async def test_codes_and_refusals(engine):
    grown = Growth()
    transport = httpx2.ASGITransport(app=with_request_id(http_application()))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        assert (await http.get("/v1/models")).status_code == 200
        assert (await http.get("/v1/nothing")).status_code == 404
        service.drain()
        refused = await http.post("/v1/chat/completions", content=json.dumps(CHAT))

    assert refused.status_code == 503
    codes = [grown[f"nanollm_http_responses_total {code}"] for code in (200, 404, 503)]
    assert codes == [1, 1, 1]
    assert grown["nanollm_rejected_total server_is_overloaded"] == 1
    assert grown["nanollm_database_seconds_count write"] >= 3
