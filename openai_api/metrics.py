"""What Prometheus reads at /metrics.

What vLLM has too is called as there, with its labels and buckets, so that dashboards and
autoscalers made for vLLM work; what is ours alone begins with `nanollm_`. The engine counts by
itself and is read when somebody asks; what is observed here is so once for each delta or request.
"""

import threading
from bisect import bisect_left, bisect_right
from collections import Counter as Counts
from collections.abc import Iterable, Iterator, Sequence

from django.conf import settings
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client import Histogram as PlainHistogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from inference import service
from inference.metrics import STEP_SIZES, EngineStats
from inference.request import ModelInfo

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABELS = ("model_name", "engine")
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
                 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
           20.0, 40.0, 80.0)  # fmt: skip
REQUEST_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
             120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
TOKENS = tuple(digit * 10**power for power in range(8) for digit in (1, 2, 5))
FINISHED = ("stop", "length", "abort", "error")
REASONS = ("queue_full", "queue_timeout", "rate_limit_exceeded", "insufficient_quota",
           "invalid_api_key", "server_is_overloaded")  # fmt: skip

disable_created_metrics()  # a time for each series, which hardly anybody reads
registry = CollectorRegistry()


class Histogram:
    """Values by bucket, labelled with the model's name when they are read.

    prometheus_client's own wants the labels when a value is observed, and takes twice as long: too
    much for what happens with every token.
    """

    def __init__(self, name: str, help: str, bounds: Sequence[float], *, also: str = "") -> None:
        self._names, self._help, self._bounds = [name, also] if also else [name], help, bounds
        self._counts, self._sum = [0] * (len(bounds) + 1), 0.0
        self._lock = threading.Lock()  # background responses have a thread of their own
        registry.register(self)

    def observe(self, value: float, times: int = 1) -> None:
        index = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[index] += times
            self._sum += value * times

    def collect(self) -> Iterator[Metric]:
        if (model := current_model()) is None:
            return
        num_bounds = len(self._bounds)
        if self._bounds is TOKENS:  # as far as the model's context goes
            num_bounds = bisect_right(TOKENS, model.max_model_len)
        buckets = cumulated(self._bounds[:num_bounds], self._counts)
        for name in self._names:
            family = HistogramMetricFamily(name, self._help, labels=LABELS)
            family.add_metric(labels_of(model), buckets, self._sum)
            yield family


def cumulated(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, int]]:
    """Prometheus' buckets: each holds those before it; what lies beyond `bounds` is in the last."""
    found, total = [], 0
    for bound, count in zip(bounds, counts, strict=False):
        total += count
        found.append((floatToGoString(bound), total))
    return [*found, ("+Inf", sum(counts))]


_model: ModelInfo | None = None  # the last one that was there
_ends: Counts[str] = Counts(dict.fromkeys(FINISHED, 0))
_ends_lock = threading.Lock()


def current_model() -> ModelInfo | None:
    """What is served; while the engine restarts, what was."""
    global _model
    engine = service.get_engine()
    if engine.status.state == "ready":
        _model = engine.model
    return _model


def labels_of(model: ModelInfo) -> list[str]:
    return [(settings.API.served_model_name or [model.name])[0], "0"]


def count_end(reason: str) -> None:
    """An answer has ended: one of FINISHED."""
    with _ends_lock:
        _ends[reason] += 1


class Engine:
    """The engine's own numbers, which cost nothing until somebody asks for them."""

    def collect(self) -> Iterable[Metric]:
        model, stats = current_model(), service.get_engine().stats
        restarts = "How often the engine was begun anew because it had died or hung."
        yield GaugeMetricFamily("nanollm_engine_restarts", restarts, stats.num_restarts)
        if model is not None:
            yield from families(stats, labels_of(model))
            yield cache_config(model)


GAUGES = (
    ("vllm:num_requests_running", "Requests in model execution batches.", "num_running"),
    ("vllm:num_requests_waiting", "Requests waiting to be processed.", "num_waiting"),
    ("vllm:kv_cache_usage_perc", "Used part of the KV cache; 1 is all of it.", "kv_cache_usage"),
)
COUNTERS = (
    ("vllm:prompt_tokens", "Tokens of prompts that were begun with.", "num_prompt_tokens"),
    ("vllm:generation_tokens", "Tokens generated.", "num_generated_tokens"),
    ("vllm:prefix_cache_queries", "Tokens looked up in the cache.", "num_queried_tokens"),
    ("vllm:prefix_cache_hits", "Tokens found there.", "num_hit_tokens"),
    ("vllm:num_preemptions", "Sequences sent back into the queue.", "num_preemptions"),
    ("vllm:spec_decode_num_draft_tokens", "Tokens guessed.", "num_draft_tokens"),
    ("vllm:spec_decode_num_accepted_tokens", "Guesses that were right.", "num_accepted_tokens"),
)


def families(stats: EngineStats, labels: Sequence[str]) -> Iterator[Metric]:
    for kind, table in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
        for name, help, attribute in table:
            family = kind(name, help, labels=LABELS)
            family.add_metric(labels, getattr(stats, attribute))
            yield family
    sizes = HistogramMetricFamily(
        "vllm:iteration_tokens_total", "Tokens that one step computes.", labels=LABELS
    )
    buckets = cumulated(STEP_SIZES, stats.steps_by_size)
    sizes.add_metric(labels, buckets, stats.num_computed_tokens)
    yield sizes
    ends = CounterMetricFamily(
        "vllm:request_success", "Ended answers.", labels=[*LABELS, "finished_reason"]
    )
    for reason in FINISHED:
        ends.add_metric([*labels, reason], _ends[reason])
    yield ends


def cache_config(model: ModelInfo) -> Metric:
    facts = {
        "engine": "0",
        "block_size": str(model.block_size),
        "num_gpu_blocks": str(model.num_blocks),
        "enable_prefix_caching": str(settings.ENGINE.enable_prefix_caching),
        "gpu_memory_utilization": str(settings.ENGINE.gpu_memory_utilization),
    }
    family = GaugeMetricFamily("vllm:cache_config_info", "The KV cache.", labels=list(facts))
    family.add_metric(list(facts.values()), 1)
    return family


registry.register(Engine())
time_to_first_token_s = Histogram(
    "vllm:time_to_first_token_seconds", "From a request's arrival.", FIRST_TOKEN_S
)
inter_token_latency_s = Histogram(
    "vllm:inter_token_latency_seconds",
    "Between two tokens of an answer.",
    TOKEN_S,
    also="vllm:time_per_output_token_seconds",  # as older dashboards call it
)
request_time_per_token_s = Histogram(
    "vllm:request_time_per_output_token_seconds", "The same as each answer's mean.", TOKEN_S
)
e2e_s = Histogram("vllm:e2e_request_latency_seconds", "From arrival to the last token.", REQUEST_S)
queue_s = Histogram("vllm:request_queue_time_seconds", "In the queue.", REQUEST_S)
prefill_s = Histogram(
    "vllm:request_prefill_time_seconds", "From the queue to the first token.", REQUEST_S
)
decode_s = Histogram(
    "vllm:request_decode_time_seconds", "From the first token to the last.", REQUEST_S
)
inference_s = Histogram(
    "vllm:request_inference_time_seconds", "From the queue to the last token.", REQUEST_S
)
prompt_tokens = Histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", TOKENS)
generation_tokens = Histogram("vllm:request_generation_tokens", "Tokens of an answer.", TOKENS)
max_tokens = Histogram(
    "vllm:request_params_max_tokens",
    "Tokens that an answer could have had.",
    TOKENS,
    also="vllm:request_max_num_generation_tokens",
)
params_n = Histogram("vllm:request_params_n", "Answers asked for at once.", (1, 2, 5, 10, 20))

http_responses = Counter(
    "nanollm_http_responses", "Answers to HTTP requests.", ["code"], registry=registry
)
disconnects = Counter(
    "nanollm_disconnects", "Requests whose client left before their end.", registry=registry
)
rejected = Counter(
    "nanollm_rejected", "Requests turned away, by the error's code.", ["reason"], registry=registry
)
for reason in REASONS:
    rejected.labels(reason)  # a series that is there from the start can be watched
database_s = PlainHistogram(
    "nanollm_database_seconds",
    "A read, or a write with its commit, without the wait for its turn.",
    ["kind"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 20),
    registry=registry,
)
num_waiting_writes = Gauge(
    "nanollm_database_writes_waiting", "Writes that wait for their turn.", registry=registry
)
loop_stall_s = PlainHistogram(
    "nanollm_loop_stall_seconds",
    "How much too late the event loop woke a task that sleeps 50 ms at a time.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 5),
    registry=registry,
)
worst_loop_stall_s = Gauge(
    "nanollm_loop_stall_seconds_max",
    "The longest of these since the start.",
    registry=registry,
)


def text() -> bytes:
    return generate_latest(registry)
