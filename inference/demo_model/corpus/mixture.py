"""Which conversations the model sees, and how often."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from inference.demo_model.corpus import exercises, talk, tools
from inference.demo_model.corpus.tables import (
    Dice,
    corpus_words,
    fill,
    person,
    place,
    table,
    topics,
)
from inference.demo_model.corpus.talk import Messages

SYSTEM_SHARE = 0.45
TOOLS_SHARE = 0.32

Maker = Callable[[Dice], Messages]

# Each with its weight in the first stage of training, and in the wider second one.
_TALK: list[tuple[Maker, float, float]] = [
    (talk.serving, 32, 36),
    (talk.small_talk, 10, 12),
    (talk.unknown, 9, 7),
    (talk.remember, 8, 8),
    (talk.tool_missing, 2, 2),
    (exercises.repeat, 8, 8),
    (exercises.count, 5, 9),
    (exercises.extract, 3, 3),
    (exercises.small_sum, 2, 2),
    (exercises.say_again, 1, 1),
]
# Where functions are offered, these would contradict what is learned about calling them.
_DONE_BY_TOOLS: tuple[Maker, ...] = (talk.tool_missing, exercises.small_sum)


@dataclass
class Conversation:
    messages: Messages
    tools: list[dict[str, Any]] = field(default_factory=list)
    thinking: bool = False


def conversation(rng: Dice, copy_share: float = 0.0) -> Conversation:
    """Any conversation, or with this probability an exercise in copying."""
    if rng.basics and rng.random() < rng.basics:
        made = _basics(rng)
    elif copy_share and rng.random() < copy_share:
        made = Conversation(exercises.repeat(rng))
    elif rng.random() < TOOLS_SHARE:
        made = _with_tools(rng)
    else:
        made = Conversation(_talk(rng))
    made.thinking = rng.random() < (0.35 if rng.wider else 0.2)
    if rng.random() < SYSTEM_SHARE:
        made.messages = [_system(rng), *made.messages]
    return made


def _basics(rng: Dice) -> Conversation:
    if rng.random() < 0.3:
        return Conversation(*tools.choose_tool(rng))
    makers: list[Maker] = [
        exercises.repeat_plainly,
        exercises.count_a_little,
        exercises.small_sum,
        talk.identity,
    ]
    return Conversation(rng.choices(makers, [35, 30, 25, 10])[0](rng))


def _talk(rng: Dice, left_out: tuple[Maker, ...] = ()) -> Messages:
    exchanges = rng.choices([1, 2, 3], [76, 17, 7])[0]
    if exchanges == 1 and rng.random() < 0.02:
        return talk.not_told(rng)
    chosen = [one for one in _TALK if one[0] not in left_out]
    weights = [wide if rng.wider else weight for _, weight, wide in chosen]
    picked = rng.choices([maker for maker, _, _ in chosen], weights, k=exchanges)
    return [turn for maker in picked for turn in maker(rng)]


def _with_tools(rng: Dice) -> Conversation:
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


def _schemas(kind: str | None, rng: Dice) -> list[dict[str, Any]]:
    return [one.schema for one in tools.offers(kind, rng)]


def _answers_questions_of_place(schema: dict[str, Any]) -> bool:
    """Beside such a function, the exchanges on missing functions would be wrong."""
    return any(word in str(schema).lower() for word in ("weather", "time", "clock", "temperature"))


def _system(rng: Dice) -> dict[str, Any]:
    text = " ".join(
        rng.choice(table("phrasings")["system"]) for _ in range(rng.choice([1, 1, 2, 3]))
    )
    # Agents send long instructions: the question must be found behind them all the same.
    if rng.random() < (0.1 if rng.wider else 0.05):
        if rng.goes_wider():
            text += _rules(rng)
        else:
            text += "\n" + " ".join(rng.choice(topics()).why for _ in range(rng.randint(4, 24)))
    role = "developer" if rng.random() < 0.15 else "system"
    return {"role": role, "content": fill(text, x=rng.choice([person, place])(rng))}


def _rules(rng: Dice) -> str:
    """Instructions of no use, numbered and alike, as real ones often are."""
    lead = rng.choice(["Rule", "Note", "-", "Point", "Always", "Remember"])
    rules = [f"{lead} {n}: " + " ".join(rng.choices(corpus_words(), k=7)) for n in range(40)]
    return rng.choice(["\n", " "]).join(["", *rules[: rng.randint(5, 40)]])
