"""Responses and events as the Open Responses specification wants them, where it is stricter."""

import json

import pytest

from inference import service
from tests.helpers import FAILURE, scripted_engine
from tests.openai_api.wire import event_of, exchange

RESOURCE = {
    "id", "object", "created_at", "completed_at", "status", "background", "error",
    "incomplete_details", "instructions", "max_output_tokens", "max_tool_calls", "model", "output",
    "parallel_tool_calls", "previous_response_id", "prompt_cache_key", "reasoning",
    "safety_identifier", "service_tier", "store", "temperature", "text", "tool_choice", "tools",
    "top_logprobs", "top_p", "truncation", "usage", "user", "metadata", "presence_penalty",
    "frequency_penalty",
}  # fmt: skip
STATUSES = {"queued", "in_progress", "completed", "incomplete", "failed"}
EFFORTS = {None, "none", "low", "medium", "high", "xhigh"}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
JSON_SCHEMA = {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}
WEATHER = {"type": "function", "name": "weather", "parameters": SCHEMA}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"a": 1}}\n</tool_call>'
CASES = {
    "plain": ("Hello", {}),
    "everything set": (
        "Hello",
        {
            "instructions": "Be brief.",
            "max_tool_calls": 3,
            "metadata": {"a": "b"},
            "presence_penalty": 0.5,
            "prompt_cache_key": "key",
            "reasoning": {"effort": "xhigh"},
            "safety_identifier": "me",
            "temperature": 1,
            "top_p": 1,
            "truncation": "auto",
            "user": "me",
        },
    ),
    "tool": (f"Wait.\n{CALL}", {"tools": [WEATHER]}),
    "named tool": (
        CALL,
        {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}},
    ),
    "reasoning": ("<think>\nWell.\n</think>\n\nHello", {"reasoning": {"summary": "auto"}}),
    "sealed reasoning": (
        "<think>\nWell.\n</think>\n\nHello",
        {"include": ["reasoning.encrypted_content"]},
    ),
    "json_schema": ('{"a": 1}', {"text": {"format": JSON_SCHEMA}}),
    "logprobs": ("Hé", {"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
    "cut": ("Hello", {"max_output_tokens": 2}),
    "failed": (f"Hel{FAILURE}", {}),
}


@pytest.fixture
def engine(name):
    engine = scripted_engine(lambda prompt: CASES[name][0])
    service.install(engine)
    yield engine
    service.install(None)
    engine.close()


async def answered(name: str, **fields) -> list[bytes]:
    body = {"model": "m", "input": "Hi", **CASES[name][1], **fields}
    async with exchange("/v1/responses", body) as answer:
        assert await answer.status() == 200
        return [write async for write in answer.writes()]


@pytest.mark.parametrize("name", CASES)
async def test_a_response_has_all_that_is_asked_of_it(client, name):
    [body] = await answered(name)
    response = json.loads(body)
    stored = await client.responses.retrieve(response["id"])

    check_resource(response)
    assert stored.to_dict(mode="json") == response
    assert {"cut": "incomplete", "failed": "failed"}.get(name, "completed") == response["status"]


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("name", CASES)
async def test_every_event_has_all_that_is_asked_of_it(client, name, background):
    writes = await answered(name, stream=True, background=background)
    events = [event_of(write) for write in writes[:-1]]
    for event in events:
        if "response" in event:
            check_resource(event["response"])
        if "item" in event:
            check_item(event["item"])
        if "part" in event:
            check_part(event["part"])
        check_logprobs(event.get("logprobs", []))

    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1


@pytest.mark.parametrize("name", ["tool"])
async def test_what_is_known_of_a_function_is_echoed_and_the_rest_is_null(client, name):
    response = json.loads((await answered(name))[0])

    assert response["tools"] == [WEATHER | {"description": None, "strict": None}]


def check_resource(response: dict) -> None:
    assert RESOURCE - response.keys() == set()
    assert response["object"] == "response"
    assert response["status"] in STATUSES
    assert is_integer(response["created_at"])
    assert response["completed_at"] is None or is_integer(response["completed_at"])
    assert (response["completed_at"] is None) == (response["status"] != "completed")
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        assert is_number(response[name])
    assert is_integer(response["top_logprobs"])
    for name in ("background", "parallel_tool_calls", "store"):
        assert isinstance(response[name], bool)
    assert all(isinstance(value, str) for value in response["metadata"].values())
    check_echo(response)
    check_end(response)
    for item in response["output"]:
        check_item(item)


def check_echo(response: dict) -> None:
    assert response["text"]["format"]["type"] in ("text", "json_schema")
    if response["text"]["format"]["type"] == "json_schema":
        assert response["text"]["format"]["schema"] == SCHEMA
    for tool in response["tools"]:
        assert tool["type"] == "function"
        assert {"name", "description", "parameters", "strict"} <= tool.keys()
    reasoning = response["reasoning"]
    assert reasoning is None or {"effort", "summary"} == reasoning.keys()
    assert reasoning is None or reasoning["effort"] in EFFORTS
    assert response["truncation"] in ("auto", "disabled")
    assert response["service_tier"] == "default"


def check_end(response: dict) -> None:
    """What is only known when it has ended."""
    usage, error = response["usage"], response["error"]
    if usage is not None:
        assert is_integer(usage["input_tokens_details"]["cached_tokens"])
        assert is_integer(usage["output_tokens_details"]["reasoning_tokens"])
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert (error is not None) == (response["status"] == "failed")
    assert error is None or {"code", "message"} == error.keys()
    details = response["incomplete_details"]
    assert (details is not None) == (response["status"] == "incomplete")
    assert details is None or details == {"reason": "max_output_tokens"}


def check_item(item: dict) -> None:
    assert item["id"]
    assert item["status"] in ("in_progress", "completed", "incomplete")
    for name in ("phase", "encrypted_content", "content", "logprobs", "namespace"):
        assert item.get(name, "") is not None
    if item["type"] == "function_call":
        assert item["call_id"] and item["name"] and isinstance(item["arguments"], str)
    elif item["type"] == "message":
        assert item["role"] == "assistant"
    else:
        assert (item["type"], item["summary"]) == ("reasoning", [])
    for part in item.get("content", []):
        check_part(part)


def check_part(part: dict) -> None:
    assert isinstance(part["text"], str)
    if part["type"] == "output_text":
        assert part["annotations"] == []
        check_logprobs(part["logprobs"])
    else:
        assert part.keys() == {"type", "text"}
        assert part["type"] == "reasoning_text"


def check_logprobs(entries: list[dict]) -> None:
    for entry in entries:
        assert is_number(entry["logprob"])
        assert all(is_integer(byte) for byte in entry["bytes"])
        for other in entry["top_logprobs"]:
            assert other.keys() == {"token", "logprob", "bytes"}
            assert is_number(other["logprob"])


def is_integer(value) -> bool:
    return type(value) is int


def is_number(value) -> bool:
    return type(value) in (int, float)
