"""Conversations in which functions are offered, called, and their results used."""

from dataclasses import dataclass
from typing import Any

from inference.demo_model.corpus.tables import (
    Dice,
    corpus_words,
    fill,
    invented_name,
    invented_word,
    place,
    table,
    vary,
    words,
)
from inference.demo_model.corpus.talk import Messages

_VERBS = [
    "open",
    "close",
    "start",
    "stop",
    "show",
    "delete",
    "create",
    "update",
    "send",
    "print",
    "book",
    "order",
]
_OBJECTS = [
    "ticket",
    "file",
    "note",
    "order",
    "lamp",
    "report",
    "task",
    "room",
    "song",
    "user",
    "job",
    "door",
]


@dataclass(frozen=True)
class Offer:
    """A function as one request offers it: its table entry under one of its many names."""

    entry: dict[str, Any]
    name: str
    parameter: str
    schema: dict[str, Any]


def offer(entry: dict[str, Any], rng: Dice) -> Offer:
    name = rng.choice(entry["names"])
    if rng.random() < 0.12:
        name = rng.choice(
            [f"{name}_{invented_word(rng)}", f"{invented_word(rng)}_{name}", f"{name}_v2"]
        )
    parameter = rng.choice(entry["parameters"])
    renamed = rng.goes_wider()
    if renamed:
        # No name to be known by heart: it must be read in the list of functions.
        name = "_".join(rng.choices(corpus_words(), k=rng.choice([1, 2, 2])))
        if rng.random() < 0.5:
            name = f"{rng.choice(['get', 'find', 'city', 'local', 'the'])}_{entry['kind']}_{name}"
        if rng.random() < 0.4:
            parameter = rng.choice(corpus_words())
    value = {"type": "string"}
    if rng.random() < 0.5:
        value["description"] = rng.choice(entry["parameter_descriptions"])
    properties: dict[str, Any] = {parameter: value}
    if entry["slot"] == "city" and rng.random() < 0.12:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    # Without a known name, only the description tells what the function does.
    bare = rng.random() >= 0.85 and not renamed
    description = "" if bare else rng.choice(entry["descriptions"])
    schema = _schema(name, description, properties, [parameter], rng)
    return Offer(entry, name, parameter, schema)


def _schema(
    name: str, description: str, properties: dict[str, Any], required: list[str], rng: Dice
) -> dict[str, Any]:
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required and rng.random() < 0.8:
        parameters["required"] = required
    if rng.random() < 0.2:
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    if description:
        function["description"] = description
    function["parameters"] = parameters
    if rng.random() < 0.12:
        function["strict"] = True
    return {"type": "function", "function": function}


def offers(kind: str | None, rng: Dice) -> list[Offer]:
    """One to three functions in any order; the wanted one among them, if a kind is given."""
    entries = table("tools")["tool"]
    others = [entry for entry in entries if entry["kind"] != kind]
    chosen = rng.sample(others, rng.choice([0, 0, 1, 1, 2] if kind else [1, 1, 2]))
    chosen += [entry for entry in entries if entry["kind"] == kind]
    rng.shuffle(chosen)
    return [offer(entry, rng) for entry in chosen]


def _values(slot: str, rng: Dice) -> dict[str, str]:
    """What fills the gaps of a question, of its result, and of the answer."""
    if slot == "city":
        hour = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
        return {
            "x": place(rng),
            "t": str(rng.randint(-12, 39)),
            "c": rng.choice(words("conditions")),
            "h": hour,
        }
    if slot == "expression":
        return _sum(rng)
    if slot == "symbol":
        symbol = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.randint(3, 4)))
        return {"x": rng.choice([symbol, invented_name(rng)]), "r": f"{rng.uniform(1, 900):.2f}"}
    found = " ".join(rng.choice(words("nouns")) for _ in range(rng.randint(2, 5)))
    searched = rng.choice([invented_word, invented_name, lambda r: r.choice(words("nouns"))])
    return {"x": " ".join(searched(rng) for _ in range(rng.randint(1, 3))), "r": found}


def _sum(rng: Dice) -> dict[str, str]:
    numbers = [rng.randint(1, 10 ** rng.randint(1, 4)) for _ in range(rng.choice([2, 2, 2, 3]))]
    sign = rng.choice(["+", "-", "*", "*", "/"])
    glue = sign if rng.random() < 0.2 else f" {sign} "
    result = rng.randint(-999, 99999) if rng.random() < 0.8 else round(rng.uniform(0, 99), 2)
    return {"x": glue.join(str(number) for number in numbers), "r": str(result)}


def _call(name: str, arguments: dict[str, str]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _round(called: Offer, questions: list[str], rng: Dice) -> Messages:
    """Question, call, result, answer."""
    values = _values(called.entry["slot"], rng)
    result, answer = rng.choice(called.entry["results"])
    thought = fill(called.entry["thought"], name=called.name, **values)
    return [
        {"role": "user", "content": fill(vary(rng.choice(questions), rng), **values)},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": thought,
            "tool_calls": [_call(called.name, {called.parameter: values["x"]})],
        },
        {"role": "tool", "content": fill(result, **values)},
        {
            "role": "assistant",
            "content": fill(answer, **values),
            "reasoning_content": "I have the result, so I answer.",
        },
    ]


def use_tool(rng: Dice) -> tuple[Messages, list[dict[str, Any]]]:
    kind = rng.choices(["weather", "time", "calculation", "search", "price"], [40, 20, 22, 10, 6])[
        0
    ]
    offered = offers(kind, rng)
    called = next(one for one in offered if one.entry["kind"] == kind)
    return _use(called, offered, rng)


def choose_tool(rng: Dice) -> tuple[Messages, list[dict[str, Any]]]:
    """One of at least two functions, mostly beside one with the same kind of argument."""
    kind, other = rng.sample(["weather", "time"], 2)
    if rng.random() < 0.3:
        kind = "calculation"
    offered = offers(kind, rng)
    if not any(one.entry["kind"] == other for one in offered):
        entry = next(entry for entry in table("tools")["tool"] if entry["kind"] == other)
        offered.insert(rng.randint(0, len(offered)), offer(entry, rng))
    called = next(one for one in offered if one.entry["kind"] == kind)
    return _use(called, offered, rng)


def _use(called: Offer, offered: list[Offer], rng: Dice) -> tuple[Messages, list[dict[str, Any]]]:
    messages = _round(called, called.entry["questions"], rng)
    if rng.random() < 0.15:
        messages += _round(called, called.entry["follow_ups"], rng)
    return messages, [one.schema for one in offered]


def use_two_at_once(rng: Dice) -> tuple[Messages, list[dict[str, Any]]]:
    """The weather in two cities: two calls in one turn, two results, one sentence."""
    offered = offers("weather", rng)
    called = next(one for one in offered if one.entry["kind"] == "weather")
    first, second = _values("city", rng), _values("city", rng)
    question = rng.choice(
        [
            "What is the weather in $x and $y?",
            "Weather in $x and $y?",
            "How is the weather in $x and in $y?",
            "Compare the weather in $x and $y.",
            "Tell me the weather in $x and $y.",
        ]
    )
    calls = [_call(called.name, {called.parameter: values["x"]}) for values in (first, second)]
    result = rng.choice(
        ['{"temperature": $t, "condition": "$c"}', "$t degrees and $c", "$c, $t degrees"]
    )
    answer = "It is $t degrees and $c in $x"
    thought = f"I need the weather in two cities, so I call {called.name} twice."
    messages: Messages = [
        {"role": "user", "content": fill(vary(question, rng), x=first["x"], y=second["x"])},
        {"role": "assistant", "content": None, "reasoning_content": thought, "tool_calls": calls},
        {"role": "tool", "content": fill(result, **first)},
        {"role": "tool", "content": fill(result, **second)},
        {
            "role": "assistant",
            "reasoning_content": "I have both results, so I answer.",
            "content": f"{fill(answer, **first)}, and {fill(answer[6:], **second)}.",
        },
    ]
    return messages, [one.schema for one in offered]


def call_by_name(rng: Dice) -> tuple[Messages, list[dict[str, Any]]]:
    """A function that the model has never seen, called because the user says so."""
    name = f"{rng.choice(_VERBS)}_{rng.choice([rng.choice(_OBJECTS), invented_word(rng)])}"
    parameters = rng.sample(
        ["name", "id", "text", "value", "path", "title", invented_word(rng)], rng.choice([1, 1, 2])
    )
    arguments = {parameter: rng.choice([place, invented_word])(rng) for parameter in parameters}
    shown = " and ".join(f"{key} {value}" for key, value in arguments.items())
    question = rng.choice(
        [
            "Call $name with $x.",
            "Use $name with $x.",
            "Please call $name with $x.",
            "Run $name with $x.",
        ]
    )
    schema = _schema(name, "", {key: {"type": "string"} for key in parameters}, parameters, rng)
    tools = [schema, *(one.schema for one in offers(None, rng)[: rng.choice([0, 1])])]
    rng.shuffle(tools)
    result = rng.choice(["done", "ok", "saved", invented_word(rng)])
    messages: Messages = [
        {"role": "user", "content": fill(question, name=name, x=shown)},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [_call(name, arguments)],
            "reasoning_content": f"The user wants me to call {name}.",
        },
        {"role": "tool", "content": result},
        {
            "role": "assistant",
            "content": f"The result is {result}.",
            "reasoning_content": "I have the result, so I answer.",
        },
    ]
    return messages, tools


def time_here(rng: Dice) -> tuple[Messages, list[dict[str, Any]]]:
    """A function without parameters."""
    name = rng.choice(["get_time", "get_current_time", "now", "clock", "current_time"])
    schema = _schema(
        name, rng.choice(["Get the current time.", "The time now.", "Clock"]), {}, [], rng
    )
    result, hour = rng.choice(['{"time": "$h"}', "$h", '{"now": "$h"}']), _values("city", rng)["h"]
    question = rng.choice(
        [
            "What time is it?",
            "What's the time?",
            "Tell me the time.",
            "What time is it now?",
            "Do you have the time?",
            "How late is it?",
            "Current time?",
        ]
    )
    messages: Messages = [
        {"role": "user", "content": vary(question, rng)},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": f"I need the time, so I call {name}.",
            "tool_calls": [_call(name, {})],
        },
        {"role": "tool", "content": fill(result, h=hour)},
        {
            "role": "assistant",
            "content": f"It is {hour}.",
            "reasoning_content": "I have the result, so I answer.",
        },
    ]
    return messages, [schema]


def with_tools(rng: Dice) -> tuple[Messages, list[dict[str, Any]]]:
    makers = [use_tool, use_two_at_once, call_by_name, time_here]
    return rng.choices(makers, [76, 8, 10, 6])[0](rng)
