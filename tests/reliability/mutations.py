"""Hypothesis strategies that make valid JSON hostile: one to four changes anywhere in it."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

Path = tuple[Any, ...]

DEEP = "\0deep"  # stands for what would be too deep for json.dumps
NUMBERS = [
    0, -1, 1, 2, 1.5, -0.0, 1e-300, 1e300, 2**31, 2**31 + 1, 2**32, 2**63 - 1, 2**63, -(2**63) - 1,
    2**64, 10**30, 10**400, float("nan"), float("inf"), -float("inf"), 0.1 + 0.2,
]  # fmt: skip
TEXTS = [
    "", " ", "\x00", "\n", "a\u0300", "🎉", "\ud800", "\udfff x", "\u202e", "\ufeff", "\ufffd",
    "x" * 300, "x" * 70_000, "../../etc/passwd", "..\\..\\x", "/dev/zero", "file:///etc/passwd",
    "http://127.0.0.1:1/x.png", "data:image/png;base64,AAAA", "{{ 7*7 }}",
    "{% for i in range(9**9) %}", "<script>alert(1)</script>", "'; DROP TABLE x;--", "%s%n%d",
    "${jndi:x}", "<|im_end|>", "<think>", "<tool_call>", "(a+)+$", "(a{1,1000}){1,1000}", "[",
    "(?=x)", "null", "true", "NaN", "1e999",
    "text", "json_object", "json_schema", "function", "custom", "auto", "required", "none",
    "user", "assistant", "tool", "message", "item_reference", "reasoning", "image_url", "f", "c",
]  # fmt: skip
OBJECTS: list[Any] = [
    [], {}, [[]], [None], [{}], {"": ""}, {"a": {}}, [1, "a"], {"type": "x"}, {"type": None},
    {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x"}}, {"$ref": "#"},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"enum": []}, {"type": []}, {"pattern": "("}, {"allOf": [{"type": "string"}, {"type": "null"}]},
    {str(i): 1 for i in range(1100)}, list(range(2000)), ["x"] * 200, DEEP,
]  # fmt: skip
KEYS = [
    "",
    "type",
    "role",
    "content",
    "id",
    "name",
    "__class__",
    "model",
    "x" * 5000,
    "\ud800",
    "é",
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(),
    st.floats(),
    st.sampled_from(TEXTS),
    st.text(max_size=20),
)
values = st.one_of(
    scalars,
    st.sampled_from(OBJECTS).map(copy.deepcopy),
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=6,
    ),
)


def places(value: Any, path: Path = ()) -> list[Path]:
    """The paths to everything in a JSON value, itself last."""
    entries: Any = ()
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
    return [*(inner for key, child in entries for inner in places(child, (*path, key))), path]


def at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


@st.composite
def mutated(draw: st.DrawFn, payloads: list[dict]) -> bytes:
    """The body of a request: one of `payloads`, changed in some places."""
    body = copy.deepcopy(draw(st.sampled_from(payloads)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        path = draw(st.sampled_from(places(body)))
        if path:
            change(draw, body, path)
        else:
            body[draw(st.sampled_from(KEYS))] = draw(values)
    text = json.dumps(body).replace(json.dumps(DEEP), deep(draw))
    text = text.replace("Infinity", draw(st.sampled_from(["Infinity", "1e999", "1" * 400])))
    raw = text.encode(errors="surrogatepass")
    return broken(draw, raw) if draw(st.integers(0, 9)) == 0 else raw


def change(draw: st.DrawFn, body: Any, path: Path) -> None:
    parent, key = at(body, path[:-1]), path[-1]
    how = draw(
        st.sampled_from(["replace", "replace", "swap", "delete", "wrap", "repeat", "rename"])
    )
    if how == "replace":
        parent[key] = draw(values)
    elif how == "swap":  # what is right elsewhere
        parent[key] = copy.deepcopy(at(body, draw(st.sampled_from(places(body)))))
    elif how == "delete":
        del parent[key]
    elif how == "wrap":
        parent[key] = draw(st.sampled_from([[parent[key]], {"value": parent[key]}]))
    elif how == "repeat":
        count = draw(st.sampled_from([2, 17, 130]))
        parent[key] = parent[key] * count if isinstance(parent[key], list | str) else [key] * count
    elif isinstance(parent, dict):
        parent[draw(st.sampled_from(KEYS))] = parent.pop(key)


def deep(draw: st.DrawFn) -> str:
    depth = draw(st.sampled_from([50, 300, 990, 5000, 100_000]))
    left, right = draw(st.sampled_from([("[", "]"), ('{"a":', "}")]))
    return left * depth + "1" + right * depth


def broken(draw: st.DrawFn, raw: bytes) -> bytes:
    """No longer the JSON that it was: cut, with other bytes in it, or with a key twice."""
    index = draw(st.integers(0, max(len(raw) - 1, 0)))
    how = draw(st.sampled_from(["cut", "insert", "twice", "encode"]))
    if how == "cut":
        return raw[:index]
    if how == "insert":
        return raw[:index] + draw(st.binary(min_size=1, max_size=4)) + raw[index:]
    if how == "twice":
        return b'{"model":1,' + raw[1:]
    return raw.decode(errors="replace").encode(draw(st.sampled_from(["utf-16", "utf-8-sig"])))
