"""What an answer must look like, and cannot: a 400 that names the field, at once, and no less."""

import asyncio
import json
from typing import NamedTuple

import pytest

from inference import service
from tests.helpers import scripted_engine

MAX_S = 8  # compiling may take 2, and other tests run beside
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
COMPLETION = {"model": "m", "prompt": "Hi", "max_tokens": 2}


@pytest.fixture
def engine(script):
    """One with room for the descriptions of 128 tools."""
    engine = scripted_engine(script, max_model_len=100_000)
    service.install(engine)
    yield engine
    service.install(None)
    engine.close()


class Answer(NamedTuple):
    status: int
    param: str | None
    code: str | None
    message: str


async def post(client, change: dict, path: str = "chat/completions") -> Answer:
    """What a valid body with this change gets; fails if that takes too long."""
    body = json.dumps((CHAT if path == "chat/completions" else COMPLETION) | change)
    return await post_raw(client, body, path)


async def post_raw(client, body: str, path: str = "chat/completions") -> Answer:
    async with asyncio.timeout(MAX_S):
        response = await client._client.post(f"http://localhost/v1/{path}", content=body)
    error = response.json().get("error") or {}
    return Answer(
        response.status_code, error.get("param"), error.get("code"), error.get("message", "")
    )


def named(table: list[tuple]) -> list:
    """A table whose rows begin with their name, as parameters."""
    return [pytest.param(*row, id=name) for name, *row in table]


def schema(value, **more) -> dict:
    """A body's format of this schema."""
    body = {"name": "answer", "schema": value, **more}
    return {"response_format": {"type": "json_schema", "json_schema": body}}


def form(kind: str, **more) -> dict:
    return {"response_format": {"type": kind, **more}}


def outputs(**more) -> dict:
    return {"structured_outputs": more}


def obj(properties: dict) -> dict:
    required = {"required": list(properties), "additionalProperties": False}
    return {"type": "object", "properties": properties, **required}


def nested(depth: int) -> dict:
    """Objects inside of objects."""
    value: dict = {"type": "integer"}
    for _ in range(depth):
        value = {"type": "object", "properties": {"a": value}}
    return value


def arrays(depth: int) -> dict:
    value: dict = {"type": "integer"}
    for _ in range(depth):
        value = {"type": "array", "items": value}
    return value


FORMAT, JSON_SCHEMA = "response_format", "response_format.json_schema"
TYPE, VALUE, MISSING = "invalid_type", "invalid_value", "missing_required_parameter"
COMPLEX = "schema_too_complex"

# Name, what is sent, the param and the code of the answer; no code stands for any
WRONG_SHAPES = [
    ("format no object", {"response_format": "json"}, FORMAT, TYPE),
    ("format a list", {"response_format": []}, FORMAT, TYPE),
    ("no type", {"response_format": {}}, f"{FORMAT}.type", MISSING),
    ("unknown type", form("xml"), f"{FORMAT}.type", VALUE),
    ("type a number", {"response_format": {"type": 1}}, f"{FORMAT}.type", VALUE),
    ("type a list", {"response_format": {"type": ["text"]}}, f"{FORMAT}.type", VALUE),
    ("no json_schema", form("json_schema"), JSON_SCHEMA, MISSING),
    ("json_schema a text", form("json_schema", json_schema="x"), JSON_SCHEMA, TYPE),
    ("no name", form("json_schema", json_schema={}), f"{JSON_SCHEMA}.name", MISSING),
    ("name a number", schema({}, name=1), f"{JSON_SCHEMA}.name", TYPE),
    ("name empty", schema({}, name=""), f"{JSON_SCHEMA}.name", VALUE),
    ("name with a space", schema({}, name="a b"), f"{JSON_SCHEMA}.name", VALUE),
    ("name too long", schema({}, name="a" * 65), f"{JSON_SCHEMA}.name", VALUE),
    ("strict a text", schema({}, strict="yes"), f"{JSON_SCHEMA}.strict", TYPE),
    ("description a number", schema({}, description=1), f"{JSON_SCHEMA}.description", TYPE),
    ("schema a text", schema("{}"), f"{JSON_SCHEMA}.schema", TYPE),
    ("schema a list", schema([]), f"{JSON_SCHEMA}.schema", TYPE),
    ("schema true", schema(True), f"{JSON_SCHEMA}.schema", TYPE),
]

WRONG_SCHEMAS = {
    "unknown type": {"type": "strin"},
    "type a number": {"type": 5},
    "type a list of numbers": {"type": [5]},
    "multiple of a boolean": {"type": "number", "multipleOf": True},
    "pattern that is none": {"type": "string", "pattern": "("},
    "look-ahead": {"type": "string", "pattern": "^(?=a)a$"},
    "look-behind": {"type": "string", "pattern": "(?<=a)b"},
    "back reference": {"type": "string", "pattern": r"(a)\1"},
    "pattern a number": {"type": "string", "pattern": 5},
    "bound a text": {"type": "integer", "minimum": "a"},
    "bounds the wrong way": {"type": "integer", "minimum": 3, "maximum": 1},
    "lengths the wrong way": {"type": "string", "minLength": 3, "maxLength": 1},
    "length below zero": {"type": "string", "minLength": -1},
    "length with a fraction": {"type": "array", "minItems": 1.5},
    "multiple of nothing": {"type": "integer", "multipleOf": 0},
    "$ref to nothing": {"$ref": "#/$defs/x"},
    "$ref to the net": {"$ref": "http://localhost/schema.json"},
    "$ref to a file": {"$ref": "file:///etc/passwd"},
    "$ref a number": {"$ref": 5},
    "enum empty": {"enum": []},
    "enum a text": {"enum": "a"},
    "const of another type": {"type": "integer", "const": "a"},
    "properties a list": {"type": "object", "properties": ["a"]},
    "property a number": {"type": "object", "properties": {"a": 5}},
    "property of an unknown type": obj({"a": {"type": "strin"}}),
    "required a text": {"type": "object", "properties": {}, "required": "a"},
    "required a number": {"type": "object", "properties": {}, "required": [1]},
    "required and forbidden": {
        "type": "object",
        "properties": {},
        "required": ["a"],
        "additionalProperties": False,
    },
    "items a number": {"type": "array", "items": 5},
    "anyOf empty": {"anyOf": []},
    "anyOf an object": {"anyOf": {}},
    "anyOf of numbers": {"anyOf": [5]},
    "nothing fits all": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "oneOf that overlaps": {"oneOf": [{"type": "number"}, {"type": "integer"}]},
    "not": {"not": {"type": "string"}},
    "if": {"if": {"type": "string"}, "then": {"maxLength": 2}},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"type": "array", "contains": {"const": 1}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "names with a pattern": {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}},
}

LONG_NAMES = {f"{'x' * 1300}{i}": {"type": "integer"} for i in range(100)}
TOO_LARGE = {
    "100,000 enum values": {"enum": [f"value {i}" for i in range(100_000)]},
    "1,001 enum values": {"enum": [f"v{i}" for i in range(1001)]},
    "1,002 enum values in two places": obj(
        {"a": {"enum": list(range(501))}, "b": {"enum": list(range(501))}}
    ),
    "5,001 properties": obj({f"p{i}": {"type": "integer"} for i in range(5001)}),
    "properties in $defs": {
        "$ref": "#/$defs/a",
        "$defs": {f"{x}": obj({f"p{i}": {} for i in range(2501)}) for x in "ab"},
    },
    "11 objects deep": nested(11),
    "400 objects deep": nested(400),
    "101 arrays deep": arrays(101),
    "long names": {"type": "object", "properties": LONG_NAMES},
    "long pattern": {"type": "string", "pattern": "a" * 1025},
    "long pattern below": {"anyOf": [{"items": {"type": "string", "pattern": "a" * 1025}}]},
    "300 kB": {"type": "object", "description": "x" * 300_000},
}

REGEX_OF_WORDS = "|".join(f"word{i}" for i in range(50_000))
TAG = {"begin": "<a>", "schema": {}, "end": "</a>"}


def tag(structures=(TAG,), triggers=("<a",)) -> dict:
    return outputs(structural_tag={"structures": list(structures), "triggers": list(triggers)})


OUT = "structured_outputs"
WRONG_OUTPUTS = [
    ("no object", {OUT: "json"}, OUT, TYPE),
    ("nothing", outputs(), OUT, VALUE),
    ("only null", outputs(regex=None), OUT, VALUE),
    ("two", outputs(regex="a", choice=["a"]), OUT, VALUE),
    ("unknown", outputs(xml="a"), OUT, VALUE),
    ("json a number", outputs(json=5), f"{OUT}.json", TYPE),
    ("json a list", outputs(json=[]), f"{OUT}.json", TYPE),
    ("json broken text", outputs(json="{"), f"{OUT}.json", TYPE),
    ("json text of a text", outputs(json='"x"'), f"{OUT}.json", TYPE),
    ("json of an unknown type", outputs(json={"type": "strin"}), f"{OUT}.json", VALUE),
    ("json too deep", outputs(json=nested(11)), f"{OUT}.json", COMPLEX),
    ("json_object a text", outputs(json_object="yes"), f"{OUT}.json_object", TYPE),
    ("json_object false", outputs(json_object=False), OUT, VALUE),
    ("regex a number", outputs(regex=5), f"{OUT}.regex", TYPE),
    ("regex broken", outputs(regex="("), f"{OUT}.regex", VALUE),
    ("regex with look-ahead", outputs(regex="(?=a)a"), f"{OUT}.regex", VALUE),
    ("50,000 words", outputs(regex=REGEX_OF_WORDS), f"{OUT}.regex", "string_above_max_length"),
    ("choice a text", outputs(choice="a"), f"{OUT}.choice", TYPE),
    ("choice of nothing", outputs(choice=[]), f"{OUT}.choice", "empty_array"),
    ("choice of numbers", outputs(choice=[1]), f"{OUT}.choice[0]", TYPE),
    ("empty choice", outputs(choice=["a", ""]), f"{OUT}.choice", VALUE),
    (
        "1,001 choices",
        outputs(choice=["a"] * 1001),
        f"{OUT}.choice",
        "array_above_max_length",
    ),
    ("long choice", outputs(choice=["a" * 4097]), f"{OUT}.choice[0]", "string_above_max_length"),
    ("grammar a number", outputs(grammar=5), f"{OUT}.grammar", TYPE),
    ("grammar empty", outputs(grammar=""), f"{OUT}.grammar", VALUE),
    ("prose", outputs(grammar="please answer yes or no"), f"{OUT}.grammar", VALUE),
    ("Lark broken", outputs(grammar="start: ("), f"{OUT}.grammar", VALUE),
    ("Lark without start", outputs(grammar='answer: "a"'), f"{OUT}.grammar", VALUE),
    ("Lark of an unknown rule", outputs(grammar="start: rule"), f"{OUT}.grammar", VALUE),
    ("Lark import", outputs(grammar="start: X\n%import common.X"), f"{OUT}.grammar", VALUE),
    ("GBNF broken", outputs(grammar="root ::= ("), f"{OUT}.grammar", VALUE),
    ("GBNF without root", outputs(grammar='answer ::= "a"'), f"{OUT}.grammar", VALUE),
    ("GBNF of an unknown rule", outputs(grammar="root ::= rule"), f"{OUT}.grammar", VALUE),
    (
        "long grammar",
        outputs(grammar='start: "a"\n' + "#" * 65_536),
        f"{OUT}.grammar",
        "string_above_max_length",
    ),
    ("tag a broken text", outputs(structural_tag="{"), f"{OUT}.structural_tag", TYPE),
    ("tag without structures", tag([]), f"{OUT}.structural_tag.structures", "empty_array"),
    ("tag without triggers", tag(triggers=[]), f"{OUT}.structural_tag", VALUE),
    ("tag of another trigger", tag(triggers=["<b"]), f"{OUT}.structural_tag", VALUE),
    ("tag of an empty trigger", tag(triggers=[""]), f"{OUT}.structural_tag", VALUE),
    ("structure a text", tag(["x"]), f"{OUT}.structural_tag.structures[0]", TYPE),
    (
        "structure without begin",
        tag([{"schema": {}, "end": ""}]),
        f"{OUT}.structural_tag.structures[0].begin",
        TYPE,
    ),
    (
        "structure of a text",
        tag([TAG | {"schema": "x"}]),
        f"{OUT}.structural_tag.structures[0].schema",
        TYPE,
    ),
    (
        "structure of an unknown type",
        tag([TAG | {"schema": {"type": "strin"}}]),
        f"{OUT}.structural_tag",
        VALUE,
    ),
    (
        "tag as a format",
        form("structural_tag", structures=[], triggers=[]),
        "response_format.structures",
        "empty_array",
    ),
    ("guided_json broken", {"guided_json": "{"}, "guided_json", TYPE),
    ("guided_json wrong", {"guided_json": {"type": "strin"}}, "guided_json", VALUE),
    ("guided_regex broken", {"guided_regex": "("}, "guided_regex", VALUE),
    ("guided_choice empty", {"guided_choice": []}, "guided_choice", "empty_array"),
    ("guided_grammar broken", {"guided_grammar": "start: ("}, "guided_grammar", VALUE),
    (
        "two guided",
        {"guided_regex": "a", "guided_choice": ["a"]},
        "guided_choice",
        VALUE,
    ),
    ("guided and a format", form("json_object") | {"guided_regex": "a"}, "guided_regex", VALUE),
    ("outputs and a format", form("json_object") | outputs(regex="a"), f"{OUT}.regex", VALUE),
    (
        "only some tokens",
        {"guided_regex": "a", "allowed_token_ids": [1]},
        "allowed_token_ids",
        "unsupported_value",
    ),
    ("bad words", {"guided_regex": "a", "bad_words": ["a"]}, "bad_words", "unsupported_value"),
]


def tools(parameters=None, **more) -> dict:
    """A body's only tool."""
    function = {"name": "f", **more}
    if parameters is not None:
        function["parameters"] = parameters
    return {"tools": [{"type": "function", "function": function}]}


def custom(form, **more) -> dict:
    return {"tools": [{"type": "custom", "custom": {"name": "f", "format": form, **more}}]}


def grammar(definition, syntax="regex") -> dict:
    return {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}


def allowed(mode="auto", entries=()) -> dict:
    choice = {"mode": mode, "tools": list(entries)}
    return tools() | {"tool_choice": {"type": "allowed_tools", "allowed_tools": choice}}


def many(number: int) -> list[dict]:
    return [{"type": "function", "function": {"name": f"f{i}"}} for i in range(number)]


REQUIRED = {"tool_choice": "required"}
G = {"type": "function", "function": {"name": "g"}}
FUNCTION, CUSTOM = "tools[0].function", "tools[0].custom"
DEFINITION = f"{CUSTOM}.format.grammar.definition"
ALLOWED = "tool_choice.allowed_tools"
WRONG_TOOLS = [
    ("no list", {"tools": "f"}, "tools", TYPE),
    ("129 tools", {"tools": many(129)}, "tools", "array_above_max_length"),
    ("a text", {"tools": ["f"]}, "tools[0]", TYPE),
    ("no type", {"tools": [{}]}, "tools[0].type", MISSING),
    ("type a number", {"tools": [{"type": 5}]}, "tools[0].type", TYPE),
    ("unknown type", {"tools": [*many(1), {"type": "robot"}]}, "tools[1].type", VALUE),
    ("no function", {"tools": [{"type": "function"}]}, FUNCTION, MISSING),
    ("function a text", {"tools": [{"type": "function", "function": "f"}]}, FUNCTION, TYPE),
    ("no name", tools(name=None), f"{FUNCTION}.name", MISSING),
    ("name a number", tools(name=5), f"{FUNCTION}.name", TYPE),
    ("name empty", tools(name=""), f"{FUNCTION}.name", VALUE),
    ("name with a dot", tools(name="a.b"), f"{FUNCTION}.name", VALUE),
    ("name too long", tools(name="a" * 65), f"{FUNCTION}.name", VALUE),
    ("description a number", tools(description=5), f"{FUNCTION}.description", TYPE),
    ("parameters a text", tools("{}"), f"{FUNCTION}.parameters", TYPE),
    ("parameters a list", tools([]), f"{FUNCTION}.parameters", TYPE),
    ("strict a text", tools(strict="yes"), f"{FUNCTION}.strict", TYPE),
    ("the same name twice", {"tools": many(1) * 2}, "tools", VALUE),
    ("required of an unknown type", tools({"type": "strin"}) | REQUIRED, "tools", VALUE),
    ("strict of an unknown type", tools({"type": "strin"}, strict=True), "tools", VALUE),
    ("required too deep", tools(nested(11)) | REQUIRED, "tools", COMPLEX),
    ("no custom", {"tools": [{"type": "custom"}]}, CUSTOM, MISSING),
    ("custom without a name", custom(None, name=None), f"{CUSTOM}.name", MISSING),
    ("format a text", custom("text"), f"{CUSTOM}.format", TYPE),
    ("unknown format", custom({"type": "xml"}), f"{CUSTOM}.format.type", VALUE),
    ("format without type", custom({"format": "text"}), f"{CUSTOM}.format.type", VALUE),
    ("unknown syntax", custom(grammar("a", "gbnf")), f"{CUSTOM}.format.grammar.syntax", VALUE),
    ("definition a number", custom(grammar(5)), DEFINITION, TYPE),
    ("long definition", custom(grammar("a" * 65_537)), DEFINITION, "string_above_max_length"),
    ("required broken regex", custom(grammar("(")) | REQUIRED, "tools", VALUE),
    ("required long regex", custom(grammar("a" * 2000)) | REQUIRED, "tools", COMPLEX),
    ("unknown choice", tools() | {"tool_choice": "any"}, "tool_choice", VALUE),
    ("choice a number", tools() | {"tool_choice": 5}, "tool_choice", TYPE),
    ("choice without type", tools() | {"tool_choice": {}}, "tool_choice.type", VALUE),
    ("choice of an object", tools() | {"tool_choice": {"type": {}}}, "tool_choice.type", TYPE),
    ("parameters of no type", tools({"type": None}) | REQUIRED, "tools", VALUE),
    ("parameters of a number", tools({"type": 1}) | REQUIRED, "tools", VALUE),
    ("choice of a robot", tools() | {"tool_choice": {"type": "robot"}}, "tool_choice.type", VALUE),
    (
        "choice without a function",
        tools() | {"tool_choice": {"type": "function"}},
        "tool_choice.function",
        MISSING,
    ),
    (
        "choice of a text",
        tools() | {"tool_choice": {"type": "function", "function": "f"}},
        "tool_choice.function",
        TYPE,
    ),
    (
        "choice without a name",
        tools() | {"tool_choice": {"type": "function", "function": {}}},
        "tool_choice.function.name",
        MISSING,
    ),
    ("unknown function", tools() | {"tool_choice": G}, "tool_choice", VALUE),
    ("required without tools", REQUIRED, "tool_choice", VALUE),
    ("required of no tools", {"tools": []} | REQUIRED, "tool_choice", VALUE),
    ("named without tools", {"tool_choice": G}, "tool_choice", VALUE),
    ("required of OpenAI's", {"tools": [{"type": "web_search"}]} | REQUIRED, "tool_choice", VALUE),
    (
        "choice of OpenAI's",
        tools() | {"tool_choice": {"type": "web_search"}},
        "tool_choice",
        "unsupported_value",
    ),
    ("allowed: nothing", allowed(), "tool_choice", "empty_array"),
    ("allowed: unknown mode", allowed("none", [G]), f"{ALLOWED}.mode", VALUE),
    ("allowed: unknown name", allowed(entries=[G]), "tool_choice", VALUE),
    ("allowed: a text", allowed(entries=["f"]), f"{ALLOWED}.tools[0]", TYPE),
    (
        "allowed: no name",
        allowed(entries=[{"type": "function"}]),
        f"{ALLOWED}.tools[0].name",
        MISSING,
    ),
    ("parallel a text", tools() | {"parallel_tool_calls": "no"}, "parallel_tool_calls", TYPE),
    ("functions no list", {"functions": "f"}, "functions", TYPE),
    ("function a text", {"functions": ["f"]}, "functions[0]", TYPE),
    ("function without a name", {"functions": [{}]}, "functions[0].name", MISSING),
    ("functions twice", {"functions": [{"name": "f"}] * 2}, "functions", VALUE),
    (
        "129 functions",
        {"functions": [tool["function"] for tool in many(129)]},
        "functions",
        "array_above_max_length",
    ),
    (
        "function_call required",
        {"functions": [{"name": "f"}], "function_call": "required"},
        "function_call",
        VALUE,
    ),
    (
        "function_call a number",
        {"functions": [{"name": "f"}], "function_call": 5},
        "function_call",
        TYPE,
    ),
    (
        "function_call without a name",
        {"functions": [{"name": "f"}], "function_call": {}},
        "function_call.name",
        MISSING,
    ),
    (
        "function_call unknown",
        {"functions": [{"name": "f"}], "function_call": {"name": "g"}},
        "function_call",
        VALUE,
    ),
    ("functions and tools", {"functions": [{"name": "f"}]} | tools(), "functions", None),
    ("function_call alone", {"function_call": {"name": "f"}}, "function_call", VALUE),
]

# What has to be refused and is not, or not by the right name: the reason, and a row as above
FINE_PRINT = [
    (
        "the type of an allowed tool is a text",
        allowed(entries=[{"type": ["function"], "name": "f"}]),
        f"{ALLOWED}.tools[0].type",
        TYPE,
    ),
    (
        "a schema without an end, also where a thought may come first",
        schema({"$ref": "#"}),
        FORMAT,
        VALUE,
    ),
    (
        "a grammar without an end",
        outputs(grammar="start: start"),
        f"{OUT}.grammar",
        VALUE,
    ),
    (
        "a regex that matches nothing",
        outputs(regex=r"[^\s\S]"),
        f"{OUT}.regex",
        VALUE,
    ),
    (
        "the schema of a function is not blamed on tools",
        {
            "functions": [{"name": "f", "parameters": {"type": "strin"}}],
            "function_call": {"name": "f"},
        },
        "functions",
        VALUE,
    ),
    (
        "the schema of a tool is not blamed on the format beside it",
        tools({"type": "strin"}) | form("json_object"),
        "tools",
        VALUE,
    ),
    (
        "arguments that can be no object",
        tools({"type": "array"}) | REQUIRED,
        "tools",
        VALUE,
    ),
    (
        "a custom tool's regex, also where no call is forced",
        custom(grammar("(")),
        "tools",
        VALUE,
    ),
    (
        "a custom tool's regex that would close the group around it",
        custom(grammar("a)|(b")) | REQUIRED,
        "tools",
        VALUE,
    ),
    (
        "a custom tool's Lark grammar",
        custom(grammar("start: (", "lark")) | REQUIRED,
        "tools",
        VALUE,
    ),
    (
        "a type that only begins like one of OpenAI's",
        {"tools": [{"type": "shellfish"}]},
        "tools[0].type",
        VALUE,
    ),
    (
        "the choice of a tool beside functions",
        {"functions": [{"name": "f"}]} | REQUIRED,
        "tool_choice",
        None,
    ),
]

FAN_OUT = {
    "$ref": "#/$defs/d0",
    "$defs": {
        f"d{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 8}
        for i in range(12)
    }
    | {"d12": {"type": "integer"}},
}
# What is large, or odd, and can be done
ACCEPTED = {
    "1,000 enum values": schema({"enum": [f"value {i}" for i in range(1000)]}),
    "1,000 choices": outputs(choice=[f"choice {i}" for i in range(1000)]),
    "10 objects deep": schema(nested(10)),
    "100 arrays deep": schema(arrays(100)),
    "pattern at its limit": schema({"type": "string", "pattern": "a" * 1024}),
    "regex at its limit": outputs(regex="a" * 16_384),
    "counters in counters": schema({"type": "string", "pattern": "^(a{1,1000}){1,1000}$"}),
    "200,000 items": schema({"type": "array", "items": {"type": "null"}, "minItems": 200_000}),
    "a million characters": schema({"type": "string", "minLength": 10**6}),
    "8 to the power of 12": schema(FAN_OUT),
    "catastrophe for backtracking": schema({"type": "string", "pattern": "^((a+)+)+$"}),
    "properties called as keywords": schema(
        obj({name: {"type": "null"} for name in ("pattern", "enum", "format", "properties")})
    ),
    "no schema": form("json_schema", json_schema={"name": "answer"}),
    "nulls": form("json_schema", json_schema={"name": "answer", "schema": None, "strict": None}),
    "text beside another form": form("text") | {"guided_regex": "a"},
    "128 tools": {"tools": many(128)} | REQUIRED,
    "a format and a forced call": tools() | REQUIRED | form("json_object"),
    "none without tools": {"tool_choice": "none"},
    "auto without tools": {"tool_choice": "auto"},
    "auto of no tools": {"tools": [], "tool_choice": "auto"},
    "OpenAI's tools": {"tools": [{"type": "web_search"}, *many(1)]},
    "legacy auto without functions": {"function_call": "auto"},
    "no functions": {"functions": []},
}

# What may be done or refused, but not slowly
BOMBS = {
    "5,000 properties": schema(obj({f"p{i}": {"type": "integer"} for i in range(5000)})),
    "5,000 optional ones": schema(
        {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(5000)}}
    ),
    "3,000 patterns": schema(
        {"properties": {f"p{i}": {"pattern": f"^[a-z]{{{1 + i % 50}}}$"} for i in range(3000)}}
    ),
    "1,000 patterns for one value": schema(
        {"anyOf": [{"type": "string", "pattern": f"^.*x{i}.*$"} for i in range(1000)]}
    ),
    "200 patterns of which one": schema(
        {"oneOf": [{"type": "string", "pattern": f"^.*x{i}.*$"} for i in range(200)]}
    ),
    "300 patterns of names": schema(
        {"type": "object", "patternProperties": {f"^.*x{i}.*$": {} for i in range(300)}}
    ),
    "90 deep in allOf": schema(json.loads('{"allOf": [' * 90 + "{}" + "]}" * 90)),
    "4 MB of choices": outputs(choice=[f"{i}{'ab' * 2000}" for i in range(1000)]),
    "16 kB of words": outputs(regex="|".join(f"word{i}" for i in range(1800))),
    "1,000 rules, one in the other": outputs(
        grammar="start: r0\n"
        + "".join(f'r{i}: "a" r{i + 1}?\n' for i in range(1000))
        + 'r1000: "b"'
    ),
    "an ambiguous grammar": outputs(grammar='start: s\ns: s s s | s s | "a"'),
    "5,000 tags": tag([TAG | {"begin": f"<a{i}>"} for i in range(5000)]),
    "128 large tools": {
        "tools": [
            {
                "type": "function",
                "function": {"name": f"f{i}", "parameters": obj({f"p{j}": {} for j in range(9)})},
            }
            for i in range(128)
        ]
    }
    | REQUIRED,
}

# As text: Python's own JSON gives up on some
DEEP = {
    f"{depth:,} deep in {name}": begin * depth + "{}" + end * depth
    for depth in (3_000, 20_000)
    for name, begin, end in [
        ("objects", '{"type": "object", "properties": {"a": ', "}}"),
        ("arrays", '{"type": "array", "items": ', "}"),
        ("anyOf", '{"anyOf": [', "]}"),
        ("unknown keys", '{"a": ', "}"),
        ("const", '{"const": [', "]}"),
    ]
}


@pytest.mark.parametrize(("change", "param", "code"), named(WRONG_SHAPES + WRONG_OUTPUTS))
async def test_a_wrong_format_is_named(client, change, param, code):
    for path in ("chat/completions", "completions"):
        answer = await post(client, change, path)
        assert (answer.status, answer.param, answer.code) == (400, param, code), path


@pytest.mark.parametrize(("change", "param", "code"), named(WRONG_TOOLS))
async def test_a_wrong_tool_or_choice_is_named(client, change, param, code):
    answer = await post(client, change)
    assert (answer.status, answer.param, answer.code) == (400, param, code or answer.code)


@pytest.mark.parametrize("value", WRONG_SCHEMAS.values(), ids=WRONG_SCHEMAS)
async def test_a_schema_that_cannot_be_followed_is_refused_wherever_it_stands(client, value):
    for change, param in (
        (schema(value), FORMAT),
        (outputs(json=json.dumps(value)), f"{OUT}.json"),
        (tools(obj({"a": value})) | REQUIRED, "tools"),
        (tools(obj({"a": value}), strict=True), "tools"),
    ):
        if param == "tools" and "$ref" in value:  # "#" is another place there
            continue
        answer = await post(client, change)
        assert (answer.status, answer.param, answer.code) == (400, param, VALUE)
        assert "Traceback" not in answer.message


@pytest.mark.parametrize("value", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_a_schema_beyond_the_limits_is_refused(client, value):
    for path in ("chat/completions", "completions"):
        answer = await post(client, schema(value), path)
        assert (answer.status, answer.param, answer.code) == (400, FORMAT, COMPLEX)
    answer = await post(client, tools(value) | REQUIRED)
    assert (answer.status, answer.param, answer.code) == (400, "tools", COMPLEX)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [row for _, *row in FINE_PRINT],
)
async def test_the_fine_print_is_read(client, change, param, code):
    answer = await post(client, change)
    assert (answer.status, answer.param, answer.code) == (400, param, code or answer.code)


@pytest.mark.parametrize("change", ACCEPTED.values(), ids=ACCEPTED)
async def test_what_is_large_or_odd_is_done(client, change):
    answer = await post(client, change)
    assert answer.status == 200, answer.message


@pytest.mark.parametrize("change", BOMBS.values(), ids=BOMBS)
async def test_a_bomb_is_done_or_refused_and_holds_up_nobody(client, change):
    answer = await post(client, change)
    after = await post(client, outputs(choice=["yes", "no"]))

    assert answer.status == 200 or (answer.status, bool(answer.param)) == (400, True)
    assert after.status == 200


@pytest.mark.parametrize("value", DEEP.values(), ids=DEEP)
async def test_depths_are_no_failure_of_the_server(client, value):
    body = json.dumps(CHAT | schema("deep")).replace('"deep"', value)
    answer = await post_raw(client, body)
    assert answer.status == 400
