"""Items of the Responses API, as they are sent: ours, re-sent dumps of ours, and other servers'."""

from openai_api.protocol.ids import new_id
from openai_api.protocol.items import FOREIGN
from openai_api.sealed import unseal
from openai_api.serializers.content import content_text
from openai_api.serializers.fields import StrictField, check_type, wrong_value
from openai_api.serializers.tools import ResponseTools

ROLES = ("user", "assistant", "system", "developer")
PHASES = ("commentary", "final_answer")


def message_item(param: str, item: dict) -> dict:
    """A message in either form, short or full; its content becomes one part of text."""
    role = check_type(f"{param}.role", item.get("role"), str)
    if role not in ROLES:
        raise wrong_value(f"{param}.role", role, ROLES)
    text = content_text(f"{param}.content", item.get("content"))
    part = {"type": "input_text", "text": text}
    if role == "assistant":
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    phase = {"phase": item["phase"]} if item.get("phase") in PHASES else {}
    return {**_head(item, "msg", "message"), "role": role, "content": [part], **phase}


def function_call_item(param: str, item: dict) -> dict:
    """The arguments are not parsed: those of an answer that was cut are no JSON, and come back."""
    return {**_head(item, "fc", "function_call"), **_call(param, item, "arguments")}


def custom_call_item(param: str, item: dict) -> dict:
    return {**_head(item, "ctc", "custom_tool_call"), **_call(param, item, "input")}


def _call(param: str, item: dict, text: str) -> dict:
    keys = ("call_id", "name", text)
    fields = {key: check_type(f"{param}.{key}", item.get(key), str) for key in keys}
    if item.get("namespace") is not None:
        fields["namespace"] = check_type(f"{param}.namespace", item["namespace"], str)
    return fields


def call_output_item(param: str, item: dict) -> dict:
    call_id = check_type(f"{param}.call_id", item.get("call_id"), str)
    output = content_text(f"{param}.output", item.get("output"))
    return {**_head(item, "fco", item["type"]), "call_id": call_id, "output": output}


def reasoning_item(param: str, item: dict) -> dict:
    """Re-sent reasoning: everything in it may be null or missing."""
    parts = check_type(f"{param}.content", item.get("content") or [], list)
    text = content_text(f"{param}.content", parts)
    if not text and item.get("encrypted_content") is not None:
        path = f"{param}.encrypted_content"
        text = unseal("reasoning", check_type(path, item["encrypted_content"], str), path)
    content = [{"type": "reasoning_text", "text": text}] if text else []
    return {**_head(item, "rs", "reasoning"), "summary": [], "content": content}


def compaction_item(param: str, item: dict) -> dict:
    path = f"{param}.encrypted_content"
    sealed = check_type(path, item.get("encrypted_content"), str)
    unseal("compaction", sealed, path)
    head = _head(item, "cmp", "compaction")
    return {"id": head["id"], "type": "compaction", "encrypted_content": sealed}


def compaction_trigger_item(param: str, item: dict) -> dict:
    return {"id": _head(item, "cmpt", "")["id"], "type": "compaction_trigger"}


def reference_item(param: str, item: dict) -> dict:
    """Stands for an item of a stored response or conversation."""
    return {"type": "item_reference", "id": check_type(f"{param}.id", item.get("id"), str)}


def additional_tools_item(param: str, item: dict) -> dict:
    tools = ResponseTools().check(f"{param}.tools", item.get("tools"))
    return {**_head(item, "at", "additional_tools"), "role": "developer", "tools": tools}


def tool_search_output_item(param: str, item: dict) -> dict:
    tools = ResponseTools().check(f"{param}.tools", item.get("tools"))
    return {**foreign_item(param, item), "tools": tools}


def configuration_update_item(param: str, item: dict) -> dict:
    """Kept as it is; what it asks for is checked where it comes into effect."""
    given = {
        key: check_type(f"{param}.{key}", item[key], dict)
        for key in ("reasoning", "text")
        if item.get(key) is not None
    }
    return {**_head(item, "cu", "configuration_update"), **given}


def foreign_item(param: str, item: dict) -> dict:
    """What tools of other servers, or of the client alone, left in the conversation."""
    if item.get("call_id") is not None:
        check_type(f"{param}.call_id", item["call_id"], str)
    head = _head(item, "item", item["type"])
    return {**item, "id": head["id"]}


def _head(item: dict, prefix: str, type_: str) -> dict:
    given = item.get("id")  # one that is too long to be kept is replaced, as a missing one
    item_id = given if isinstance(given, str) and 0 < len(given) <= 64 else new_id(prefix)
    return {"id": item_id, "type": type_, "status": "completed"}


ITEMS = {
    "message": message_item,
    "function_call": function_call_item,
    "function_call_output": call_output_item,
    "custom_tool_call": custom_call_item,
    "custom_tool_call_output": call_output_item,
    "reasoning": reasoning_item,
    "compaction": compaction_item,
    "compaction_trigger": compaction_trigger_item,
    "item_reference": reference_item,
    "additional_tools": additional_tools_item,
    "configuration_update": configuration_update_item,
    "tool_search_output": tool_search_output_item,
}


class Item(StrictField):
    """One item. Without a type it is a message, or, with nothing but an id, a reference."""

    def check(self, param: str, value) -> dict:
        check_type(param, value, dict)
        if value.get("id") is not None:
            check_type(f"{param}.id", value["id"], str)
        kind = value.get("type")
        if kind is None:
            is_message = "role" in value or "content" in value or "id" not in value
            kind = "message" if is_message else "item_reference"
        check_type(f"{param}.type", kind, str)
        if (checker := ITEMS.get(kind)) is not None:
            return checker(param, value)
        if FOREIGN.fullmatch(kind):
            return foreign_item(param, value)
        raise wrong_value(f"{param}.type", kind, ITEMS)
