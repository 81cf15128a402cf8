"""Load as `vllm bench serve` makes it, and its report: for `manage.py bench`.

Requests begin at random times, so many a second on average, and not when others have ended.
"""

import asyncio
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.client import Answer, Exchange, Target, ask, read_answer, request_body
from benchmarks.figures import percentile
from benchmarks.prompts import TokenIds, make_prompts, scenario

WIDTH = 50
TIMES = {
    "ttft": ("Time to First Token", "TTFT"),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT"),
    "itl": ("Inter-token Latency", "ITL"),
    "e2el": ("End-to-end Latency", "E2EL"),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Lengths are in tokens. `goodput` has what a good answer takes at most, in milliseconds."""

    num_prompts: int
    input_len: int
    output_len: int
    request_rate: float = math.inf  # a second; all at once by default
    max_concurrency: int | None = None
    goodput: Mapping[str, float]
    ignore_eos: bool = True
    seed: int = 0
    timeout_s: float = 600.0


async def run(target: Target, plan: Plan) -> tuple[list[Answer], float]:
    """Every answer, and how many seconds all of them took."""
    sizes = scenario("random", plan.num_prompts, 1, plan.input_len, plan.output_len)
    prompts = make_prompts(sizes, TokenIds(1000, 3000), str(plan.seed))
    options = {"ignore_eos": plan.ignore_eos, "usage": True}
    places = asyncio.Semaphore(plan.max_concurrency or plan.num_prompts)
    rng = random.Random(plan.seed)

    async def one(body: dict[str, Any]) -> Exchange | Answer:
        async with places:
            return await ask(target, "completions", body, plan.timeout_s)

    began, tasks = time.perf_counter(), []
    for prompt in prompts:
        body = request_body("completions", target.model, prompt, plan.output_len, **options)
        tasks.append(asyncio.create_task(one(body)))
        if plan.request_rate < math.inf:
            await asyncio.sleep(rng.expovariate(plan.request_rate))
    results = await asyncio.gather(*tasks)
    seconds = time.perf_counter() - began
    return [read_answer(r) if isinstance(r, Exchange) else r for r in results], seconds


def figures(plan: Plan, answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """What the report tells, under vLLM's names; times in milliseconds."""
    good = [answer for answer in answers if answer.error is None]
    num_output = sum(answer.num_tokens or len(answer.times) for answer in good)
    num_input = sum(answer.num_prompt_tokens or plan.input_len for answer in good)
    found: dict[str, Any] = {
        "completed": len(good),
        "failed": len(answers) - len(good),
        "errors": sorted({answer.error for answer in answers if answer.error})[:3],
        "duration": seconds,
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(good) / seconds,
        "output_throughput": num_output / seconds,
        "total_token_throughput": (num_input + num_output) / seconds,
    }
    if plan.goodput:
        num_kept = sum(map(plan_keeps(plan), good))
        found["request_goodput"] = num_kept / seconds
    for name in TIMES:
        values = [value for answer in good for value in times_of(answer)[name]]
        found[f"mean_{name}_ms"] = statistics.fmean(values) if values else None
        found[f"median_{name}_ms"] = percentile(values, 50)
        found[f"p99_{name}_ms"] = percentile(values, 99)
    return found


def times_of(answer: Answer) -> dict[str, list[float]]:
    """Those of one answer in milliseconds; of gaps between tokens there are many."""
    seconds = {
        "ttft": [answer.first_s],
        "tpot": [] if answer.per_token_s is None else [answer.per_token_s],
        "itl": answer.gaps_s,
        "e2el": [answer.times[-1] - answer.began],
    }
    return {name: [1000 * value for value in values] for name, values in seconds.items()}


def plan_keeps(plan: Plan) -> Any:
    """A function that tells whether an answer was as fast as `goodput` asks for."""

    def keeps(answer: Answer) -> bool:
        times = times_of(answer)
        return all(max(times[name], default=0) <= limit for name, limit in plan.goodput.items())

    return keeps


def report(found: Mapping[str, Any]) -> str:
    """Line by line as vLLM's, so that two can be laid side by side."""
    lines = [
        " Serving Benchmark Result ".center(WIDTH, "="),
        line("Successful requests:", found["completed"]),
        line("Failed requests:", found["failed"]),
        line("Benchmark duration (s):", found["duration"]),
        line("Total input tokens:", found["total_input_tokens"]),
        line("Total generated tokens:", found["total_output_tokens"]),
        line("Request throughput (req/s):", found["request_throughput"]),
    ]
    if "request_goodput" in found:
        lines.append(line("Request goodput (req/s):", found["request_goodput"]))
    lines.append(line("Output token throughput (tok/s):", found["output_throughput"]))
    lines.append(line("Total Token throughput (tok/s):", found["total_token_throughput"]))
    for name, (title, short) in TIMES.items():
        lines.append(title.center(WIDTH, "-"))
        for kind in ("mean", "median", "p99"):
            value = found[f"{kind}_{name}_ms"]
            lines.append(line(f"{kind.capitalize()} {short} (ms):", value))
    return "\n".join([*lines, "=" * WIDTH])


def line(name: str, value: float | None) -> str:
    shown = "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{name:<40} {shown:<9}".rstrip()
