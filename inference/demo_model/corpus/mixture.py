"""Which conversations the model sees, and how often."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from inference.demo_model.corpus import exercises, talk, tools
from inference.demo_model.corpus.tables import fill, person, place, table, topics
from inference.demo_model.corpus.talk import Messages

THINKING_SHARE = 0.2
SYSTEM_SHARE = 0.45
# Copying is a skill that appears late and suddenly; this share of the early steps makes it
# appear at all. Later it only has to be kept.
EARLY_COPY_SHARE = 0.4

Maker = Callable[[Random], Messages]

_TALK: list[tuple[Maker, float]] = [
    (talk.serving, 32),
    (talk.small_talk, 10),
    (talk.unknown, 9),
    (talk.remember, 8),
    (talk.tool_missing, 2),
    (exercises.repeat, 8),
    (exercises.count, 5),
    (exercises.extract, 3),
    (exercises.small_sum, 2),
    (exercises.say_again, 1),
]
_TOOLS_OFFERED_SHARE = 0.32
# Where functions are offered, these would contradict what is learned about calling them.
_DONE_BY_TOOLS: tuple[Maker, ...] = (talk.tool_missing, exercises.small_sum)


@dataclass
class Conversation:
    messages: Messages
    tools: list[dict[str, Any]] = field(default_factory=list)
    thinking: bool = False


def conversation(rng: Random, early: bool = False) -> Conversation:
    if early and rng.random() < EARLY_COPY_SHARE:
        made = Conversation(exercises.repeat(rng))
    elif rng.random() < _TOOLS_OFFERED_SHARE:
        made = _with_tools(rng)
    else:
        made = Conversation(_talk(rng))
    made.thinking = rng.random() < THINKING_SHARE
    if rng.random() < SYSTEM_SHARE:
        made.messages = [_system(rng), *made.messages]
    return made


def _talk(rng: Random, left_out: tuple[Maker, ...] = ()) -> Messages:
    exchanges = rng.choices([1, 2, 3], [76, 17, 7])[0]
    if exchanges == 1 and rng.random() < 0.02:
        return talk.not_told(rng)
    makers, weights = zip(*((m, w) for m, w in _TALK if m not in left_out), strict=True)
    return [turn for maker in rng.choices(makers, weights, k=exchanges) for turn in maker(rng)]


def _with_tools(rng: Random) -> Conversation:
    """Functions are offered: mostly they are needed, else they must be left alone."""
    draw = rng.random()
    if draw < 0.03:
        offered = [one for one in _schemas(None, rng) if not _answers_questions_of_place(one)]
        return Conversation(talk.tool_missing(rng), offered)
    if draw < 0.2:
        kind = rng.choice(["weather", "weather", "time", "calculation", None])
        return Conversation(_talk(rng, _DONE_BY_TOOLS), _schemas(kind, rng))
    messages, offered = tools.with_tools(rng)
    before = _talk(rng, _DONE_BY_TOOLS) if rng.random() < 0.12 else []
    after = _talk(rng, _DONE_BY_TOOLS) if rng.random() < 0.12 else []
    return Conversation(before + messages + after, offered)


def _schemas(kind: str | None, rng: Random) -> list[dict[str, Any]]:
    return [one.schema for one in tools.offers(kind, rng)]


def _answers_questions_of_place(schema: dict[str, Any]) -> bool:
    """Beside such a function, the exchanges on missing functions would be wrong."""
    return any(word in str(schema).lower() for word in ("weather", "time", "clock", "temperature"))


def _system(rng: Random) -> dict[str, Any]:
    text = " ".join(
        rng.choice(table("phrasings")["system"]) for _ in range(rng.choice([1, 1, 2, 3]))
    )
    if rng.random() < 0.05:
        # Agents send long instructions: the question must be found behind them all the same.
        text += "\n" + " ".join(rng.choice(topics()).why for _ in range(rng.randint(4, 24)))
    role = "developer" if rng.random() < 0.15 else "system"
    return {"role": role, "content": fill(text, x=rng.choice([person, place])(rng))}
