"""Prompts of exactly so many tokens, no two alike, standard library only."""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import Prompt

SPACES = ("\u0120", "\u2581")  # what stands for a space in vocabularies: byte-level, SentencePiece
MAX_WORDS = 4096


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """`requests` of them, `concurrency` at a time. `shared_prefix` tokens begin every prompt."""

    name: str
    requests: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    shared_prefix: int = 0


def scenario(name: str, *sizes: int) -> Scenario:
    names = ("requests", "concurrency", "prompt_tokens", "output_tokens", "shared_prefix")
    return Scenario(name=name, **dict(zip(names, sizes, strict=False)))


SCENARIOS = {
    each.name: each
    for each in (
        scenario("S1", 2, 1, 128, 128),  # one stream
        scenario("S8", 8, 8, 128, 128),  # a batch
        scenario("S32", 32, 32, 128, 64),  # a large batch
        scenario("P", 2, 1, 2048, 16),  # a long prompt
        scenario("X", 16, 4, 1532, 32, 1500),  # a common prefix
        scenario("O", 64, 64, 32, 128),  # the server's own cost: for a tiny model
        scenario("O1", 4, 1, 32, 128),  # the same with one stream
    )
}


class TokenIds:
    """Prompts as token ids: exact, for completions."""

    def __init__(self, low: int, high: int) -> None:
        self._range = range(low, high)

    def prompt(self, num_tokens: int, rng: random.Random) -> list[int]:
        return rng.choices(self._range, k=num_tokens)

    def join(self, first: Prompt, second: Prompt) -> Prompt:
        return [*first, *second]


class Words(TokenIds):
    """Prompts as text: words of a tokenizer's folder that are one token each."""

    def __init__(self, folder: Path) -> None:
        self._words = one_token_words(folder)

    def prompt(self, num_tokens: int, rng: random.Random) -> str:
        return "".join(rng.choices(self._words, k=num_tokens))

    def join(self, first: Prompt, second: Prompt) -> Prompt:
        return f"{first}{second}"


def make_prompts(plan: Scenario, source: TokenIds, seed: str) -> list[Prompt]:
    """For every request of a scenario; the same for the same seed."""
    rng = random.Random(f"{plan.name} {seed}")
    prefix = source.prompt(plan.shared_prefix, rng)
    num_own = plan.prompt_tokens - plan.shared_prefix
    return [source.join(prefix, source.prompt(num_own, rng)) for _ in range(plan.requests)]


def one_token_words(folder: Path) -> list[str]:
    """Lower-case words with the space before them that BPE makes one token of.

    Raises ValueError if there are too few for prompts that differ.
    """
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = content.get("merges") or []
    pairs = (
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges
    )
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    pattern = re.compile(f"[{''.join(SPACES)}][a-z]{{3,12}}")
    words = []
    for token in sorted(content["vocab"]):
        if pattern.fullmatch(token) and merged(token, ranks) == [token]:
            words.append(f" {token[1:]}")
            if len(words) == MAX_WORDS:
                break
    if len(words) < 100:
        raise ValueError(f"only {len(words)} words of {folder} are one token: is it BPE?")
    return words


def merged(word: str, ranks: dict[tuple[str, ...], int]) -> list[str]:
    """What BPE makes of a word: again and again the pair that was learned first."""
    parts = list(word)
    while len(parts) > 1:
        pairs = [(a, b) for a, b in zip(parts, parts[1:], strict=False)]
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        index = pairs.index(best)
        parts[index : index + 2] = ["".join(best)]
    return parts
