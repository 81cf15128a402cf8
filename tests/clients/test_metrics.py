"""A live server's /metrics has what dashboards ask for."""

import json
import re

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers import ROOT

# What the Grafana dashboard of vLLM's own examples asks for, and what autoscalers and routers read
VLLM = """
e2e_request_latency_seconds_bucket e2e_request_latency_seconds_sum e2e_request_latency_seconds_count
prompt_tokens_total generation_tokens_total
time_per_output_token_seconds_bucket time_per_output_token_seconds_sum
time_per_output_token_seconds_count
inter_token_latency_seconds_bucket inter_token_latency_seconds_sum inter_token_latency_seconds_count
num_requests_running num_requests_waiting kv_cache_usage_perc
time_to_first_token_seconds_bucket time_to_first_token_seconds_sum time_to_first_token_seconds_count
request_prompt_tokens_bucket request_generation_tokens_bucket
request_success_total
request_queue_time_seconds_sum request_prefill_time_seconds_sum request_decode_time_seconds_sum
request_inference_time_seconds_bucket request_time_per_output_token_seconds_bucket
request_max_num_generation_tokens_sum request_params_n_bucket request_params_max_tokens_bucket
iteration_tokens_total_bucket
prefix_cache_queries_total prefix_cache_hits_total num_preemptions_total cache_config_info
"""


def test_what_dashboards_ask_for_is_there_after_five_requests(server):
    for number in range(5):
        stream = server.client.chat.completions.create(
            model="nanollmserve-demo",
            messages=[{"role": "user", "content": f"Count from 1 to {number + 5}."}],
            max_tokens=8,
            stream=True,
        )
        assert list(stream)[-1].choices[0].finish_reason
    answer = httpx2.get(f"{server.url}/metrics")
    families = list(text_string_to_metric_families(answer.text))
    series = {sample.name: sample for family in families for sample in family.samples}
    dashboard = json.loads((ROOT / "docs/grafana/nanollmserve.json").read_text())
    asked = re.findall(r"\b(?:vllm:|nanollm_)\w+", json.dumps(dashboard))

    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert len(set(asked)) > 25
    assert {*asked, *(f"vllm:{name}" for name in VLLM.split())} - set(series) == set()
    for name, sample in series.items():
        if name.startswith("vllm:") and name != "vllm:cache_config_info":
            assert sample.labels["model_name"] == "nanollmserve-demo", name
            assert sample.labels["engine"] == "0", name
        if name.endswith("_count") and name.startswith("vllm:"):
            assert sample.value >= 5, name
    assert int(series["vllm:cache_config_info"].labels["num_gpu_blocks"]) > 1000
    assert series["vllm:cache_config_info"].labels["block_size"] == "32"
