"""Milliseconds of a model run, without HTTP, scheduler and sampler.

    python -m benchmarks.engine MODEL 1x128 8x640 p2048 --quantization int8

A case is sequences x context of a decode step, or p and the length of a prompt in one run. Times
are the clock's; with --threads 1 the thread's own, which other processes disturb less.
"""

import argparse
import statistics
import time

import torch

from inference.config import EngineConfig
from inference.model.inputs import ModelInputs
from inference.model.loader import load_model
from inference.model.runner import ModelRunner

CASES = ["1x128", "8x128", "32x128", "8x640", "p512"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--quantization")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = EngineConfig(
        model=args.model, device="cpu", quantization=args.quantization, kv_cache_memory=4 * 2**30
    )
    runner = ModelRunner(load_model(config, print), config, print)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    for case in args.cases:
        inputs = make_inputs(case, runner.num_blocks, config.block_size)
        times = []
        for _ in range(args.rounds + 1):
            started = clock()
            runner.forward(inputs)
            times.append(1e3 * (clock() - started))
        steady = times[1:]
        print(f"{case}: median {statistics.median(steady):.1f}, best {min(steady):.1f} ms")


def make_inputs(case: str, num_blocks: int, block_size: int) -> ModelInputs:
    """Sequences in blocks from all over the cache."""
    if case.startswith("p"):
        counts = context_lens = [int(case[1:])]
    else:
        num_seqs, context_len = map(int, case.split("x"))
        counts, context_lens = [1] * num_seqs, [context_len] * num_seqs
    free = iter((torch.randperm(num_blocks - 1) + 1).tolist())
    tables = [[next(free) for _ in range(-(-length // block_size))] for length in context_lens]
    rows = torch.tensor(counts).cumsum(0).sub(1).tolist()
    tokens = [7 + i % 500 for i in range(sum(counts))]
    return ModelInputs(tokens, counts, context_lens, tables, rows, list(range(len(counts))))


if __name__ == "__main__":
    main()
