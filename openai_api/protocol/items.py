"""Responses items to chat messages."""

import json
import re

from openai_api.errors import InvalidRequest
from openai_api.policies.parsers import load_json
from openai_api.sealed import unseal
from openai_api.tools import CUSTOM_INPUT, shown_name


def to_messages(items: list[dict], instructions: str | None) -> list[dict]:
    """The conversation as the chat template wants it.

    What the assistant produced in one turn (reasoning, a text, calls) becomes one message.
    """
    messages = [{"role": "system", "content": instructions}] if instructions else []
    turn: dict | None = None
    for item in map(as_known, items):
        if item["type"] in SILENT:
            continue
        if not is_of_assistant(item):
            turn = None
            messages.append(MESSAGES[item["type"]](item))
            continue
        if turn is None or _begins_new_turn(turn, item):
            turn = {"role": "assistant", "content": ""}
            messages.append(turn)
        ADDITIONS[item["type"]](turn, item)
    return messages


def is_of_assistant(item: dict) -> bool:
    return item["type"] in ADDITIONS and item.get("role", "assistant") == "assistant"


def as_known(item: dict) -> dict:
    """An item of another server's tool as the call, result or text that a model can read."""
    if item["type"] in SILENT or item["type"] in MESSAGES or item["type"] in ADDITIONS:
        return item
    tool, _, rest = item["type"].partition("_call")
    call_id = item.get("call_id") or item["id"]
    said = {key: value for key, value in item.items() if key not in NOT_SAID}
    if rest == "_output" or item["type"].endswith("_output"):
        return {"type": "function_call_output", "call_id": call_id, "output": _told(said)}
    if "call_id" in item:
        call = {"type": "function_call", "call_id": call_id, "name": tool}
        return call | {"arguments": _told(said)}
    text = f"[{item['type']} {_told(said)}]"
    return {"type": "message", "role": "assistant", "content": [{"text": text}]}


def _told(value: dict) -> str:
    """As JSON, without pictures and other data that is no text."""
    return re.sub(r"[A-Za-z0-9+/=_-]{1024,}", "...", json.dumps(value, ensure_ascii=False))


def text_of(item: dict) -> str:
    return "".join(part["text"] for part in item["content"])


def _begins_new_turn(turn: dict, item: dict) -> bool:
    """A second text, or reasoning after something was said, belongs to another turn."""
    said = turn["content"] or "tool_calls" in turn
    return bool(said) and item["type"] in ("message", "reasoning")


def _message(item: dict) -> dict:
    return {"role": item["role"], "content": text_of(item)}


def _tool_message(item: dict) -> dict:
    return {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}


def _add_text(turn: dict, item: dict) -> None:
    turn["content"] = text_of(item)


def _add_reasoning(turn: dict, item: dict) -> None:
    if text := text_of(item):
        turn["reasoning_content"] = turn.get("reasoning_content", "") + text


def _add_call(turn: dict, item: dict) -> None:
    name = shown_name(item.get("namespace"), item["name"])
    if item["type"] == "custom_tool_call":
        arguments = {CUSTOM_INPUT: item["input"]}
    else:
        arguments = _arguments(item["arguments"])
    call = {
        "id": item["call_id"],
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    turn.setdefault("tool_calls", []).append(call)


def _arguments(text: str) -> dict:
    """What a call of ours was cut in is no JSON, but it was said."""
    try:
        value = load_json(text or "{}")
    except (ValueError, RecursionError):
        return {"": text}
    return value if isinstance(value, dict) else {"": value}


def check_calls(items: list[dict], param: str = "input") -> None:
    """Raise InvalidRequest for an output whose call is nowhere in the conversation."""
    call_ids = _call_ids(items)
    for item in items:
        if item["type"] in OUTPUTS and item["call_id"] not in call_ids:
            message = f"No tool call found for function call output with call_id {item['call_id']}."
            raise InvalidRequest(message, param)


def without_orphans(items: list[dict]) -> list[dict]:
    """The items without outputs of calls that are not among them."""
    call_ids = _call_ids(items)
    return [i for i in items if i["type"] not in OUTPUTS or i["call_id"] in call_ids]


def _call_ids(items: list[dict]) -> set[str]:
    """Of all calls, also those of other servers' tools."""
    return {item["call_id"] for item in map(as_known, items) if item["type"] in CALLS}


CALLS = ("function_call", "custom_tool_call")
OUTPUTS = ("function_call_output", "custom_tool_call_output")


def _summary(item: dict) -> dict:
    text = unseal("compaction", item["encrypted_content"], "input")
    return {"role": "system", "content": f"Summary of the conversation so far:\n{text}"}


# What is no part of the talk, but changes how it goes on
SILENT = ("additional_tools", "configuration_update", "compaction_trigger")
FOREIGN = re.compile(r"[a-z0-9_]{1,56}_(call|output)|mcp_[a-z_]{1,56}|program")
NOT_SAID = ("id", "type", "status", "call_id", "execution", "caller", "fingerprint")
MESSAGES = {"message": _message, "compaction": _summary, **dict.fromkeys(OUTPUTS, _tool_message)}
ADDITIONS = {
    "message": _add_text,
    "reasoning": _add_reasoning,
    **dict.fromkeys(CALLS, _add_call),
}
