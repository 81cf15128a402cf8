"""Messages to token ids, through the model's own chat template."""

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError

from inference.errors import InvalidPrompt

Message = dict[str, Any]


def render(tokenizer: Any, messages: list[Message], template_kwargs: Mapping[str, Any]) -> str:
    """The prompt's text, ready for an answer of the assistant.

    Templates differ in what they take, so three readings are tried, most faithful first: as sent;
    with `developer` called `system` and all of these merged into one leading message; and with
    tool arguments as JSON text. Raises InvalidPrompt with the template's own words.
    """
    if not tokenizer.chat_template:
        raise InvalidPrompt("This model has no chat template; use /v1/completions.")
    readings = [_known_roles(tokenizer, messages)]
    readings.append(_merge_system(readings[0]))
    readings.append(_arguments_as_text(readings[1]))
    first_error: Exception | None = None
    for reading in readings:
        try:
            return tokenizer.apply_chat_template(
                reading, tokenize=False, add_generation_prompt=True, **template_kwargs
            )
        except (TemplateError, TypeError, ValueError, KeyError, RecursionError) as exc:
            first_error = first_error or exc
    raise InvalidPrompt(f"The model's chat template refused the messages: {first_error}")


def encode(tokenizer: Any, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Text to token ids. A rendered template already holds its special tokens."""
    return tokenizer.encode(text, add_special_tokens=add_special_tokens)


def _known_roles(tokenizer: Any, messages: list[Message]) -> list[Message]:
    """Most templates silently drop a `developer` message: it has to be called what they know."""
    if "developer" in str(tokenizer.chat_template):
        return messages
    return [m | {"role": "system"} if m["role"] == "developer" else m for m in messages]


def _merge_system(messages: list[Message]) -> list[Message]:
    """One leading system message, as many templates demand."""
    system = [m for m in messages if m["role"] in ("system", "developer")]
    if not system:
        return messages
    content = "\n\n".join(m["content"] for m in system if m["content"])
    others = [m for m in messages if m["role"] not in ("system", "developer")]
    return [{"role": "system", "content": content}, *others]


def _arguments_as_text(messages: list[Message]) -> list[Message]:
    """Tool arguments are rendered from an object or from text, depending on the template."""

    def as_text(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = function["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return call | {"function": function | {"arguments": arguments}}

    return [
        m | {"tool_calls": [as_text(call) for call in m["tool_calls"]]} if "tool_calls" in m else m
        for m in messages
    ]
