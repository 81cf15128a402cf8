"""What Prometheus reads at /metrics."""

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
registry = CollectorRegistry()

loop_stall_s = Histogram(
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
num_engine_restarts = Gauge(
    "nanollm_engine_restarts",
    "How often the engine was begun anew because it had died or hung.",
    registry=registry,
)


def text() -> bytes:
    return generate_latest(registry)
