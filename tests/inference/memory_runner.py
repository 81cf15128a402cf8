"""A model whose keys and values are the tokens themselves: the engine's oracle."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from inference.engine.core import EngineCore, EngineLimits
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
