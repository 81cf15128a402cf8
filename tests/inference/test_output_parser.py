"""Recorded model texts give the same reasoning, answer and calls however they are cut."""

import itertools
import json
import random
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest

from inference.text.output_parser import OutputParser, Piece
from inference.text.parameters import properties_of, typed
from inference.text.syntax import CALLS, REASONING
from tests.inference.recorded_outputs import RECORDED, TOOLS, Recorded

FOLLOWING = {
    "reasoning": {"reasoning", "text", "call"},
    "text": {"text", "call"},
    "call": {"text", "call", "arguments"},
    "arguments": {"text", "call", "arguments"},
}
JSON_FAMILIES = {
    "deepseek_v3", "deepseek_v31", "harmony", "hermes", "llama3_json", "mistral",
}  # fmt: skip
UNUSUAL_KEYS = {"hermes-arguments-first", "hermes-extra-keys"}  # may be read as a whole
LONG = 30  # characters of arguments that should not come in one piece

every_text = pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.id)


class Parsed(NamedTuple):
    reasoning: str
    content: str
    calls: list[tuple[str, str]]
    num_complete_calls: int


def pieces_of(recorded: Recorded, chunks: Iterable[str]) -> tuple[list[Piece], int]:
    parser = OutputParser(
        reasoning=recorded.reasoning and REASONING[recorded.reasoning],
        calls=recorded.calls and CALLS[recorded.calls],
        prompt=recorded.prompt,
        tools=TOOLS,
    )
    pieces = [piece for chunk in chunks for piece in parser.add(chunk)]
    pieces += parser.flush()
    return pieces, parser.num_complete_calls


def parse(recorded: Recorded, chunks: Iterable[str]) -> Parsed:
    pieces, num_complete_calls = pieces_of(recorded, chunks)
    assert all(piece.text for piece in pieces), pieces
    for before, after in itertools.pairwise(pieces):
        assert after.kind in FOLLOWING[before.kind], (before, after)
    return Parsed(
        "".join(piece.text for piece in pieces if piece.kind == "reasoning"),
        "".join(piece.text for piece in pieces if piece.kind == "text"),
        [(name, "".join(arguments)) for name, arguments in calls_of(pieces)],
        num_complete_calls,
    )


def calls_of(pieces: list[Piece]) -> list[tuple[str, list[str]]]:
    """The name of each call, and the pieces of its arguments."""
    calls: list[tuple[str, list[str]]] = []
    for piece in pieces:
        if piece.kind == "call":
            calls.append((piece.text, []))
        elif piece.kind == "arguments":
            calls[-1][1].append(piece.text)
    return calls


def loaded(arguments: str) -> Any:
    """The arguments as an object, or None where they stop too early."""
    try:
        return json.loads(arguments)
    except json.JSONDecodeError:
        return None


def cut(text: str, *positions: int) -> list[str]:
    return [text[a:b] for a, b in itertools.pairwise([0, *positions, len(text)])]


@every_text
def test_a_whole_text_gives_reasoning_content_and_calls(recorded):
    parsed = parse(recorded, [recorded.text])

    assert parsed.reasoning == recorded.expected_reasoning
    assert parsed.content == recorded.expected_content
    calls = [(name, loaded(arguments)) for name, arguments in parsed.calls]
    assert calls == recorded.expected_calls
    num_complete = sum(arguments is not None for _, arguments in recorded.expected_calls)
    assert parsed.num_complete_calls == num_complete


@every_text
def test_every_cut_in_two_gives_the_same(recorded):
    expected = parse(recorded, [recorded.text])
    for position in range(len(recorded.text) + 1):
        chunks = cut(recorded.text, position)
        assert parse(recorded, chunks) == expected, chunks


@every_text
def test_single_characters_give_the_same(recorded):
    assert parse(recorded, recorded.text) == parse(recorded, [recorded.text])


@every_text
def test_random_cuts_give_the_same(recorded):
    expected = parse(recorded, [recorded.text])
    rng = random.Random(recorded.id)
    for _ in range(20):
        num_cuts = rng.randint(1, 12)
        chunks = cut(recorded.text, *sorted(rng.choices(range(len(recorded.text)), k=num_cuts)))
        assert parse(recorded, chunks) == expected, chunks


def with_long_arguments() -> list[Recorded]:
    """The texts with long JSON arguments that follow the function's name."""
    return [
        recorded
        for recorded in RECORDED
        if recorded.calls in JSON_FAMILIES
        and recorded.id not in UNUSUAL_KEYS
        and any(
            arguments and len(json.dumps(arguments)) > LONG
            for _, arguments in recorded.expected_calls
        )
    ]


@pytest.mark.parametrize("recorded", with_long_arguments(), ids=lambda recorded: recorded.id)
def test_arguments_come_while_they_are_written(recorded):
    pieces, _ = pieces_of(recorded, recorded.text)

    long = [parts for _, parts in calls_of(pieces) if len("".join(parts)) > LONG]
    assert long
    for parts in long:
        assert max(map(len, parts)) < len("".join(parts)) / 2, parts


def test_the_table_names_each_text_once_and_has_every_family():
    assert len({recorded.id for recorded in RECORDED}) == len(RECORDED)
    assert {recorded.calls for recorded in RECORDED} == {None, "qwen3_coder", *JSON_FAMILIES}
    assert {recorded.calls for recorded in with_long_arguments()} == JSON_FAMILIES
    for recorded in RECORDED:
        arguments = [arguments for _, arguments in recorded.expected_calls]
        assert recorded.complete == (None not in arguments)


ODD = [None, True, 5, "x", [], ["x"], [5], {}, {"a": 5}, [{"type": 5}], [{"$ref": 1}]]


@pytest.mark.parametrize("value", ODD, ids=str)
def test_a_schema_that_is_none_is_no_failure(value):
    """Tools that are not strict are never compiled, so nobody has looked into their schemas."""
    for key in ("$defs", "definitions", "properties", "type", "anyOf", "allOf", "enum", "$ref"):
        schema = {"type": "object", key: value}
        parameters = {"properties": {"a": schema, "b": {"$ref": "#/$defs/a"}}, "$defs": value}
        for part in properties_of({"parameters": parameters}).values():
            assert typed("one", part) == "one"
        assert isinstance(properties_of({"parameters": schema}), dict)
