"""The tables of the corpus, and the ways in which a question can be put."""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from string import Template
from typing import Any

FOLDER = Path(__file__).parent

_VOWELS = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "ou", "ea", "ia", "y"]
_ONSETS = list("bcdfghjklmnpqrstvwz") + [
    "br",
    "ch",
    "cr",
    "dr",
    "fl",
    "gr",
    "kl",
    "pl",
    "qu",
    "sh",
    "sl",
]
_ONSETS += ["st", "str", "th", "tr", "x", "", ""]
_CODAS = [
    "",
    "",
    "",
    "n",
    "r",
    "s",
    "l",
    "t",
    "m",
    "k",
    "d",
    "nd",
    "rt",
    "st",
    "ck",
    "ng",
    "x",
    "p",
    "gh",
]


class Dice(Random):
    """Random choices, and from how wide a field they are taken."""

    # The share of words and phrasings from the wider field: words spliced from others, whose odd
    # joints are harder to copy than regular syllables, and the rarer phrasings of wider.toml.
    wider = 0.0
    # The share of conversations about the first things that people try.
    basics = 0.0

    def goes_wider(self) -> bool:
        return self.wider > 0 and self.random() < self.wider


@cache
def table(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def words(name: str) -> list[str]:
    chosen: list[str] = table("words")[name]
    return chosen


def fill(text: str, /, **values: str) -> str:
    return Template(text).safe_substitute(values)


@dataclass(frozen=True)
class Topic:
    """One thing that the model knows about LLM serving."""

    name: str
    aliases: list[str]
    answer: str
    why: str
    questions: list[str]

    def phrasings(self) -> list[str]:
        general = table("phrasings")["general"]
        named = [fill(text, x=name) for text in general for name in [self.name, *self.aliases]]
        return named + self.questions


@cache
def topics() -> list[Topic]:
    return [Topic(**entry) for entry in table("serving")["topic"]]


def invented_word(rng: Dice) -> str:
    """A word that no table holds: copying it cannot be learned by heart."""
    if rng.goes_wider():
        return spliced_word(rng)
    if rng.random() < 0.1:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 7)))
    syllables = rng.choice([1, 2, 2, 2, 3, 3])
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)]
    return "".join(parts) + rng.choice(_CODAS)


@cache
def corpus_words() -> list[str]:
    """All words of the serving table, in a fixed order."""
    text = (FOLDER / "serving.toml").read_text(encoding="utf-8")
    return sorted(set(re.findall(r"[a-z]{3,}", text.lower())))


def spliced_word(rng: Dice) -> str:
    head, middle, tail = rng.choices(corpus_words(), k=3)
    joint = middle[1 : rng.randint(1, 4)] if rng.random() < 0.5 else ""
    return head[: rng.randint(1, 4)] + joint + tail[rng.randint(-4, -1) :]


def invented_name(rng: Dice) -> str:
    return invented_word(rng).capitalize()


def place(rng: Dice) -> str:
    """A city, half of the time one that does not exist."""
    if rng.random() < 0.45:
        return rng.choice(words("cities"))
    name = invented_name(rng)
    return f"{name} {invented_name(rng)}" if rng.random() < 0.1 else name


def person(rng: Dice) -> str:
    return rng.choice(words("people")) if rng.random() < 0.45 else invented_name(rng)


def vary(question: str, rng: Dice) -> str:
    """The same question as different people type it. Gaps ($x) are left for the caller to fill."""
    if question[-1] in ".?!" and rng.random() < 0.25:
        question = question[:-1]
    dressing = rng.random()
    if dressing < 0.12:
        question = rng.choice(table("phrasings")["lead_in"]) + _lower_first(question, rng)
    elif dressing < 0.20:
        question += rng.choice(table("phrasings")["lead_out"])
    elif dressing < 0.26 and question.split()[0] in _IMPERATIVES:
        question = "Please " + _lower_first(question, rng)
    return _vary_letters(question, rng)


_IMPERATIVES = {
    "Explain",
    "Define",
    "Describe",
    "Tell",
    "Give",
    "Count",
    "Say",
    "Repeat",
    "Write",
    "Calculate",
}


def _lower_first(text: str, rng: Dice) -> str:
    is_word = text[:2].istitle() and not text[1:2].isupper()
    return text[0].lower() + text[1:] if is_word and rng.random() < 0.7 else text


def _vary_letters(text: str, rng: Dice) -> str:
    draw = rng.random()
    if draw < 0.12:
        return text.lower()
    if "$" in text:
        return text
    if draw < 0.16:
        return text.upper()
    if draw < 0.20 and len(text) > 12:
        at = rng.randrange(3, len(text) - 3)
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text
