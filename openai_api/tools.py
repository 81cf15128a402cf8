"""Which functions an answer may call, must call, and under which shape its calls are shown."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from openai_api.errors import InvalidRequest

BRINGING = ("additional_tools", "tool_search_output")  # items with tools
CUSTOM_INPUT = "input"  # the one argument of a custom tool that is shown as a function


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """`tools` are what the template shows, all as functions; `callable` what may be called.

    `required`: the answer consists of calls. `custom`: names of tools whose calls are shown as
    their input. `namespaces`: (namespace, name) of tools that are shown under another name.
    `grammars`: (kind, text) of custom tools. `param`: the field that all this came from.
    `is_legacy`: calls are shown as `function_call`. `is_named`: one tool was named.
    """

    tools: tuple[dict, ...] = ()
    callable: tuple[dict, ...] = ()
    required: bool = False
    parallel: bool = True
    custom: frozenset[str] = frozenset()
    namespaces: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    is_legacy: bool = False
    is_named: bool = False
    grammars: tuple[tuple[str, str], ...] = ()
    param: str = "tools"

    @property
    def is_strict(self) -> bool:
        """Whether calls that nobody forces must still fit their schemas."""
        return any(tool["function"].get("strict") for tool in self.callable)


NO_TOOLS = ToolUse()


def tool_use(body: dict) -> ToolUse:
    """What a checked body wants of its tools. Raises InvalidRequest for an impossible choice."""
    legacy = body.get("functions") is not None
    if legacy and body.get("tools"):
        raise InvalidRequest("'functions' cannot be combined with 'tools'.", "functions")
    tools = body.get("functions" if legacy else "tools") or []
    if legacy and body.get("tool_choice"):
        raise InvalidRequest("'tool_choice' cannot be combined with 'functions'.", "tool_choice")
    param = "function_call" if legacy or body.get("function_call") else "tool_choice"
    choice = body.get(param) or {"mode": "auto"}
    shown = tuple(as_function(tool) for tool in tools)
    chosen = _chosen(shown, choice, param)
    if choice["mode"] == "none" or not chosen:
        return NO_TOOLS
    return ToolUse(
        tools=chosen if "allowed" in choice else shown,
        callable=chosen,
        required=choice["mode"] == "required",
        parallel=body.get("parallel_tool_calls", True) and not legacy and "name" not in choice,
        custom=frozenset(t["custom"]["name"] for t in tools if t["type"] == "custom"),
        is_legacy=legacy,
        is_named="name" in choice,
        grammars=tuple(_grammar(t["custom"]["format"]) for t in tools if _has_grammar(t)),
        param="functions" if legacy else "tools",
    )


def response_tool_use(body: dict, items: list[dict]) -> ToolUse:
    """The same for a body of the Responses API, with the tools that its items have brought.

    What is there under the same name twice counts as it came last: agents repeat themselves.
    """
    brought = [tool for item in items if item["type"] in BRINGING for tool in item["tools"]]
    tools, namespaces = {}, {}
    for tool in [*body["tools"], *brought]:
        inside = tool["tools"] if tool["type"] == "namespace" else [tool]
        for shown, entry in zip(shown_names(tool), inside, strict=False):
            kind = entry["type"]
            facts = {k: v for k, v in entry.items() if k != "type" and v is not None}
            tools[shown] = {"type": kind, kind: facts | {"name": shown}}
            namespaces.pop(shown, None)
            if tool["type"] == "namespace":
                namespaces[shown] = (tool["name"], entry["name"])
    use = tool_use(body | {"tools": list(tools.values())})
    return replace(use, namespaces=namespaces)


def shown_names(tool: dict) -> list[str]:
    """Under which names the model sees a tool of the Responses API, or those of a namespace."""
    if tool["type"] in ("function", "custom"):
        return [tool["name"]]
    if tool["type"] != "namespace":
        return []
    return [shown_name(tool["name"], entry["name"]) for entry in tool["tools"]]


def shown_name(namespace: str | None, name: str) -> str:
    return name if namespace in (None, "functions") else f"{namespace}__{name}"


def as_function(tool: dict) -> dict:
    """A custom tool is shown to the model as a function of one string."""
    if tool["type"] == "function":
        return tool
    custom = tool["custom"]
    text: dict = {"type": "string"}
    form = custom["format"]
    if form["type"] == "grammar":
        text["description"] = f"Text of this {form['syntax']} grammar:\n{form['definition']}"
        if form["syntax"] == "regex":
            text["pattern"] = f"^(?:{form['definition']})$"
    parameters = {
        "type": "object",
        "properties": {CUSTOM_INPUT: text},
        "required": [CUSTOM_INPUT],
        "additionalProperties": False,
    }
    shown = {"name": custom["name"], "parameters": parameters}
    if "description" in custom:
        shown["description"] = custom["description"]
    return {"type": "function", "function": shown}


def _has_grammar(tool: dict) -> bool:
    return tool["type"] == "custom" and tool["custom"]["format"]["type"] == "grammar"


def _grammar(form: dict) -> tuple[str, str]:
    return ("regex" if form["syntax"] == "regex" else "grammar"), form["definition"]


def custom_input(arguments: str) -> str:
    """The input of a custom call, as far as it came; what a model wrote instead, as it is."""
    text = _input_of(arguments)
    return text.encode(errors="replace").decode()  # an escape may spell half of a surrogate pair


def _input_of(arguments: str) -> str:
    try:
        if isinstance(text := json.loads(arguments)[CUSTOM_INPUT], str):
            return text
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    if not (begun := re.match(rf'\s*{{\s*"{CUSTOM_INPUT}"\s*:\s*"', arguments)):
        return arguments
    text = arguments[begun.end() :]
    for num_cut in range(7):  # the end may be in the middle of an escape
        try:
            return json.loads(f'"{text[: len(text) - num_cut]}"')
        except ValueError:
            continue
    return arguments


def _chosen(shown: tuple[dict, ...], choice: dict, param: str) -> tuple[dict, ...]:
    """The tools that may be called."""
    names = [choice["name"]] if "name" in choice else choice.get("allowed")
    known = {tool["function"]["name"]: tool for tool in shown}
    if names is None:
        if choice["mode"] == "required" and not shown:
            message = f"'{param}' is 'required', but there are no tools to call."
            raise InvalidRequest(message, param, "invalid_value")
        return shown
    if unknown := [name for name in names if name not in known]:
        message = f"Invalid '{param}': there is no tool called '{unknown[0]}'."
        raise InvalidRequest(message, param, "invalid_value")
    if not names:
        raise InvalidRequest(f"Invalid '{param}': no tool is allowed.", param, "empty_array")
    return tuple(tool for name, tool in known.items() if name in names)
