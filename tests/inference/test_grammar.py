"""Whatever is drawn from a grammar's masks fits the grammar, and is read back as what it says."""

import ast
import json
import random
import re
import time
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer

from inference.demo_model import DEMO_MODEL_PATH
from inference.engine.core import EngineCore
from inference.engine.scheduler import EngineLimits
from inference.errors import ConstraintFailed, InvalidGrammar
from inference.request import Delta, FinishReason, ModelInfo, Request, SamplingParams
from inference.text import grammar
from inference.text.grammar import AnswerGrammar, Compiler, GrammarState
from inference.text.output_parser import OutputParser
from inference.text.syntax import CALLS, REASONING
from inference.text.thinking import Thought
from tests.helpers import byte_tokenizer
from tests.inference.memory_runner import MemoryRunner, check_blocks

torch.set_num_threads(1)

MARKERS = [
    "<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>", "[TOOL_CALLS]",
    "[ARGS]", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<|channel|>", "<|message|>", "<|start|>", "<|end|>",
    "<|constrain|>",
]  # fmt: skip


@dataclass(frozen=True)
class Words:
    """A tokenizer with its compiler, and what random answers have to know of it."""

    tokenizer: Any
    size: int
    eos: frozenset[int]
    compiler: Compiler = field(init=False)
    endings: list[NDArray[np.int64]] = field(init=False)  # tokens that lead to an end, best first

    def __post_init__(self) -> None:
        texts = [self.tokenizer.decode([i]) for i in range(len(self.tokenizer))]
        groups = (['"', "}", "]", '"}', *MARKERS], list("@.:-/,)\n<"), list("0a1+=>"))
        endings = [np.array(sorted(self.eos))]
        endings += [np.array([i for i, t in enumerate(texts) if t in group]) for group in groups]
        object.__setattr__(self, "endings", endings)
        object.__setattr__(self, "compiler", Compiler(self.tokenizer, self.size, self.eos))

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode([i for i in token_ids if i not in self.eos])


@cache
def words_of(name: str) -> Words:
    """demo: the model's own; bytes: all markers are plain text; marked: all are special tokens."""
    if name == "demo":
        tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH)
        return Words(tokenizer, len(tokenizer), frozenset({0, 2}))
    tokenizer = byte_tokenizer()
    if name == "marked":
        tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    return Words(tokenizer, len(tokenizer), frozenset({tokenizer.eos_token_id}))


@pytest.fixture(params=["demo", "bytes", "marked"])
def words(request) -> Words:
    return words_of(request.param)


def allowed(state: GrammarState, size: int) -> NDArray[np.int64]:
    """The ids that may come next, as the sampler reads the mask."""
    bitmask = np.full(-(-size // 32), -1, dtype=np.int32)
    state.fill(bitmask)
    bits = np.unpackbits(bitmask.view(np.uint8), count=size, bitorder="little")
    return bits.nonzero()[0]


def walk(
    constraint: AnswerGrammar, words: Words, seed: Any, patience: int = 40, limit: int = 600
) -> list[int]:
    """Random allowed tokens up to the end; after some `patience` those that lead there."""
    rng, state = random.Random(seed), constraint.begin()
    token_ids: list[int] = []
    while len(token_ids) < limit:
        choices = allowed(state, words.size)
        assert len(choices), words.decode(token_ids)
        if len(token_ids) > patience:
            groups = (np.intersect1d(choices, ending) for ending in words.endings)
            choices = next((group for group in groups if len(group)), choices)
        token_ids.append(int(rng.choice(choices)))
        if state.advance(token_ids[-1]) or token_ids[-1] in words.eos:
            return token_ids
    raise AssertionError(f"it goes on and on: {words.decode(token_ids)}")


def random_text(constraint: AnswerGrammar, words: Words, seed: Any, **kwargs) -> str:
    return words.decode(walk(constraint, words, seed, **kwargs))


def follow(constraint: AnswerGrammar, words: Words, text: str) -> tuple[str, bool]:
    """How much of the text is allowed, token by token, and whether the answer may end there."""
    state, token_ids = constraint.begin(), words.encode(text)
    for i, token_id in enumerate(token_ids):
        if token_id not in allowed(state, words.size):
            return words.decode(token_ids[:i]), False
        if state.advance(token_id):
            return words.decode(token_ids[: i + 1]), True
    return text, bool(words.eos & set(allowed(state, words.size).tolist()))


def takes(constraint: AnswerGrammar, words: Words, text: str) -> bool:
    """Whether the text may be the whole answer."""
    return follow(constraint, words, text) == (text, True)


# Parts


def obj(properties: dict, **more) -> dict:
    required = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties, **required, **more}


DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
SHORT = {"type": "string", "maxLength": 6}
BOOL = {"type": "boolean"}
SCHEMAS = {
    "string": SHORT,
    "integer": {"type": "integer", "minimum": -120, "maximum": 1003},
    "number": {"type": "number", "minimum": 0, "maximum": 1},
    "enum": {"enum": ["red", 1, None, True, 2.5, {"a": [1]}, 'q"\\\nü🎉']},
    "object": obj({"a": DIGIT, "b c": SHORT, "ü": {"anyOf": [BOOL, {"type": "null"}]}}),
    "optional": obj({"a": BOOL, "b": BOOL}) | {"required": ["b"]},
    "more properties": {"type": "object", "additionalProperties": DIGIT, "maxProperties": 2},
    "array": {"type": "array", "items": obj({"a": BOOL}), "minItems": 1, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [DIGIT, BOOL], "items": False, "minItems": 2},
    "pattern": {"type": "string", "pattern": r"^[A-Z]{2}-\d+$", "maxLength": 9},
    "recursion": obj({"c": {"anyOf": [BOOL, {"$ref": "#"}]}}),
    "oneOf": {"oneOf": [obj({"k": {"const": "a"}}), obj({"k": {"const": "b"}, "x": DIGIT})]},
    "anything": {},
    **{
        f"format {name}": {"type": "string", "format": name}
        for name in ("date", "ipv4", "ipv6", "uuid")
    },
    "format email": {"type": "string", "format": "email", "maxLength": 30},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_answers_fit_their_schema(words, name):
    constraint = words.compiler.compile([grammar.json_part(SCHEMAS[name])])
    validator = Draft202012Validator(
        SCHEMAS[name], format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    for seed in range(5):
        text = random_text(constraint, words, seed)
        validator.validate(json.loads(text))
        assert "\n" not in text
        assert not re.search(r"[:,]  ", re.sub(r'"(\\.|[^"\\])*"', "", text))


@pytest.mark.xfail(strict=True, reason="a bound beyond 64 bits becomes another one")
def test_a_bound_is_kept_or_refused_however_large():
    words, bound = words_of("demo"), 10**20
    schema = {"type": "integer", "minimum": bound, "maximum": bound + 5}
    try:
        constraint = words.compiler.compile([grammar.json_part(schema)])
    except InvalidGrammar:
        return
    assert json.loads(random_text(constraint, words, 0)) >= bound


REGEXES = ["[ab]{3}x?", "(?s:.){4}", "yes|no", r"\d{4}-\d{2}", "[à-ý]{2}ü🎉", "a*b", r"\\\n\"/"]


@pytest.mark.parametrize("pattern", REGEXES)
def test_random_answers_match_their_regex(words, pattern):
    constraint = words.compiler.compile([grammar.regex_part(pattern)])
    for seed in range(5):
        text = random_text(constraint, words, seed, patience=9)
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize(
    "options", [["yes", "no"], ["a", "ab", "abc"], ['q"\\', "x\ny", " ", "/", "🎉"]]
)
def test_random_answers_are_one_of_the_choices(words, options):
    constraint = words.compiler.compile([grammar.choice_part(options)])
    texts = {random_text(constraint, words, seed) for seed in range(25)}

    assert texts <= set(options)
    assert len(texts) > 1


ONLY_SPECIAL = pytest.mark.xfail(strict=True, reason="only the special token is allowed")


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("bytes", "<think>"),
        ("demo", "[ARGS]"),
        pytest.param("demo", "<think>", marks=ONLY_SPECIAL),
        pytest.param("marked", "[ARGS]", marks=ONLY_SPECIAL),
        pytest.param("demo", "<|im_end|>", marks=ONLY_SPECIAL),
        pytest.param("bytes", "<|im_end|>", marks=ONLY_SPECIAL),
    ],
)
def test_text_that_looks_like_a_special_token_can_be_forced(name, mark):
    words, text = words_of(name), f"see {mark} x"
    constraint = words.compiler.compile([grammar.json_part({"const": text})])
    assert json.loads(words.tokenizer.decode(walk(constraint, words, 0))) == text


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.xfail(strict=True, reason="a trigger that is a token is no text"),
        )
        for name in ("demo", "marked")
    ],
)
def test_a_token_of_its_own_can_be_a_trigger(name):
    words = words_of(name)
    tags = [{"begin": "<tool_call>", "schema": BOOL, "end": "</tool_call>"}]
    constraint = words.compiler.compile([grammar.tags_part(tags, ["<tool_call>"])])

    assert takes(constraint, words, "So: <tool_call>true</tool_call>")
    assert not takes(constraint, words, "So: <tool_call>5</tool_call>")


SUMS = [
    'start: sum\nsum: term ("+" term)*\nterm: /[1-9]/ | "(" sum ")"',
    'root ::= term ("+" term)*\nterm ::= [1-9] | "(" root ")"',
]


@pytest.mark.parametrize("text", SUMS, ids=["lark", "gbnf"])
def test_random_answers_follow_a_grammar(words, text):
    constraint = words.compiler.compile([grammar.lark_part(text)])
    for seed in range(5):
        ast.parse(random_text(constraint, words, seed, patience=12), mode="eval")
    assert takes(constraint, words, "1+(2+3)+((4))")
    assert follow(constraint, words, "1+(2+3")[1] is False
    assert follow(constraint, words, "1+)")[0] == "1+"


def test_a_tag_is_forced_where_its_trigger_comes_and_nowhere_else(words):
    tags = [
        {"begin": "<n>", "schema": DIGIT, "end": "</n>"},
        {"begin": "<s a>", "schema": BOOL, "end": "</s>"},
    ]
    constraint = words.compiler.compile([grammar.tags_part(tags, ["<n", "<s"])])

    for text in ("Just text, with < and <b>.", "x<n>7</n>y<s a>true</s>", "<n>7</n><n>8</n> z"):
        assert takes(constraint, words, text), text
    for text, end in [("x<n>77", "x<n>7"), ("<nav>", "<n"), ("<s>", "<s"), ("<n>7</s>", "<n>7</")]:
        assert follow(constraint, words, text) == (end, False)


def test_an_answer_ends_when_nothing_more_can_come():
    words = words_of("bytes")
    for part in (
        grammar.json_part(obj({"a": DIGIT})),
        grammar.regex_part("[ab]{3}"),
        grammar.choice_part(["yes", "no"]),
        grammar.lark_part('start: "x" /[0-9]/'),
    ):
        token_ids = walk(words.compiler.compile([part]), words, 0)
        assert not words.eos & set(token_ids)
    optional = words.compiler.compile([grammar.regex_part("ab?")])

    assert follow(optional, words, "a") == ("a", True)
    assert follow(optional, words, "ab") == ("ab", True)


def test_states_of_one_grammar_know_nothing_of_each_other():
    words = words_of("bytes")
    constraint = words.compiler.compile([grammar.choice_part(["abc", "xyz"])])
    first, second = constraint.begin(), constraint.begin()
    [a, x] = words.encode("ax")
    first.advance(a)
    second.advance(x)

    assert words.decode(allowed(first, words.size).tolist()) == "b"
    assert words.decode(allowed(second, words.size).tolist()) == "y"
    assert words.decode(allowed(constraint.begin(), words.size).tolist()) == "ax"


def test_a_token_that_is_not_allowed_fails_its_state():
    words = words_of("bytes")
    state = words.compiler.compile([grammar.choice_part(["yes", "no"])]).begin()
    with pytest.raises(ConstraintFailed):
        state.advance(words.encode("x")[0])


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a":1}', '{ "a": 1}', '{"a":  1}', '{\n"a": 1}'])
def test_json_has_one_space_or_none(words, text):
    constraint = words.compiler.compile([grammar.json_part(obj({"a": DIGIT}))])
    assert takes(constraint, words, text) == (text in ('{"a": 1}', '{"a":1}'))


def test_white_space_of_json_can_be_ordered():
    words = words_of("demo")
    compact = grammar.json_part(obj({"a": DIGIT}), item_separator=",", key_separator=":")
    constraint = words.compiler.compile([compact])

    assert takes(constraint, words, '{"a":1}')
    assert not takes(constraint, words, '{"a": 1}')


TAG = {"begin": "<a>", "schema": {}, "end": ""}
WRONG: dict[str, Any] = {
    "schema false": lambda: grammar.json_part(False),
    "unknown type": lambda: grammar.json_part({"type": "strin"}),
    "unknown keyword": lambda: grammar.json_part({"not": {"type": "string"}}),
    "$ref to nothing": lambda: grammar.json_part({"$ref": "#/$defs/x"}),
    "$ref to itself": lambda: grammar.json_part({"$ref": "#"}),
    "nothing fits": lambda: grammar.json_part({"type": "integer", "minimum": 2, "maximum": 1}),
    "look-ahead in a pattern": lambda: grammar.json_part({"type": "string", "pattern": "(?=a)a"}),
    "half a regex": lambda: grammar.regex_part("("),
    "look-ahead": lambda: grammar.regex_part("(?!a)b"),
    "back reference": lambda: grammar.regex_part(r"(a)\1"),
    "regex that nothing matches": lambda: grammar.regex_part(r"[^\s\S]"),
    "half a grammar": lambda: grammar.lark_part("start: ("),
    "grammar without start": lambda: grammar.lark_part('other: "a"'),
    "unknown rule": lambda: grammar.lark_part("start: other"),
    "grammar without an end": lambda: grammar.lark_part("start: start"),
    "deep grammar": lambda: grammar.lark_part(f"start: {'(' * 5000}{')' * 5000}"),
    "half a gbnf": lambda: grammar.lark_part("root ::= ("),
    "gbnf without root": lambda: grammar.lark_part('other ::= "a"'),
    "deep gbnf": lambda: grammar.lark_part(f"root ::= {'(' * 5000}{')' * 5000}"),
    "prose": lambda: grammar.lark_part("please answer yes or no"),
    "empty grammar": lambda: grammar.lark_part(""),
    "tag without trigger": lambda: grammar.tags_part([TAG], []),
    "tag of another trigger": lambda: grammar.tags_part([TAG], ["<b"]),
    "tag with an empty trigger": lambda: grammar.tags_part([TAG], [""]),
    "tag of an unknown type": lambda: grammar.tags_part(
        [TAG | {"schema": {"type": "strin"}}], ["<a"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("part", WRONG.values(), ids=WRONG)
def test_a_wrong_grammar_is_refused_in_a_line(words, part):
    with pytest.raises(InvalidGrammar) as caught:
        words.compiler.compile([part()])
    assert 0 < len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_is_not_fast_follows_no_grammar():
    with pytest.raises(InvalidGrammar):
        Compiler([], 5, frozenset({0}))


@pytest.mark.parametrize("extra", [-150, -1, 1, 31, 500])
def test_a_model_has_more_or_fewer_tokens_than_its_tokenizer(extra):
    words = words_of("demo")
    size = words.size + extra
    compiler = Compiler(words.tokenizer, size, words.eos)
    constraint = compiler.compile([grammar.json_part(SCHEMAS["object"])])
    for seed in range(3):
        rng, state, token_ids = random.Random(seed), constraint.begin(), []
        while not token_ids or not state.advance(token_ids[-1]):
            choices = allowed(state, size)
            assert len(choices) and choices.max() < min(size, words.size)
            token_ids.append(int(rng.choice(choices)))
        Draft202012Validator(SCHEMAS["object"]).validate(json.loads(words.decode(token_ids)))


def test_the_compiler_of_a_model_is_made_once():
    words = words_of("demo")
    info = ModelInfo(
        name="m",
        tokenizer=words.tokenizer,
        max_model_len=64,
        vocab_size=words.size,
        eos_token_ids=words.eos,
        generation_defaults={},
        fingerprint="fp",
        created=0,
    )
    assert grammar.compiler_of(info) is grammar.compiler_of(info)


# What a grammar may cost

RULES = range(200)
TANGLE = (
    "start: s\ns: s s | "
    + " | ".join(f"r{i}" for i in RULES)
    + "".join(f'\nr{i}: s "a" | "a"' for i in RULES)
)


def test_no_step_takes_long():
    words = words_of("bytes")
    try:
        state = words.compiler.compile([grammar.lark_part(TANGLE)]).begin()
    except InvalidGrammar:
        return
    for _ in range(12):
        started = time.thread_time()
        try:
            allowed(state, words.size)
            state.advance(words.encode("a")[0])
        except ConstraintFailed:
            return
        assert time.thread_time() - started < 0.25


# Calls


def tool(name: str, parameters: dict | None = None) -> dict:
    function = {"name": name} | ({} if parameters is None else {"parameters": parameters})
    return {"type": "function", "function": function}


def only(value: Any, kind: str) -> dict:
    return {"type": kind, "enum": [value]}


ARGUMENTS = {
    "city": 'Köln, "am" Rhein </a>',
    "days": 7,
    "ratio": 2.5,
    "on": True,
    "tags": ["a", 1],
    "deep": {"k": [None, "}"]},
}
KINDS = ["string", "integer", "number", "boolean", "array", "object"]
FIXED = {
    name: only(value, kind) for (name, value), kind in zip(ARGUMENTS.items(), KINDS, strict=True)
}
TOOLS = [
    tool("get_weather", obj({"city": {"enum": ["Rome", "Bonn"]}, "days": DIGIT, "on": BOOL})),
    tool("no-args", obj({})),
    tool("add_2", obj({"xs": {"type": "array", "items": DIGIT, "maxItems": 3}, "o": obj({})})),
]  # fmt: skip
every_family = pytest.mark.parametrize("family", CALLS)


def parsed(text: str, family: str, tools: list[dict]) -> tuple[list[tuple[str, str]], str]:
    """The calls that are read in a text, name and arguments, and the text beside them."""
    parser = OutputParser(reasoning=None, calls=CALLS[family], tools=tools)
    pieces = parser.add(text) + parser.flush()
    calls: list[list[str]] = []
    for kind, piece in pieces:
        if kind == "call":
            calls.append([piece, ""])
        elif kind == "arguments":
            calls[-1][1] += piece
    assert parser.num_complete_calls == len(calls)
    return [(n, a) for n, a in calls], "".join(p.text for p in pieces if p.kind == "text")


def call_text(family: str, *bodies: str) -> str:
    """The text of some calls whose beginnings, {name} and arguments, are written already."""
    syntax = CALLS[family]
    return syntax.first + syntax.between.join(body + syntax.end for body in bodies) + syntax.last


def begun(family: str, name: str) -> str:
    return CALLS[family].begin.replace("{name}", name)


def compiled_calls(words: Words, family: str, tools: list[dict], parallel: bool) -> AnswerGrammar:
    parts = words.compiler.calls(CALLS[family], tools, parallel=parallel)
    return words.compiler.compile(parts, is_text=False)


@every_family
def test_forced_calls_are_read_as_the_calls_that_they_are(words, family):
    for fixed, expected in ((FIXED, ARGUMENTS), ({}, {})):
        tools = [tool("get-it_2", obj(fixed))]
        constraint = compiled_calls(words, family, tools, parallel=True)
        for seed in range(2):
            text = random_text(constraint, words, seed, limit=5000)
            calls, rest = parsed(text, family, tools)
            assert calls and rest == ""
            assert all(
                (name, json.loads(arguments)) == ("get-it_2", expected) for name, arguments in calls
            )


@every_family
@pytest.mark.parametrize("parallel", [False, True])
def test_random_calls_fit_the_schemas_of_their_tools(words, family, parallel):
    constraint = compiled_calls(words, family, TOOLS, parallel)
    schemas = {t["function"]["name"]: t["function"]["parameters"] for t in TOOLS}
    num_calls = []
    for seed in range(4):
        text = random_text(constraint, words, seed, limit=5000)
        calls, rest = parsed(text, family, TOOLS)
        num_calls.append(len(calls))
        assert rest == ""
        for name, arguments in calls:
            Draft202012Validator(schemas[name]).validate(json.loads(arguments))
    assert min(num_calls) == 1
    assert parallel or max(num_calls) == 1


@every_family
def test_only_parallel_calls_are_several(words, family):
    tools = [tool("f", obj({}))]
    body = begun(family, "f") + ("" if CALLS[family].is_xml else "{}")
    one, two = call_text(family, body), call_text(family, body, body)
    parallel, single = (compiled_calls(words, family, tools, parallel=p) for p in (True, False))

    assert takes(parallel, words, one)
    assert takes(parallel, words, two)
    assert takes(single, words, one)
    assert follow(single, words, two) != (two, True)
    assert not takes(parallel, words, "")
    assert parsed(two, family, tools) == ([("f", "{}")] * 2, "")


@every_family
def test_a_tool_without_parameters_takes_any_object(words, family):
    constraint = compiled_calls(words, family, [tool("f")], parallel=False)
    calls, rest = parsed(random_text(constraint, words, 1), family, [tool("f")])

    assert [name for name, _ in calls] == ["f"]
    assert isinstance(json.loads(calls[0][1]), dict)
    assert rest == ""


@every_family
def test_free_text_is_free_until_a_call_begins(words, family):
    tools = [tool("get_f", obj({"a": DIGIT}))]
    parts = words.compiler.text_or_calls(CALLS[family], tools)
    constraint = words.compiler.compile(parts, is_text=False)
    arguments = "<parameter=a>\n7\n</parameter>\n" if CALLS[family].is_xml else '{"a": 7}'
    call = call_text(family, begun(family, "get_f") + arguments)
    wrong = call_text(family, begun(family, "get_f") + arguments.replace("7", "true"))
    other = call_text(family, begun(family, "put_f") + arguments)

    for text in ("", "Hello!", 'A {"b": [1]} <i>\n', call, f"Well: {call}", f"{call}{call}"):
        assert takes(constraint, words, text), text
    for text in (wrong, f"Well: {wrong}", f"{call}{wrong}", other, f"Well: {other}"):
        assert not takes(constraint, words, text), text
    assert not follow(constraint, words, call[:-1])[1]
    if not CALLS[family].bare:  # or else only what comes first can be a call
        assert parsed(f"Well: {call} So.", family, tools) == ([("get_f", '{"a": 7}')], "Well:So.")


FIVE = {"type": "string", "minLength": 5, "maxLength": 5}
TYPED: dict[str, dict] = {
    "integer": DIGIT,
    "number": {"type": "number", "minimum": 0, "maximum": 1},
    "boolean": BOOL,
    "null": {"type": "null"},
    "texts": {"type": "string", "enum": ["a b", "1", "true"]},
    "texts without type": {"enum": ["a b", "1", "true"]},
    "integers": {"type": "integer", "enum": [1, 2]},
    "array": {"type": "array", "items": SHORT, "maxItems": 2},
    "object": obj({"k": DIGIT}),
    "integer or null": {"anyOf": [DIGIT, {"type": "null"}]},
    "const": {"const": "red"},
    "integers without type": {"enum": [1, 2]},
    "mixed values": {"enum": ["x", 2, None]},
    "text or null": {"anyOf": [FIVE, {"type": "null"}]},
    "two types": FIVE | {"type": ["string", "null"]},
    "text or integer": {"anyOf": [FIVE, DIGIT]},
    "$ref to an integer": {"$ref": "#/$defs/n"},
    "$ref to an object": {"$ref": "#/$defs/o"},
    "$ref to texts": {"$ref": "#/$defs/e"},
    "allOf of a $ref": {"allOf": [{"$ref": "#/$defs/n"}]},
}  # fmt: skip
DEFS = {"n": DIGIT, "o": obj({"k": BOOL}), "e": {"type": "string", "enum": ["x", "y"]}}


@pytest.mark.parametrize("value", TYPED.values(), ids=TYPED)
def test_parameters_without_quotes_keep_their_types(value):
    words, schema = words_of("bytes"), obj({"a": value}, **{"$defs": DEFS})
    constraint = compiled_calls(words, "qwen3_coder", [tool("f", schema)], parallel=False)
    for seed in range(12):
        text = random_text(constraint, words, seed, patience=80)
        [(_, arguments)], rest = parsed(text, "qwen3_coder", [tool("f", schema)])
        assert rest == ""
        checker = Draft202012Validator.FORMAT_CHECKER
        Draft202012Validator(schema, format_checker=checker).validate(json.loads(arguments))


def parameter_text(value: str) -> str:
    body = f"{begun('qwen3_coder', 'f')}<parameter=a>\n{value}\n</parameter>\n"
    return call_text("qwen3_coder", body)


@pytest.mark.parametrize(
    "schema",
    [{"maxLength": 2}, {"minLength": 9}, {"pattern": "^x+$"}, {"format": "date"}],
    ids=str,
)
@pytest.mark.xfail(strict=True, reason="Qwen3-Coder: nothing is asked of a text but to be one")
def test_texts_without_quotes_are_held_to_their_schema(schema):
    words, tools = words_of("bytes"), [tool("f", obj({"a": {"type": "string", **schema}}))]
    constraint = compiled_calls(words, "qwen3_coder", tools, parallel=False)
    assert not takes(constraint, words, parameter_text("abc"))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        pytest.param(
            "a</parameter>b",
            "string",
            marks=pytest.mark.xfail(strict=True, reason="a text is read up to its own mark"),
        ),
        pytest.param(
            "1e999",
            "number",
            marks=pytest.mark.xfail(strict=True, reason="the number is read as Infinity"),
        ),
        ("a\n\nb ", "string"),
        ("", "string"),
        ("-7.5e3", "number"),
    ],
)
def test_what_may_be_written_as_a_parameter_can_be_read(text, kind):
    words, tools = words_of("bytes"), [tool("f", obj({"a": {"type": kind}}))]
    constraint = compiled_calls(words, "qwen3_coder", tools, parallel=False)
    if not takes(constraint, words, parameter_text(text)):
        return
    [(_, arguments)], rest = parsed(parameter_text(text), "qwen3_coder", tools)

    assert rest == ""
    value = json.loads(arguments, parse_constant=pytest.fail)["a"]
    assert value == (text if kind == "string" else float(text))


# Thoughts

ANSWER = grammar.json_part(obj({"a": BOOL}))
every_reasoning = pytest.mark.parametrize("name", REASONING)


def thinking(name: str, is_open: bool, **kwargs) -> Thought:
    return Thought(reasoning=REASONING[name], is_open=is_open, **kwargs)


@every_reasoning
def test_a_thought_may_come_first_or_must_end_first(words, name):
    reasoning, answer = REASONING[name], REASONING[name].answer + '{"a": true}'
    thought = f"I {{think}}, 東京.{reasoning.close}\n\n{answer}"
    absent, possible, unfinished = (
        words.compiler.compile([ANSWER], thought)
        for thought in (None, thinking(name, False), thinking(name, True))
    )

    assert takes(possible, words, answer)
    assert takes(possible, words, reasoning.open + thought)
    assert not takes(possible, words, thought)
    assert takes(unfinished, words, thought)
    assert takes(unfinished, words, thought.replace("\n\n", ""))
    assert not takes(unfinished, words, answer)
    assert takes(absent, words, '{"a": true}')
    assert not takes(absent, words, reasoning.open + thought)
    for text in (answer, thought):
        wrong = text.replace("true", "5")
        assert not takes(unfinished, words, wrong) and not takes(possible, words, wrong)


@every_reasoning
def test_calls_bring_what_stands_before_them(words, name):
    family = {"think": "hermes", "mistral": "mistral_v11", "harmony": "harmony"}[name]
    parts = words.compiler.calls(CALLS[family], [tool("f", obj({}))], parallel=True)
    constraint = words.compiler.compile(parts, thinking(name, True), is_text=False)
    text = call_text(family, begun(family, "f") + "{}")

    assert takes(constraint, words, f"Yes.{REASONING[name].close}{text}")
    assert not takes(constraint, words, text)


# Marks of many tokens are for tokenizers that have none of their own, and no model with a budget.
@pytest.mark.parametrize(
    ("words", "name"),
    [("demo", "think"), ("bytes", "think"), *(("marked", name) for name in REASONING)],
    indirect=["words"],
)
@pytest.mark.parametrize("parts", [[ANSWER], None], ids=["answer", "free"])
@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("budget", [0, 1, 2, 7])
def test_a_thought_ends_when_its_budget_is_used_up(words, name, budget, is_open, parts):
    thought = thinking(name, is_open, max_tokens=budget)
    state = words.compiler.compile(parts, thought).begin()
    for token_id in [] if is_open else words.encode(thought.reasoning.open):
        assert token_id in allowed(state, words.size)
        state.advance(token_id)
    letter, token_ids = words.encode("x")[0], []
    while len(choices := allowed(state, words.size)) > 1 and letter in choices:
        token_ids.append(letter)
        state.advance(letter)
        assert len(token_ids) <= budget
    text = ""
    while not text.endswith(thought.reasoning.close):
        [token_id] = allowed(state, words.size)
        assert not state.advance(token_id)
        text += words.tokenizer.decode([token_id])

    assert len(token_ids) == budget
    assert text.strip("\n") == thought.reasoning.close


@pytest.mark.parametrize("parts", [[ANSWER], None], ids=["answer", "free"])
@every_reasoning
def test_a_thought_within_its_budget_is_left_alone(words, name, parts):
    reasoning = REASONING[name]
    thought = thinking(name, False, max_tokens=40)
    state = words.compiler.compile(parts, thought).begin()
    long = "" if parts else "And so on and on, for longer than any thought might take." * 2
    for text in (reasoning.open, "Yes.", reasoning.close, "\n\n", reasoning.answer, long):
        for token_id in words.encode(text):
            assert token_id in allowed(state, words.size)
            state.advance(token_id)
    choices = allowed(state, words.size)
    assert len(choices) == words.size if parts is None else len(choices)


@pytest.mark.parametrize("budget", [0, 3])
def test_without_a_thought_the_budget_is_nothing(words, budget):
    state = words.compiler.compile(None, thinking("think", False, max_tokens=budget)).begin()
    for token_id in words.encode("Hello, this is no thought at all."):
        assert len(allowed(state, words.size)) == words.size
        state.advance(token_id)


@pytest.mark.parametrize(
    "budget",
    range(1, 7),
)
def test_a_thought_ends_amid_a_character_and_the_answer_fits(budget):
    words = words_of("bytes")
    state = words.compiler.compile([ANSWER], thinking("think", True, max_tokens=budget)).begin()
    token_ids, thought = [], words.encode("東京大学")
    while not token_ids or not state.advance(token_ids[-1]):
        choices = allowed(state, words.size)
        wanted = thought[0] if thought and thought[0] in choices else int(choices[0])
        token_ids.append(wanted)
        thought = thought[1:]
    assert words.decode(token_ids).partition("</think>\n\n")[2] in ('{"a": true}', '{"a":false}')


# In the engine


class RandomRunner(MemoryRunner):
    """Logits that follow at random from what the block tables point at."""

    def __init__(self, num_blocks: int, block_size: int, vocab_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self.vocab_size = vocab_size

    def logits(self, token_ids: list[int]) -> Tensor:
        return random_logits(token_ids, self.vocab_size)


def random_logits(token_ids: list, vocab_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(hash(tuple(token_ids)))
    return torch.randn(vocab_size, generator=generator) * 2


def random_core(words: Words, num_blocks: int = 400, size: int | None = None) -> EngineCore:
    limits = EngineLimits(
        max_model_len=1000,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        block_size=4,
        eos_token_ids=words.eos,
    )
    return EngineCore(RandomRunner(num_blocks, 4, size or words.size), limits)


def request(name: str, constraint: Any = None, max_tokens: int = 200, **params) -> Request:
    """One of its own prompt, drawn with its own seed unless another is asked for."""
    seed = sum(name.encode())
    return Request(
        request_id=name,
        prompt_token_ids=[seed % 200, 7, 8, 9, 10],
        params=SamplingParams(**{"seed": seed, "max_tokens": max_tokens} | params),
        constraint=constraint,
    )


def run(core: EngineCore, *requests: Request) -> dict[str, Delta | Exception]:
    """The whole answer of each request."""
    for one in requests:
        core.add(one)
    answers: dict[str, Any] = {}
    while core.has_work:
        for name, delta in core.step():
            if name in answers and isinstance(delta, Delta):
                answers[name].extend(delta)
            else:
                answers[name] = delta
        check_blocks(core)
    assert core.pool.num_free == core.pool.num_blocks - 1
    return answers


PERSON = obj(
    {
        "name": {"type": "string", "pattern": "^[a-z]{2,9}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        "married": BOOL,
    }
)


def person(words: Words) -> AnswerGrammar:
    return words.compiler.compile([grammar.json_part(PERSON)])


def check_person(words: Words, answer: Delta) -> None:
    assert answer.finish_reason is FinishReason.STOP
    Draft202012Validator(PERSON).validate(json.loads(words.decode(answer.token_ids)))


def test_constrained_and_free_answers_share_a_batch_and_change_nothing_of_each_other():
    words = words_of("bytes")
    free = [request(f"free {i}", max_tokens=40) for i in range(3)]
    bound = [request(f"bound {i}", person(words)) for i in range(3)]
    together = run(random_core(words), *(r for pair in zip(free, bound, strict=True) for r in pair))
    alone = {r.request_id: run(random_core(words), r)[r.request_id] for r in free + bound}

    for name, answer in alone.items():
        assert together[name].token_ids == answer.token_ids, name
        if name.startswith("bound"):
            check_person(words, answer)
    assert len({tuple(together[r.request_id].token_ids) for r in bound}) == 3


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 2.0},
        {"top_k": 1},
        {"top_p": 0.1},
        {"min_p": 0.9},
        {"repetition_penalty": 1.8, "frequency_penalty": 2.0, "presence_penalty": 2.0},
        {"repetition_penalty": 0.5, "frequency_penalty": -2.0},
        {"logit_bias": dict.fromkeys(range(0, 250, 2), -100.0)},
        {"logit_bias": {258: 100.0}},
        {"min_tokens": 190},
        {"ignore_eos": True},
        {"stop_token_ids": frozenset({256})},
    ],
    ids=" ".join,
)
def test_whatever_else_is_asked_for_the_answer_fits(params):
    words = words_of("bytes")
    requests = [request(f"a{i}", person(words), **params) for i in range(3)]
    for answer in run(random_core(words), *requests).values():
        check_person(words, answer)


def test_a_preempted_answer_goes_on_where_it_was():
    words = words_of("bytes")
    requests = [request(f"a{i}", person(words)) for i in range(6)]
    roomy, crowded = random_core(words), random_core(words, num_blocks=40)
    expected, answers = run(roomy, *requests), run(crowded, *requests)

    assert roomy.stats().num_preemptions == 0
    assert crowded.stats().num_preemptions > 0
    for name, answer in answers.items():
        assert answer.token_ids == expected[name].token_ids
        check_person(words, answer)


def test_logprobs_are_those_before_the_grammar():
    words = words_of("bytes")
    one = request("a", person(words), logprobs=5)
    answer = run(random_core(words), one)["a"]
    check_person(words, answer)
    token_ids, num_beyond = list(one.prompt_token_ids), 0
    for token_id, entry in zip(answer.token_ids, answer.logprobs, strict=True):
        exact = random_logits(token_ids, words.size).log_softmax(-1)
        assert entry.token_id == token_id
        assert entry.logprob == pytest.approx(float(exact[token_id]), abs=1e-4)
        assert [top for top, _ in entry.top] == exact.topk(5).indices.tolist()
        num_beyond += entry.rank > 5
        token_ids.append(token_id)
    assert num_beyond > 10  # the grammar made it say what it would hardly have said


def test_an_answer_that_is_whole_ends_without_an_end_token():
    words = words_of("bytes")
    answer = run(random_core(words), request("a", person(words)))["a"]
    assert answer.stop_token_id is None
    assert words.decode(answer.token_ids[-1:]) == "}"

    either = words.compiler.compile([grammar.regex_part("[ab]{1,400}")])
    ended = run(random_core(words), request("b", either, logit_bias={258: 4.0}))["b"]
    assert (ended.finish_reason, ended.stop_token_id) == (FinishReason.STOP, 258)
    assert set(words.decode(ended.token_ids)) <= {"a", "b"}


@pytest.mark.parametrize("max_tokens", [1, 5, 20])
def test_an_answer_that_is_cut_says_so(max_tokens):
    words = words_of("bytes")
    cut = run(random_core(words), request("a", person(words), max_tokens))["a"]
    whole = run(random_core(words), request("a", person(words)))["a"]

    assert cut.finish_reason is FinishReason.LENGTH
    assert cut.token_ids == whole.token_ids[:max_tokens]


@pytest.mark.parametrize("num_tokens", [1, 10, 30])
def test_an_answer_goes_on_after_what_an_earlier_attempt_said(num_tokens):
    words, whole = words_of("bytes"), request("a", person(words_of("bytes")))
    expected = run(random_core(words), whole)["a"].token_ids
    rest = replace(whole, generated_token_ids=tuple(expected[:num_tokens]))
    answer = run(random_core(words), rest)["a"]

    assert answer.finish_reason is FinishReason.STOP
    assert answer.token_ids == expected[num_tokens:]


def test_the_last_token_of_both_limits_is_no_cut():
    words = words_of("bytes")
    whole = run(random_core(words), request("a", person(words)))["a"]
    exact = run(random_core(words), request("a", person(words), len(whole.token_ids)))["a"]

    assert exact.token_ids == whole.token_ids
    assert exact.finish_reason is FinishReason.STOP


class Failing:
    """A constraint that allows everything and fails at a certain token."""

    def __init__(self, num_tokens: int) -> None:
        self.num_left = num_tokens

    def begin(self) -> "Failing":
        return Failing(self.num_left)

    def fill(self, bitmask: NDArray[np.int32]) -> None:
        pass

    def advance(self, token_id: int) -> bool:
        self.num_left -= 1
        if not self.num_left:
            raise ConstraintFailed("The answer is lost.")
        return False


@pytest.mark.parametrize("num_tokens", [1, 2, 9])
def test_a_state_that_fails_costs_its_own_answer_and_no_other(num_tokens):
    words = words_of("bytes")
    others = [request("free", max_tokens=30), request("bound", person(words))]
    lost = request("lost", Failing(num_tokens), ignore_eos=True)
    answers = run(random_core(words), others[0], lost, others[1])
    alone = run(random_core(words), *others)

    assert isinstance(answers["lost"], ConstraintFailed)
    for name, answer in alone.items():
        assert answers[name].token_ids == answer.token_ids
        assert answers[name].finish_reason == answer.finish_reason


OUTGROWN = "(([ab]{1,300}a){1,100}[ab]{1,300}b){1,100}"  # after some 90 tokens


def test_a_grammar_that_outgrows_its_limits_fails_and_does_not_just_stop():
    words = words_of("bytes")
    constraint = words.compiler.compile([grammar.regex_part(OUTGROWN)])
    no_end = {"logit_bias": {258: -100.0}}
    answer = run(random_core(words), request("a", constraint, max_tokens=400, **no_end))["a"]

    assert isinstance(answer, ConstraintFailed) or answer.finish_reason is FinishReason.LENGTH


def test_a_grammar_that_one_answer_outgrew_still_serves_the_next():
    words, rng = words_of("bytes"), random.Random(0)
    part = grammar.regex_part(OUTGROWN + "|c")
    first = words.compiler.compile([part]).begin()
    letters = words.encode("ab")
    for _ in range(400):
        if not set(letters) & set(allowed(first, words.size)):
            break
        first.advance(rng.choice(letters))

    assert set(words.encode("abc")) <= set(
        allowed(words.compiler.compile([part]).begin(), words.size)
    )


@pytest.mark.parametrize("extra", [-150, 40])
def test_the_logits_are_more_or_fewer_than_the_tokens(extra):
    words = words_of("demo")
    size = words.size + extra
    compiler = Compiler(words.tokenizer, size, words.eos)
    constraint = compiler.compile([grammar.json_part(PERSON)])
    answers = run(random_core(words, size=size), *(request(f"a{i}", constraint) for i in range(3)))
    for answer in answers.values():
        check_person(words, answer)


def test_a_thought_is_cut_in_the_engine_too():
    words = words_of("marked")
    thought = thinking("think", True, max_tokens=6)
    letters_only = {"logit_bias": dict.fromkeys(range(128, words.size), -100.0)}
    bound, free = (words.compiler.compile(parts, thought) for parts in ([ANSWER], None))
    requests = [
        request("bound", bound, **letters_only),
        request("free", free, 30, ignore_eos=True, **letters_only),
    ]
    close = words.tokenizer.convert_tokens_to_ids("</think>")
    for answer in run(random_core(words), *requests).values():
        assert answer.token_ids.index(close) == 7  # after a line break
        assert answer.token_ids.count(close) == 1
