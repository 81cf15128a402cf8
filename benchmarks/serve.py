"""Load for any OpenAI-compatible server, over HTTP: what a client sees, and what it costs.

    python -m benchmarks.serve                                  # this project, a tiny model
    python -m benchmarks.serve --start qwen3-0.6b --scenarios S1,S8,S32,P,X --rounds 3
    python -m benchmarks.serve --label ours=http://127.0.0.1:8000 --pid ours=4711 \\
        --label vllm=http://127.0.0.1:9101 --pid vllm=4712 --scenarios S1,S8 --rounds 5

Several servers are measured in turn, round by round, each round with prompts that no server has
seen; the ratios compare within a round. Requests are greedy and streamed. Every run is one JSON
line in --out. Runs that other processes disturbed are repeated (--retries), and left out of the
table if there are enough without. What is measured how: benchmarks/README.md.
"""

import argparse
import asyncio
import dataclasses
import ipaddress
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks import machine
from benchmarks.client import Answer, Exchange, Prompt, Target, ask, read_answer, request_body
from benchmarks.figures import percentile, ratio, spread, table
from benchmarks.prompts import SCENARIOS, Scenario, TokenIds, Words, make_prompts, scenario
from benchmarks.server import MODEL_NAME, ROOT, checkpoint, running

Record = dict[str, Any]

CUSTOM = ("requests", "concurrency", "prompt_tokens", "output_tokens", "shared_prefix")
WARM_UP = scenario("warm-up", 1, 1, 32, 8)
# of a record: heading, key, decimals
COLUMNS = (
    ("output tok/s", "output_tok_s", 1),
    ("a stream", "stream_tok_s", 1),
    ("prompt tok/s", "prompt_tok_s", 0),
    ("TTFT p50 ms", "ttft_p50_ms", 0),
    ("p99", "ttft_p99_ms", 0),
    ("ITL p50 ms", "itl_p50_ms", 1),
    ("p99", "itl_p99_ms", 0),
    ("server CPU s", "server_cpu_s", 1),
    ("PSS MiB", "server_pss_mib", 0),
)


async def run(
    target: Target, plan: Scenario, prompts: Sequence[Prompt], args: argparse.Namespace
) -> tuple[list[Answer], dict[str, float | None]]:
    """Put a scenario to a server: the answers, and what it took."""
    bodies = [
        request_body(
            args.api,
            target.model,
            prompt,
            plan.output_tokens,
            ignore_eos=args.ignore_eos,
            usage=args.usage,
        )
        | args.extra
        for prompt in reversed(prompts)
    ]
    results: list[Exchange | Answer] = []

    async def stream() -> None:
        while bodies:
            results.append(await ask(target, args.api, bodies.pop(), args.timeout))

    before = machine.Moment.now(target.pid)
    streams = [asyncio.create_task(stream()) for _ in range(plan.concurrency)]
    bar = asyncio.create_task(progress(f"{target.label} {plan.name}", results, plan.requests))
    await asyncio.gather(*streams)
    after = machine.Moment.now(target.pid)
    bar.cancel()
    answers = [read_answer(item) if isinstance(item, Exchange) else item for item in results]
    return answers, machine.cost(before, after)


async def progress(label: str, results: list, num_requests: int) -> None:
    """A bar on standard error, where somebody looks at it."""
    width = 30
    while sys.stderr.isatty():
        done = width * len(results) // num_requests
        bar = "#" * done + "-" * (width - done)
        print(f"\r{label} [{bar}] {len(results)}/{num_requests} ", end="", file=sys.stderr)
        sys.stderr.flush()
        try:
            await asyncio.sleep(0.5)
        except asyncio.CancelledError:
            print("\r\033[K", end="", file=sys.stderr)
            raise


def record(
    target: Target, plan: Scenario, answers: Sequence[Answer], cost: dict[str, float | None]
) -> Record:
    """One run as a line of JSON. Tokens are the server's count, else the pieces of text."""
    good = [answer for answer in answers if answer.error is None]
    counts = [answer.num_tokens or len(answer.times) for answer in good]
    seconds = cost["seconds"] or 1e-9
    per_token = [each for answer in good if (each := answer.per_token_s)]
    read = [answer.num_prompt_tokens or plan.prompt_tokens for answer in good]
    speeds = [count / answer.first_s for count, answer in zip(read, good, strict=True)]
    typical = percentile(per_token, 50)
    found = {
        "label": target.label,
        "scenario": plan.name,
        **{key: value for key, value in dataclasses.asdict(plan).items() if key != "name"},
        "failures": len(answers) - len(good),
        "errors": sorted({answer.error for answer in answers if answer.error})[:3],
        "short": sum(count < plan.output_tokens for count in counts),
        "measured_prompt_tokens": percentile(read, 50),
        "measured_output_tokens": sum(counts),
        **cost,
        "output_tok_s": sum(counts) / seconds,
        "stream_tok_s": 1 / typical if typical else None,
        "prompt_tok_s": percentile(speeds, 50),
        "server_pss_mib": None if target.pid is None else machine.memory_mib(target.pid),
    }
    times = {
        "ttft": [answer.first_s for answer in good],
        "itl": [gap for answer in good for gap in answer.gaps_s],
        "tpot": per_token,
    }
    for name, values in times.items():
        for percent in (50, 99):
            value = percentile(values, percent)
            found[f"{name}_p{percent}_ms"] = None if value is None else 1000 * value
    return found


async def measure(args: argparse.Namespace, targets: list[Target]) -> list[Record]:
    """Every scenario of every server, in turn, as often as asked for."""
    for target in targets:
        answers, _ = await run(target, WARM_UP, prompts_for(args, WARM_UP, "warm-up"), args)
        if answers[0].error:
            raise SystemExit(f"{target.label} does not answer: {answers[0].error}")
    records: list[Record] = []
    for number in range(args.rounds):
        for plan in args.plans:
            for target in targets if number % 2 == 0 else reversed(targets):
                for found in await measured(args, target, plan, number):
                    records.append(found)
                    write(args.out, found)
                    print(summary(found), file=sys.stderr)
    return records


async def measured(
    args: argparse.Namespace, target: Target, plan: Scenario, number: int
) -> list[Record]:
    """One run, and as long as others disturb it another one, with other prompts."""
    found: list[Record] = []
    for attempt in range(args.retries + 1):
        bandwidth = read_bandwidth() if args.bandwidth else None
        seed = f"{number} {attempt}"
        answers, cost = await run(target, plan, prompts_for(args, plan, seed), args)
        found.append(record(target, plan, answers, cost))
        disturbed = (cost["foreign_share"] or 0) > args.max_foreign
        facts = {"round": number, "seed": args.seed, "api": args.api, "disturbed": disturbed}
        found[-1] |= facts | {
            "read_gb_s": bandwidth,
            "time": time.strftime("%FT%TZ", time.gmtime()),
        }
        if not disturbed:
            break
    return found


def prompts_for(args: argparse.Namespace, plan: Scenario, seed: str) -> list[Prompt]:
    return make_prompts(plan, args.source, f"{args.seed} {seed}")


def read_bandwidth() -> float:
    """The machine's state just before a run, from a process that has gone when it begins."""
    command = [sys.executable, "-m", "benchmarks.limits", "--quick"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(shown.stdout.splitlines()[-1])["read_gb_s"]


def write(path: Path | None, found: Record) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(found) + "\n")


def summary(found: Record) -> str:
    parts = [f"round {found['round']} {found['label']} {found['scenario']}:"]
    for heading, key, digits in COLUMNS[:4]:
        if found[key] is not None:
            parts.append(f"{heading} {found[key]:.{digits}f},")
    parts.append(f"{found['failures']} failures")
    parts += [f"({error})" for error in found["errors"][:1]]
    return " ".join(parts) + (" DISTURBED" if found["disturbed"] else "")


def report(records: Sequence[Record], first: str) -> str:
    """A table for every scenario: medians, in brackets the range, and the ratio to the first."""
    groups: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for found in records:
        groups[found["scenario"]][found["label"]].append(found)
    parts = []
    for name, by_label in groups.items():
        plan = by_label[first][0]
        title = (
            f"{name}: {plan['requests']} requests, {plan['concurrency']} at a time, "
            f"{plan['prompt_tokens']} tokens in, {plan['output_tokens']} out"
        )
        heads = ["server", "runs", "failures", "ratio", *(heading for heading, _, _ in COLUMNS)]
        rows = [row(label, runs, by_label[first]) for label, runs in by_label.items()]
        parts.append(f"{title}\n\n{table(heads, rows)}\n")
    return "\n".join(parts)


def row(label: str, runs: list[Record], base: list[Record]) -> list[str]:
    """`*` marks a server all of whose runs were disturbed."""
    chosen = undisturbed(runs)
    mark = "*" if all(found["disturbed"] for found in runs) else ""
    speeds = [
        {found["round"]: found["output_tok_s"] for found in undisturbed(each)}
        for each in (runs, base)
    ]
    against = ratio(*speeds)
    cells = [f"{label}{mark}", str(len(chosen)), str(sum(found["failures"] for found in runs))]
    cells.append(against.text(3) if against else "-")
    for _, key, digits in COLUMNS:
        values = [found[key] for found in chosen if found[key] is not None]
        cells.append(spread(values).text(digits) if values else "-")
    return cells


def undisturbed(runs: list[Record]) -> list[Record]:
    return [found for found in runs if not found["disturbed"]] or runs


def find_targets(args: argparse.Namespace, stack: ExitStack) -> list[Target]:
    """The servers as the command line names them; one is started if it names none."""
    urls = dict(pair.split("=", 1) for pair in args.label)
    urls |= {urlsplit(url).netloc: url for url in args.url}
    if args.start is not None or not urls:
        model = "tiny" if args.start is None else args.start
        server = stack.enter_context(running(checkpoint(model), args.start_flags.split()))
        print(f"started in {server.start_s:.1f} s", file=sys.stderr)
        own = Target(label="nanollmserve", url=server.url, model=MODEL_NAME, pid=server.pid)
        urls.pop(own.label, None)
        targets = [own]
    else:
        targets = []
    pids, models = by_label(args.pid, urls), by_label(args.model, urls)
    for label, url in urls.items():
        if not (args.allow_remote or is_loopback(url)):
            raise SystemExit(f"{url} is not on this machine; --allow-remote if it may be loaded")
        pid = int(pids[label]) if label in pids else None
        model = models.get(label) or first_model(url, args.api_key)
        targets.append(Target(label=label, url=url, model=model, pid=pid, api_key=args.api_key))
    return targets


def by_label(given: Sequence[str], labels: dict[str, str]) -> dict[str, str]:
    """Of NAME=VALUE the one of each name; a VALUE alone is everybody's."""
    found: dict[str, str] = {}
    for text in given:
        label, separator, value = text.partition("=")
        found |= {label: value} if separator else dict.fromkeys(labels, text)
    return found


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def first_model(url: str, api_key: str) -> str:
    headers = {"Authorization": f"Bearer {api_key}"}
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/models", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)["data"][0]["id"]
    except (OSError, LookupError, ValueError) as exc:
        raise SystemExit(f"{url}/v1/models names no model ({exc}): name one with --model") from exc


def choose_plans(args: argparse.Namespace) -> Iterator[Scenario]:
    """The scenarios by name, with the sizes that were given instead of theirs."""
    sizes = {key: getattr(args, key) for key in CUSTOM if getattr(args, key) is not None}
    base = scenario("custom", 8, 8, 128, 128)
    names = args.scenarios or ("custom" if sizes else "O1,O")
    for name in names.split(","):
        if name not in {**SCENARIOS, "custom": base}:
            raise SystemExit(f"there is no scenario {name}, only {', '.join(SCENARIOS)}, custom")
        yield dataclasses.replace(SCENARIOS.get(name, base), **sizes)


def choose_source(args: argparse.Namespace) -> TokenIds:
    if args.tokenizer is not None:
        return Words(args.tokenizer)
    if args.api != "completions":
        raise SystemExit("chat and responses take no token ids: name a folder with --tokenizer")
    low, _, high = args.token_ids.partition(":")
    return TokenIds(int(low), int(high))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_servers(add)
    add_load(add)
    add("--rounds", type=int, default=1)
    add("--retries", type=int, default=0, help="repeat a disturbed run so many times")
    add("--max-foreign", type=float, default=0.05, help="share of others above which it is")
    add("--bandwidth", action="store_true", help="measure memory before each run (needs torch)")
    add("--timeout", type=float, default=300, help="seconds a request may take")
    add("--out", type=Path, help="file to which a JSON line is added for every run")
    args = parser.parse_args(arguments)
    args.plans, args.source = list(choose_plans(args)), choose_source(args)
    return args


def add_servers(add: Callable[..., Any]) -> None:
    add("--url", action="append", default=[], help="a server, again for each")
    add("--label", action="append", default=[], metavar="NAME=URL", help="the same with a name")
    add("--pid", action="append", default=[], metavar="[NAME=]PID", help="to count CPU, memory")
    add("--model", action="append", default=[], metavar="[NAME=]ID", help="default: its first")
    add("--start", metavar="MODEL", help="start this project: a shape of make_model or a folder")
    add("--start-flags", default="", help="flags of serve for it, in one string")
    add("--allow-remote", action="store_true", help="load a server on another machine")
    add("--api-key", default=os.environ.get("BENCHMARK_API_KEY", "unused"))


def add_load(add: Callable[..., Any]) -> None:
    add("--scenarios", help=f"of {', '.join(SCENARIOS)} and custom, separated by commas")
    for name in CUSTOM:
        add(f"--{name.replace('_', '-')}", type=int, help="instead of the scenario's")
    add("--chat", dest="api", action="store_const", const="chat", default="completions")
    add("--responses", dest="api", action="store_const", const="responses")
    add("--tokenizer", type=Path, help="folder: prompts are words of it, not token ids")
    add("--token-ids", default="1000:3000", metavar="LOW:HIGH", help="the ids prompts are made of")
    add("--no-ignore-eos", dest="ignore_eos", action="store_false", help="if it is refused")
    add("--no-usage", dest="usage", action="store_false", help="if stream_options are refused")
    add("--extra", type=json.loads, default={}, help="JSON object added to every request")
    add("--seed", type=int, default=random.randrange(2**31), help="of the prompts; default: new")


def main() -> None:
    args = parse()
    with ExitStack() as stack:
        targets = find_targets(args, stack)
        records = asyncio.run(measure(args, targets))
    print(report(records, targets[0].label))
    if any(found["failures"] for found in records):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
