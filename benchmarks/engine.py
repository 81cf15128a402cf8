"""The engine without HTTP: steps and prompts on random weights, against the machine's limits.

    python -m benchmarks.engine                                # a tiny model
    python -m benchmarks.engine --model qwen3-0.6b --batch 1,8,32 --context 128,1024 --prompt 2048
    python -m benchmarks.engine --model qwen3-8b --device cuda --set dtype=bfloat16

A decode step has to read all weights and the keys and values of its contexts: those bytes per
second are compared with what the memory can do, measured beside each case. A prompt has to be
multiplied: its arithmetic is compared with a single large product. On one thread of a CPU times are
the thread's own, which other processes disturb less. Needs torch and transformers, and no Django.
"""

import argparse
import dataclasses
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, nn

from benchmarks.figures import table
from benchmarks.limits import matmul_rate, read_bandwidth, synchronize
from benchmarks.make_model import MODELS, find_or_make
from inference.config import EngineConfig
from inference.engine.core import EngineCore, Runner
from inference.engine.scheduler import EngineLimits
from inference.errors import ModelLoadError
from inference.model.context import LayerCache
from inference.model.inputs import ModelInputs
from inference.model.loader import LoadedModel, load_model
from inference.model.runner import make_runner
from inference.request import Request, SamplingParams

Record = dict[str, Any]

NUM_WARM_STEPS = 2
LOW_TOKEN_ID = 300  # below are the ids of special tokens and bytes
COLUMNS = (
    ("ms", "ms", 2),
    ("of it model", "model_ms", 2),
    ("tok/s", "tok_s", 1),
    ("GB/s", "gb_s", 1),
    ("GFLOP/s", "gflop_s", 0),
    ("limit", "limit", 1),
    ("share", "share", 2),
)


@dataclass
class TimedRunner:
    """A runner that notes how long the model takes; the rest of a step is the engine's own.

    Where steps overlap nobody waits for the model: then it is how long launching it takes.
    """

    runner: Runner
    device: str
    overlaps: bool
    clock: Callable[[], float]
    seconds: list[float] = field(default_factory=list)

    @property
    def num_blocks(self) -> int:
        return self.runner.num_blocks

    def forward(self, inputs: ModelInputs) -> Tensor:
        began = self.clock()
        logits = self.runner.forward(inputs)
        if not self.overlaps:
            synchronize(self.device)
        self.seconds.append(self.clock() - began)
        return logits


@dataclass
class Bench:
    """A loaded model with its engine, and what is known of the machine."""

    loaded: LoadedModel
    config: EngineConfig
    core: EngineCore
    runner: TimedRunner
    weights: int
    rng: random.Random

    @classmethod
    def of(cls, config: EngineConfig, say: Callable[[str], None]) -> "Bench":
        loaded = load_model(config, say)
        if not loaded.paged:
            raise SystemExit(f"{config.model} does not run in batches: measure it with serve.py")
        runner = make_runner(loaded, config, say)
        runner.warmup()
        on_one_thread = loaded.device.type == "cpu" and torch.get_num_threads() == 1
        clock = time.thread_time if on_one_thread else time.perf_counter
        overlaps = config.runs_ahead(loaded.device.type)
        timed = TimedRunner(runner, loaded.device.type, overlaps, clock)
        limits = EngineLimits(
            max_model_len=runner.max_model_len,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=max(
                config.token_budget(loaded.device.type), config.max_num_seqs
            ),
            block_size=config.block_size,
            eos_token_ids=loaded.eos_token_ids,
            async_scheduling=overlaps,
        )
        core = EngineCore(timed, limits)
        return cls(loaded, config, core, timed, weight_bytes(loaded.model), random.Random(0))

    @property
    def device(self) -> str:
        return self.loaded.device.type

    def prompt(self, num_tokens: int) -> list[int]:
        return self.rng.choices(range(LOW_TOKEN_ID, self.loaded.vocab_size), k=num_tokens)

    def add(self, prompt: list[int], max_tokens: int | None) -> None:
        if len(prompt) >= self.core.limits.max_model_len:
            raise SystemExit(f"{len(prompt)} tokens are too many: raise max_model_len")
        self.core.add(
            Request(
                request_id=f"{self.rng.random()}",
                prompt_token_ids=prompt,
                params=SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True),
            )
        )

    def run(self) -> list[tuple[float, float]]:
        """All steps until nothing is left to do."""
        steps = []
        while self.core.has_work:
            steps.append(self.step())
        return steps

    def step(self) -> tuple[float, float]:
        """Seconds of a step, and of the model in it."""
        clock, num_runs = self.runner.clock, len(self.runner.seconds)
        began = clock()
        self.core.step()
        return clock() - began, sum(self.runner.seconds[num_runs:])

    def cache_bytes(self, context: int) -> int:
        """Keys and values that one token at the end of a context looks at."""
        return sum(
            layer.elements_per_token * min(context, layer.sliding_window or context)
            for layer in self.loaded.layers
        ) * (self.loaded.dtype.itemsize)


def decode(bench: Bench, batch: int, context: int, num_steps: int) -> Record:
    """Steps in which each of `batch` sequences gets a token, around so long a context."""
    before = read_bandwidth(bench.device)
    fill(bench, batch, context - NUM_WARM_STEPS - num_steps // 2)
    for _ in range(NUM_WARM_STEPS):
        bench.step()
    running = list(bench.core.scheduler.running)
    first = sum(len(seq.token_ids) for seq in running)
    times = [bench.step() for _ in range(num_steps)]
    mean = (first + sum(len(seq.token_ids) for seq in running)) / 2 / batch
    for seq in running:
        bench.core.abort(seq.request.request_id)
    limit = max(before, read_bandwidth(bench.device))
    num_bytes = bench.weights + batch * bench.cache_bytes(round(mean))
    found = {"kind": "decode", "batch": batch, "context": round(mean), **middle(times)}
    speed = num_bytes / found["ms"] / 1e6
    return found | {
        "tok_s": 1000 * batch / found["ms"],
        "gb": num_bytes / 1e9,
        "gb_s": speed,
        "limit": limit,
        "share": speed / limit,
    }


def fill(bench: Bench, batch: int, context: int) -> None:
    """Let sequences of about this length begin to decode in the same step.

    Each prompt is read alone, a whole number of blocks and one token. Then all come again, find
    their blocks in the prefix cache, and have that token left.
    """
    size = bench.config.block_size
    prompts = [bench.prompt(max(round(context / size), 0) * size + 1) for _ in range(batch)]
    for prompt in prompts:
        bench.add(prompt, 1)
        bench.run()
    for prompt in prompts:
        bench.add(prompt, None)
    bench.step()
    running = bench.core.scheduler.running
    if any(seq.num_output_tokens + seq.num_output_placeholders != 1 for seq in running):
        raise RuntimeError("the sequences did not begin together: is the KV cache too small?")


def prefill(bench: Bench, num_tokens: int, num_runs: int) -> Record:
    """From a prompt to its first token, in as many steps as the token budget makes of it."""
    runs = []
    for _ in range(num_runs):
        bench.add(bench.prompt(num_tokens), 1)
        runs.append(tuple(map(sum, zip(*bench.run(), strict=True))))
    found = {"kind": "prefill", "batch": 1, "context": num_tokens, **middle(runs)}
    limit = matmul_rate(bench.device, bench.loaded.dtype)
    speed = prefill_flop(bench.loaded, num_tokens) / found["ms"] / 1e6
    return found | {
        "tok_s": 1000 * num_tokens / found["ms"],
        "gflop_s": speed,
        "limit": limit,
        "share": speed / limit,
    }


def middle(times: Sequence[tuple[float, ...]]) -> Record:
    """Medians in milliseconds; the range is of the whole steps."""
    whole, model = ([1000 * value for value in column] for column in zip(*times, strict=True))
    return {
        "ms": statistics.median(whole),
        "ms_range": [min(whole), max(whole)],
        "model_ms": statistics.median(model),
        "runs": len(times),
    }


def prefill_flop(loaded: LoadedModel, num_tokens: int) -> int:
    """Multiplications and additions that a prompt cannot do without, the head only once."""
    config = loaded.model.config.get_text_config(decoder=True)
    head = config.vocab_size * config.hidden_size
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = 2 * width * num_tokens**2 * config.num_hidden_layers  # causal: half of 4
    return 2 * (linear_weights(loaded) * num_tokens + head) + attention


def linear_weights(loaded: LoadedModel) -> int:
    """How many weights each token is multiplied with in the layers, by the checkpoint's shapes."""
    with torch.device("meta"):
        plain = type(loaded.model)(loaded.model.config)
    head = plain.get_output_embeddings()
    return sum(
        module.weight.numel()
        for module in plain.modules()
        if isinstance(module, nn.Linear) and module is not head
    )


def weight_bytes(model: nn.Module) -> int:
    """Bytes of weights that a decode step reads, as they lie in memory now.

    Not those of an embedding, from which it takes single rows, unless the head reads it too.
    """
    head = getattr(model.get_output_embeddings(), "weight", None)
    embedding = model.get_input_embeddings().weight
    seen = {} if head is embedding else {address(embedding): embedding}
    unread = sum(tensor.nbytes for tensor in seen.values())
    return sum(tensor.nbytes for tensor in tensors_of(model, seen, set())) - unread


def tensors_of(thing: object, seen: dict[object, Tensor], visited: set[int]) -> Sequence[Tensor]:
    """All tensors that hang on a module, also in objects of this project that are no modules."""
    if id(thing) in visited:
        return list(seen.values())
    visited.add(id(thing))
    if isinstance(thing, Tensor):
        seen.setdefault(address(thing), thing)
    for child in children_of(thing):
        tensors_of(child, seen, visited)
    return list(seen.values())


def children_of(thing: object) -> Iterator[object]:
    if isinstance(thing, LayerCache):  # which layers may know, and which are no weights
        return
    if isinstance(thing, dict):
        yield from thing.values()
    elif isinstance(thing, list | tuple):
        yield from thing
    elif isinstance(thing, nn.Module) or type(thing).__module__.startswith("inference."):
        yield from getattr(thing, "__dict__", {}).values()


def address(tensor: Tensor) -> object:
    """What two views of the same memory have in common; opaque layouts have no address."""
    try:
        return tensor.data_ptr(), tensor.nbytes
    except RuntimeError:
        return id(tensor)


def engine_config(args: argparse.Namespace, folder: str) -> EngineConfig:
    """Room for the largest case, and what was set by hand."""
    longest = max([context + args.steps + 48 for context in args.context] + [args.prompt + 8])
    wanted = {
        "model": folder,
        "device": args.device,
        "max_num_seqs": max(args.batch),
        "max_model_len": max(longest, 64),
    }
    config = EngineConfig(**wanted | dict(map(read_setting, args.set)))
    if config.speculative != "none":
        raise SystemExit("random text holds nothing to guess from: measure that with serve.py")
    return config


def read_setting(text: str) -> tuple[str, object]:
    """`name=value` as a field of EngineConfig. Raises SystemExit for one that does not exist."""
    name, _, value = text.partition("=")
    hints = get_type_hints(EngineConfig)
    if name not in hints:
        names = ", ".join(field.name for field in dataclasses.fields(EngineConfig))
        raise SystemExit(f"{name} is no setting of the engine; there are {names}")
    kinds = [kind for kind in get_args(hints[name]) or (hints[name],) if kind is not type(None)]
    if value == "none" and len(kinds) < len(get_args(hints[name])):
        return name, None
    if kinds[0] is bool:
        return name, value.lower() in ("true", "1")
    return name, kinds[0](value)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="tiny", help="a shape of make_model, or a folder with a checkpoint")
    add("--models", type=Path, default=MODELS, help="where made checkpoints are kept")
    add("--device", default="auto")
    add("--threads", type=int, help="of the CPU; with 1 its own time counts, not the clock's")
    add("--batch", type=numbers, default=[1, 8], help="sequences that decode: 1,8,32")
    add("--context", type=numbers, default=[128], help="tokens before each: 128,1024")
    add("--steps", type=int, default=16, help="decode steps of each case")
    add("--prompt", type=int, default=512, help="tokens of the prompt to be read; 0 for none")
    add("--prompts", type=int, default=3, help="how many of them")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the engine")
    add("--out", type=Path, help="file to which a JSON line is added for every case")
    return parser.parse_args()


def cases(bench: Bench, args: argparse.Namespace) -> Iterator[Record]:
    for context in args.context:
        for batch in args.batch:
            yield decode(bench, batch, context, args.steps)
    if args.prompt:
        yield prefill(bench, args.prompt, args.prompts)


def row(found: Record) -> list[str]:
    if found["kind"] == "decode":
        name = f"decode, {found['batch']} x {found['context']}"
    else:
        name = f"prompt of {found['context']}"
    shown = [(found.get(key), digits) for _, key, digits in COLUMNS]
    return [name, *("-" if value is None else f"{value:,.{digits}f}" for value, digits in shown)]


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    is_folder = "/" in args.model or Path(args.model).is_dir()
    folder = args.model if is_folder else str(find_or_make(args.model, folder=args.models))
    config = engine_config(args, folder)
    try:
        bench = Bench.of(config, lambda stage: print(stage, file=sys.stderr))
    except ModelLoadError as exc:
        raise SystemExit(str(exc)) from exc
    facts = {
        "model": args.model,
        "set": args.set,
        "device": bench.device,
        "dtype": str(bench.loaded.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "weights_gb": bench.weights / 1e9,
    }
    rows = []
    for found in cases(bench, args):
        rows.append(row(found))
        if args.out is not None:
            with args.out.open("a") as file:
                file.write(json.dumps(facts | found) + "\n")
    print(f"{json.dumps(facts)}\n\n{table(['', *(head for head, _, _ in COLUMNS)], rows)}")


if __name__ == "__main__":
    main()
