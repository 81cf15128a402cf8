"""`manage.py bench`: how fast a running server answers, reported as `vllm bench serve` does."""

import asyncio
import json
import math
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import BaseCommand, CommandError

from benchmarks import load
from benchmarks.client import Target
from nanollmserve_site import api_client
from nanollmserve_site.api_client import ApiFailure, Server


def positive(text: str) -> float:
    """A number above 0, or inf."""
    value = float(text)
    if not value > 0:
        raise ArgumentTypeError(f"{text} is not above 0")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ArgumentTypeError(f"{text} is less than 1")
    return value


def limit(text: str) -> tuple[str, float]:
    """ttft:500"""
    name, _, value = text.partition(":")
    if name not in load.TIMES:
        raise ArgumentTypeError(f"{name} is none of {', '.join(load.TIMES)}")
    return name, positive(value)


class Command(BaseCommand):
    help = (
        "Put random prompts to a running server and report throughput and latencies, line by line "
        "as `vllm bench serve` does. Flags are called as there. Prompts are sent as token ids, and "
        "no answer ends before its length."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        api_client.add_arguments(parser, settings.SERVER)
        add = parser.add_argument
        add("--num-prompts", type=count, default=100, metavar="N", help="Default: %(default)s.")
        add(
            "--request-rate",
            type=positive,
            default=math.inf,
            metavar="R",
            help="Requests that begin in a second, at random times. Default: all at once.",
        )
        add("--max-concurrency", type=count, metavar="N", help="Most at a time. Default: any.")
        lengths = {"input": "Tokens of a prompt.", "output": "Tokens of an answer."}
        for name, help in lengths.items():
            add(
                f"--random-{name}-len",
                type=count,
                default=128,
                metavar="N",
                help=f"{help} Default: %(default)s.",
            )
        add(
            "--goodput",
            type=limit,
            nargs="+",
            default=[],
            metavar="NAME:MS",
            help="Count answers that take at most so many milliseconds, such as ttft:500 tpot:50; "
            f"of {', '.join(load.TIMES)}.",
        )
        add("--seed", type=int, default=0, help="Of prompts and times. Default: %(default)s.")
        add("--save-result", type=Path, metavar="FILE", help="Write the figures as JSON.")

    def handle(self, *, url: str, api_key: str, model: str | None, **options: Any) -> None:
        try:
            model = model or Server(url, api_key).first_model()
        except ApiFailure as error:
            raise CommandError(str(error)) from None
        root = url.rstrip("/").removesuffix("/v1")
        target = Target(label=model, url=root, model=model, api_key=api_key or "unused")
        plan = load.Plan(
            num_prompts=options["num_prompts"],
            input_len=options["random_input_len"],
            output_len=options["random_output_len"],
            request_rate=options["request_rate"],
            max_concurrency=options["max_concurrency"],
            goodput=dict(options["goodput"]),
            seed=options["seed"],
        )
        answers, seconds = asyncio.run(load.run(target, plan))
        found = load.figures(plan, answers, seconds)
        self.stdout.write(load.report(found))
        if options["save_result"]:
            facts = {"model_id": model, "num_prompts": plan.num_prompts} | found
            options["save_result"].write_text(json.dumps(facts, indent=2) + "\n")
        if found["failed"]:
            raise CommandError(f"{found['failed']} requests failed: {'; '.join(found['errors'])}")
