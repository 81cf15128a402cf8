"""Tools and how they may be chosen."""

import logging

from django.conf import settings

from openai_api.errors import InvalidRequest
from openai_api.serializers.fields import (
    StrictField,
    String,
    check_type,
    missing,
    wrong_type,
    wrong_value,
)
from openai_api.serializers.formats import NAME
from openai_api.tools import shown_names

logger = logging.getLogger(__name__)

MAX_TOOLS = 128
HOSTED = (
    "web_search", "web_search_preview", "file_search", "code_interpreter", "computer",
    "computer_use_preview", "image_generation", "mcp", "local_shell", "shell", "apply_patch",
    "tool_search", "programmatic",
)  # fmt: skip


def function(param: str, value) -> dict:
    """{name, description, parameters, strict} of a function tool."""
    check_type(param, value, dict)
    checked = {"name": name_of(param, value)}
    if value.get("description") is not None:
        checked["description"] = check_type(f"{param}.description", value["description"], str)
    if value.get("parameters") is not None:
        checked["parameters"] = check_type(f"{param}.parameters", value["parameters"], dict)
    if value.get("strict") is not None:
        checked["strict"] = check_type(f"{param}.strict", value["strict"], bool)
    return checked


def custom(param: str, value) -> dict:
    """{name, description, format}; a format is text or a grammar with definition and syntax."""
    check_type(param, value, dict)
    checked = {"name": name_of(param, value), "format": {"type": "text"}}
    if value.get("description") is not None:
        checked["description"] = check_type(f"{param}.description", value["description"], str)
    form = value.get("format")
    if form is None:
        return checked
    check_type(f"{param}.format", form, dict)
    kind = form.get("type")
    if kind not in ("text", "grammar"):
        raise wrong_value(f"{param}.format.type", kind, ("text", "grammar"))
    if kind == "grammar":
        grammar = form.get("grammar") or form  # Responses puts the two keys beside the type
        check_type(f"{param}.format.grammar", grammar, dict)
        syntax = String(choices=("lark", "regex"))
        definition = String(max_length=65_536)
        checked["format"] = {
            "type": "grammar",
            "syntax": syntax.check(f"{param}.format.grammar.syntax", grammar.get("syntax")),
            "definition": definition.check(
                f"{param}.format.grammar.definition", grammar.get("definition")
            ),
        }
    return checked


def name_of(param: str, value: dict) -> str:
    if value.get("name") is None:
        raise missing(f"{param}.name")
    return String(pattern=NAME).check(f"{param}.name", value["name"])


class Tools(StrictField):
    """Function and custom tools. Those that only OpenAI can run are left out, or refused."""

    def check(self, param: str, value) -> list[dict]:
        tools = [
            self._tool(f"{param}[{i}]", tool) for i, tool in enumerate(tool_list(param, value))
        ]
        tools = [tool for tool in tools if tool]
        refuse_twins(param, [tool[tool["type"]]["name"] for tool in tools])
        return tools

    @staticmethod
    def _tool(param: str, tool) -> dict | None:
        kind = tool_type(param, tool)
        if kind in CALLABLE:
            if tool.get(kind) is None:
                raise missing(f"{param}.{kind}")
            return {"type": kind, kind: CALLABLE[kind](f"{param}.{kind}", tool[kind])}
        check_hosted(param, kind, CALLABLE)
        return None


class ResponseTools(StrictField):
    """The Responses API's tools, which are flat; in the shape that the Response echoes.

    Those that only OpenAI can run stay in the list: agents send them along and expect them back.
    """

    def check(self, param: str, value) -> list[dict]:
        tools = [
            self._tool(f"{param}[{i}]", tool) for i, tool in enumerate(tool_list(param, value))
        ]
        refuse_twins(param, [name for tool in tools for name in shown_names(tool)])
        return tools

    def _tool(self, param: str, tool) -> dict:
        kind = tool_type(param, tool)
        if kind == "function":
            empty = {"description": None, "parameters": None, "strict": None}
            return {"type": kind, **empty, **function(param, tool)}
        if kind == "custom":
            return {"type": kind, **custom(param, tool)}
        if kind == "namespace":
            tools = tool_list(f"{param}.tools", tool.get("tools") or [])
            inside = [self._tool(f"{param}.tools[{i}]", entry) for i, entry in enumerate(tools)]
            inside = [entry for entry in inside if entry["type"] in CALLABLE]
            description = tool.get("description")
            if description is not None:
                check_type(f"{param}.description", description, str)
            name = name_of(param, tool)
            return {"type": kind, "name": name, "description": description, "tools": inside}
        check_hosted(param, kind, (*CALLABLE, "namespace"))
        return tool


CALLABLE = {"function": function, "custom": custom}


def tool_list(param: str, value) -> list:
    check_type(param, value, list)
    if len(value) > MAX_TOOLS:
        message = f"Invalid '{param}': array too long. Expected at most {MAX_TOOLS} tools."
        raise InvalidRequest(message, param, "array_above_max_length")
    return value


def tool_type(param: str, tool) -> str:
    kind = check_type(param, tool, dict).get("type")
    if kind is None:
        raise missing(f"{param}.type")
    return check_type(f"{param}.type", kind, str)


def is_hosted(kind) -> bool:
    """One of OpenAI's, perhaps with a version behind it."""
    return isinstance(kind, str) and any(
        kind == name or kind.startswith(f"{name}_") for name in HOSTED
    )


def check_hosted(param: str, kind: str, supported) -> None:
    """Whether a tool that is not for us may be there at all."""
    if not is_hosted(kind):
        raise wrong_value(f"{param}.type", kind, supported)
    if settings.API.strict_tools:
        message = f"This server cannot run the tool '{kind}'."
        raise InvalidRequest(message, f"{param}.type", "unsupported_value")
    logger.info("left out a tool of type %s: only OpenAI runs it", kind)


def refuse_twins(param: str, names: list[str]) -> None:
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        message = f"Invalid '{param}': two tools are called '{twice[0]}'."
        raise InvalidRequest(message, param, "invalid_value")


class Functions(StrictField):
    """The legacy list of functions; as tools afterwards."""

    def check(self, param: str, value) -> list[dict]:
        entries = enumerate(tool_list(param, value))
        functions = [function(f"{param}[{i}]", entry) for i, entry in entries]
        refuse_twins(param, [entry["name"] for entry in functions])
        return [{"type": "function", "function": entry} for entry in functions]


class ToolChoice(StrictField):
    """none, auto, required, one named tool, or allowed_tools; {mode, name, allowed} afterwards.

    With `nested` as in chat ({type: function, function: {name}}), else as in Responses
    ({type: function, name}).
    """

    modes = ("none", "auto", "required")

    def __init__(self, *, nested: bool = True, **kwargs) -> None:
        self.nested = nested
        super().__init__(**kwargs)

    def check(self, param: str, value) -> dict:
        if isinstance(value, str):
            return {"mode": String(choices=self.modes).check(param, value)}
        if not isinstance(value, dict):
            raise wrong_type(param, "a string or an object", value)
        kind = value.get("type")
        if kind is not None:
            check_type(f"{param}.type", kind, str)
        if kind == "allowed_tools":
            return self._allowed(*self._inside(param, value, kind))
        if kind not in CALLABLE:
            if is_hosted(kind):
                message = f"This server cannot run the tool '{kind}'."
                raise InvalidRequest(message, param, "unsupported_value")
            raise wrong_value(f"{param}.type", kind, (*CALLABLE, "allowed_tools"))
        return {"mode": "required", "name": name_of(*self._inside(param, value, kind))}

    def _inside(self, param: str, value: dict, kind: str) -> tuple[str, dict]:
        if not self.nested:
            return param, value
        if value.get(kind) is None:
            raise missing(f"{param}.{kind}")
        return f"{param}.{kind}", check_type(f"{param}.{kind}", value[kind], dict)

    def _allowed(self, param: str, value: dict) -> dict:
        mode = String(choices=("auto", "required")).check(f"{param}.mode", value.get("mode"))
        tools = check_type(f"{param}.tools", value.get("tools"), list)
        names = []
        for i, tool in enumerate(tools):
            path = f"{param}.tools[{i}]"
            kind = check_type(path, tool, dict).get("type")
            if kind is not None:
                check_type(f"{path}.type", kind, str)
            entry = tool.get(kind) if isinstance(tool.get(kind), dict) else tool
            if kind in (None, *CALLABLE):  # the others are left out, here as there
                names.append(name_of(path, entry))
        return {"mode": mode, "allowed": names}


class FunctionCall(StrictField):
    """The legacy choice: none, auto, or {name}."""

    def check(self, param: str, value) -> dict:
        if isinstance(value, str):
            return {"mode": String(choices=("none", "auto")).check(param, value)}
        check_type(param, value, dict, "a string or an object")
        return {"mode": "required", "name": name_of(param, value)}
