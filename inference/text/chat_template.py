"""Messages to token ids, through the model's own chat template."""

import json
from collections.abc import Mapping
from functools import reduce
from typing import Any

from inference.errors import InvalidPrompt

Message = dict[str, Any]


def render(tokenizer: Any, messages: list[Message], options: Mapping[str, Any]) -> str:
    """The prompt's text, by default ready for an answer of the assistant.

    `options` go to the template: `tools`, `documents`, `add_generation_prompt`,
    `continue_final_message`, a `chat_template` in place of the model's, and the template's own.

    Templates differ in what they take, so three readings are tried, most faithful first: as sent;
    with `developer` called `system` and all of these merged into one leading message; and with
    tool arguments as JSON text. A template that knows no tools gets them as a system message.
    Raises InvalidPrompt with the template's own words.
    """
    template = str(options.get("chat_template") or tokenizer.chat_template or "")
    if not template:
        raise InvalidPrompt("This model has no chat template; use /v1/completions.")
    options = {"add_generation_prompt": True, **options}
    if "tools" not in template:
        messages = _with_instructions(messages, options.pop("tools", None))
    if "tool" not in template:
        messages = [_as_plain_text(message) for message in messages]
    messages = _known_roles(template, messages)
    first_error: Exception | None = None
    for readings in ((), (_merge_system,), (_merge_system, _arguments_as_text)):
        try:
            read = reduce(lambda messages, reading: reading(messages), readings, messages)
            return tokenizer.apply_chat_template(read, tokenize=False, **options)
        except Exception as exc:  # a template is a program: it may divide by zero
            first_error = first_error or exc
    raise InvalidPrompt(f"The model's chat template refused the messages: {first_error}")


def encode(tokenizer: Any, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Text to token ids. A rendered template already holds its special tokens.

    A fast tokenizer is asked itself, unless it would cut or pad; see `detokenizer.decode`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.truncation is None and backend.padding is None:
        return list(backend.encode(text, add_special_tokens=add_special_tokens).ids)
    return tokenizer.encode(text, add_special_tokens=add_special_tokens)


def _known_roles(template: str, messages: list[Message]) -> list[Message]:
    """Most templates silently drop a `developer` message: it has to be called what they know."""
    if "developer" in template:
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


TOOL_INSTRUCTIONS = """\
You may call these functions:
<tools>
{tools}
</tools>

To call one, answer with its name and its arguments as JSON:
<tool_call>
{{"name": <name>, "arguments": <object>}}
</tool_call>"""


def _with_instructions(
    messages: list[Message], tools: list[dict[str, Any]] | None
) -> list[Message]:
    """For templates that show no tools: a system message does, in Hermes's form."""
    if not tools:
        return messages
    shown = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    system = {"role": "system", "content": TOOL_INSTRUCTIONS.format(tools=shown)}
    return _merge_system([*messages, system])


def _as_plain_text(message: Message) -> Message:
    """For templates that know no calls: a call or its result as text, in Hermes's form."""
    if message["role"] == "tool":
        content = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": content}
    if "tool_calls" not in message:
        return message
    calls = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in message["tool_calls"]
    ]
    content = "\n".join([message["content"], *calls] if message["content"] else calls)
    return {"role": "assistant", "content": content}
