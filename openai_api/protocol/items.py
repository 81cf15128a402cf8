"""Responses items to chat messages."""

import json


def to_messages(items: list[dict], instructions: str | None) -> list[dict]:
    """The conversation as the chat template wants it.

    What the assistant produced in one turn (reasoning, a text, calls) becomes one message.
    """
    messages = [{"role": "system", "content": instructions}] if instructions else []
    turn: dict | None = None
    for item in items:
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
    return item["type"] in ("reasoning", "function_call") or item.get("role") == "assistant"


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
    function = {"name": item["name"], "arguments": json.loads(item["arguments"] or "{}")}
    call = {"id": item["call_id"], "type": "function", "function": function}
    turn.setdefault("tool_calls", []).append(call)


MESSAGES = {"message": _message, "function_call_output": _tool_message}
ADDITIONS = {"message": _add_text, "reasoning": _add_reasoning, "function_call": _add_call}
