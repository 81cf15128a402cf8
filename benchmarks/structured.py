"""What a grammar costs: decoding with one against free decoding, in the same engine, in turn.

    python -m benchmarks.structured [--model DIR_OR_SHAPE] [--streams 8] [--tokens 128] [--rounds 9]

Prints tokens per second of both and their ratio, round by round, and the median ratio: by the
clock, and by the processor time of the process, which other work on the machine disturbs less.
"""

import argparse
import asyncio
import os
import time

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nanollmserve_site.settings")

from benchmarks.figures import spread
from benchmarks.server import checkpoint
from inference.config import EngineConfig
from inference.demo_model import DEMO_MODEL_PATH
from inference.engine.client import EngineClient, QueueLimits
from inference.engine.thread import ThreadEngine
from inference.request import Constraint, Request, SamplingParams
from inference.service import reloadable
from inference.text.grammar import compiler_of, json_part

# Never whole within a round, with a bit of everything: free and enumerated strings, numbers.
SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "kind": {"enum": ["person", "place", "thing"]},
            "count": {"type": "integer"},
            "share": {"type": "number", "minimum": 0, "maximum": 1},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
            "parent": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        },
        "required": ["name", "kind", "count", "share", "tags", "parent"],
        "additionalProperties": False,
    },
}


async def tokens_per_second(
    engine: EngineClient, num_streams: int, num_tokens: int, constraint: Constraint | None
) -> tuple[float, float]:
    """Tokens of all streams per second, from the first token of the last, and per CPU second."""

    async def stream(index: int) -> tuple[float, int]:
        params = SamplingParams(max_tokens=num_tokens, seed=index, ignore_eos=True)
        prompt = [(index * 37 + i) % 200 + 10 for i in range(8)]
        request = Request(
            request_id=f"{index}-{time.monotonic_ns()}",
            prompt_token_ids=prompt,
            params=params,
            constraint=constraint,
        )
        num_received, first = 0, 0.0
        async with engine.generate(request) as deltas:
            async for delta in deltas:
                first = first or time.perf_counter()
                num_received += len(delta.token_ids)
        return first, num_received

    cpu_began = time.process_time()
    streams = await asyncio.gather(*(stream(i) for i in range(num_streams)))
    elapsed = time.perf_counter() - max(first for first, _ in streams)
    num_tokens = sum(num for _, num in streams)
    return num_tokens / elapsed, num_tokens / (time.process_time() - cpu_began)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(DEMO_MODEL_PATH))
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    config = EngineConfig(model=checkpoint(args.model), max_model_len=args.tokens + 64)
    engine = ThreadEngine(reloadable(config), QueueLimits(64))
    while engine.status.state == "loading":
        await asyncio.sleep(0.05)
    began = time.perf_counter()
    compiler = compiler_of(engine.model)
    print(f"tokenizer set up in {time.perf_counter() - began:.3f} s")
    began = time.perf_counter()
    grammar = compiler.compile([json_part(SCHEMA)])
    print(f"schema compiled in {(time.perf_counter() - began) * 1000:.1f} ms")
    ratios, cpu_ratios = [], []
    for number in range(args.rounds + 1):
        speed = {}
        for name, constraint in [("free", None), ("grammar", grammar)][:: 1 if number % 2 else -1]:
            speed[name] = await tokens_per_second(engine, args.streams, args.tokens, constraint)
        if number:  # the first round warms up
            (free, free_cpu), (bound, bound_cpu) = speed["free"], speed["grammar"]
            ratios.append(bound / free)
            cpu_ratios.append(bound_cpu / free_cpu)
            print(f"{free:8.1f} free {bound:8.1f} grammar {ratios[-1]:.3f}")
    for name, values in (("clock", ratios), ("processor", cpu_ratios)):
        print(f"median ratio by {name} {spread(values).text(3)}")
    engine.close()


if __name__ == "__main__":
    asyncio.run(main())
