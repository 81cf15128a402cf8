"""A model whose keys and values are the tokens themselves: the engine's oracle."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from inference.engine.block_pool import BlockPool
from inference.engine.core import EngineCore
from inference.engine.scheduler import EngineLimits
from inference.engine.sequence import Sequence
from inference.model.inputs import ModelInputs
from inference.request import Request, SamplingParams

VOCAB_SIZE = 97
EOS = 0
CPU = torch.device("cpu")
Answer = Callable[[list[int]], int]  # the token after these


def next_token(token_ids: list[int]) -> int:
    """The answer to a sequence: a checksum of all of its tokens, never EOS."""
    digest = hashlib.sha256(bytes(str(token_ids), "ascii")).digest()
    return 1 + int.from_bytes(digest[:4], "little") % (VOCAB_SIZE - 1)


def mostly_copied(token_ids: list[int]) -> int:
    """An answer that repeats what was said seven tokens ago, but for one token in ten."""
    checksum = next_token(token_ids)
    return token_ids[-7] if checksum % 10 and len(token_ids) >= 7 else checksum


def naive(prompt: list[int], num_tokens: int, answer: Answer = next_token) -> list[int]:
    """What a loop without any cache answers."""
    token_ids = list(prompt)
    for _ in range(num_tokens):
        token_ids.append(answer(token_ids))
    return token_ids[len(prompt) :]


class MemoryRunner:
    """Answers with a checksum of what the block tables point at.

    A block that is lost, shared wrongly or overwritten changes the answer.
    """

    vocab_size = VOCAB_SIZE

    def __init__(self, num_blocks: int, block_size: int, answer: Answer = next_token) -> None:
        self.num_blocks, self.block_size, self.answer = num_blocks, block_size, answer
        self.cache: list[int | None] = [None] * (num_blocks * block_size)

    def forward(self, inputs: ModelInputs) -> Tensor:
        rows, tokens = [], iter(inputs.tokens(CPU).tolist())
        columns = (inputs.counts, inputs.context_lens, inputs.block_tables)
        for count, context_len, table in zip(*columns, strict=True):
            for position in range(context_len - count, context_len):
                self.cache[self.slot(table, position)] = next(tokens)
                rows.append([self.cache[self.slot(table, p)] for p in range(position + 1)])
        logits = torch.empty(len(inputs.logit_rows), self.vocab_size)
        for i, wanted in enumerate(inputs.logit_rows):
            logits[i] = self.logits(rows[wanted])
        return logits

    def logits(self, token_ids: list[int]) -> Tensor:
        """`[vocab_size]`: what may come after these."""
        logits = torch.zeros(self.vocab_size)
        logits[self.answer(token_ids)] = 9.0
        return logits

    def slot(self, table: list[int], position: int) -> int:
        block = table[position // self.block_size]
        assert block != 0, "block 0 must never be given out"
        return block * self.block_size + position % self.block_size


def make_core(
    num_blocks: int = 64, block_size: int = 4, answer: Answer = next_token, **limits
) -> EngineCore:
    values = {
        "max_model_len": 64,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 16,
        "block_size": block_size,
        "eos_token_ids": frozenset({EOS}),
    } | limits
    return EngineCore(MemoryRunner(num_blocks, block_size, answer), EngineLimits(**values))


def make_request(request_id: str, prompt: list[int], max_tokens: int = 8, **kwargs) -> Request:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, **kwargs.pop("params", {}))
    return Request(request_id=request_id, prompt_token_ids=prompt, params=params, **kwargs)


def drain(core: EngineCore, answers: dict[str, list[int]] | None = None) -> dict[str, list[int]]:
    answers = {} if answers is None else answers
    while core.has_work:
        take_step(core, answers)
    return answers


def take_step(core: EngineCore, answers: dict[str, list[int]]) -> None:
    for request_id, delta in core.step():
        answers.setdefault(request_id, []).extend(delta.token_ids)
    check_blocks(core)


def check_blocks(core: EngineCore) -> None:
    """Every block is either free or held, and counted right."""
    pool, held = core.pool, [*core.scheduler.running, *core.scheduler.waiting]
    counts = Counter(block for seq in held for block in seq.block_table)
    assert pool._ref_counts == [counts[block] for block in range(pool.num_blocks)]
    assert set(pool._free) == {block for block in range(1, pool.num_blocks) if not counts[block]}


def random_arrivals(seed: int, answer: Answer = next_token, **limits) -> EngineCore:
    """Requests that come and go at random, all of which must get what a naive loop says."""
    rng = random.Random(seed)
    block_size = rng.choice([1, 4, 16, 32])
    core = make_core(
        num_blocks=rng.choice([64, 90, 200]) // block_size + 64 // block_size + 1,
        block_size=block_size,
        answer=answer,
        max_num_seqs=rng.choice([1, 3, 8]),
        max_num_batched_tokens=rng.choice([8, 13, 64]),
        enable_prefix_caching=rng.random() < 0.8,
        **limits,
    )
    common = [rng.randrange(1, 97) for _ in range(24)]
    expected, answers, prompts, aborted = {}, {}, {}, []
    for i in range(25):
        prompt = common[: rng.randrange(25)] + [rng.randrange(1, 97) for _ in range(1 + i % 9)]
        max_tokens = rng.choice([0, 1, 2, 64 - len(prompt), *range(3, 25)])
        whole = naive(prompt, max_tokens, answer)
        stop = rng.choice([*whole, *[EOS] * 20])
        expected[str(i)] = whole[: whole.index(stop) + 1] if stop in whole else whole
        prompts[str(i)] = prompt
        stops = {"stop_token_ids": frozenset({stop})}
        core.add(make_request(str(i), prompt, max_tokens, params=stops))
        for _ in range(rng.randrange(4)):
            take_step(core, answers)
        if rng.random() < 0.1:
            aborted.append(str(rng.randrange(i + 1)))
            core.abort(aborted[-1])
            expected[aborted[-1]] = expected[aborted[-1]][: len(answers.get(aborted[-1], []))]
    drain(core, answers)

    assert answers == {key: found for key, found in expected.items() if key in answers}
    assert set(expected) - set(answers) <= set(aborted)
    assert core.stats().num_generated_tokens == sum(map(len, answers.values()))
    assert core.pool.num_free == core.pool.num_blocks - 1
    assert_cached_blocks_hold(core, [prompts[key] + answers.get(key, []) for key in prompts])
    return core


def assert_cached_blocks_hold(core: EngineCore, texts: list[list[int]]) -> None:
    """Every block in the prefix cache is part of one of the texts, and holds just that."""
    pool, size, holds = core.pool, core.pool.block_size, {}
    for text in texts:
        seq = Sequence(make_request("text", text), 1, frozenset())
        seq.num_computed_tokens = len(text)
        seq.block_table = [0] * len(text)
        unused = BlockPool(1, size)
        unused.cache_full_blocks(seq, 0)
        blocks = [text[i * size : (i + 1) * size] for i in range(len(seq.block_hashes))]
        holds |= dict(zip(seq.block_hashes, blocks, strict=True))
    for digest, block in pool._by_digest.items():
        assert core._runner.cache[block * size : (block + 1) * size] == holds[digest]
