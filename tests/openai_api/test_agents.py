"""What agents send: whole bodies as JSON, with all that this server does not run itself."""

import json
from pathlib import Path

import pytest
from openai.types.responses import Response

from openai_api.sealed import seal
from tests.openai_api.showing import Listener, listening_engine
from tests.openai_api.wire import event_of, exchange

BODIES = Path(__file__).parent / "agents"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"location": "Rome"}}\n</tool_call>'


@pytest.fixture
def script():
    return Listener()


@pytest.fixture
def engine(script):
    with listening_engine(script) as engine:
        yield engine


def sealed(value):
    """The body with what the server would have sealed for this client."""
    if isinstance(value, dict):
        return {key: sealed(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [sealed(entry) for entry in value]
    if isinstance(value, str) and value.startswith("SEALED: "):
        return seal("reasoning", value.removeprefix("SEALED: "))
    return value


def body_of(agent: str) -> dict:
    return sealed(json.loads((BODIES / f"{agent}.json").read_text()))


async def answer_to(body: dict) -> dict:
    """The final Response of a request that has to be accepted."""
    async with exchange("/v1/responses", body) as answer:
        status = await answer.status()
        writes = [write async for write in answer.writes()]
    assert status == 200, writes
    response = event_of(writes[-2])["response"] if body["stream"] else json.loads(writes[0])
    Response.model_validate_json(json.dumps(response), strict=True)
    assert response["status"] == "completed"
    return response


def said(messages: list[dict]) -> list:
    """What was told, message by message: the role, thoughts, the text, and calls or their id."""
    return [
        tuple(
            part
            for part in (
                message["role"],
                message.get("reasoning_content"),
                message["content"],
                *[call_of(call) for call in message.get("tool_calls", ())],
                message.get("tool_call_id"),
            )
            if part
        )
        for message in messages
    ]


def call_of(call: dict) -> tuple:
    return call["id"], call["function"]["name"], call["function"]["arguments"]


async def test_codex(client, script):
    body = body_of("codex")
    items = body["input"]
    response = await answer_to(body)

    assert said(script.messages) == [
        ("system", body["instructions"]),
        (
            "system",
            "<permissions instructions>Filesystem sandboxing: workspace-write.</permissions "
            "instructions><skills_instructions>none</skills_instructions>",
        ),
        (
            "user",
            "<environment_context>\n  <cwd>/repo</cwd>\n  <shell>bash</shell>\n"
            "</environment_context>",
        ),
        ("user", "Fix the failing test."),
        (
            "assistant",
            "I should look at the files first.",
            "I'll look at the repository.",
            ("call_exec", "exec_command", {"cmd": "rg --files", "yield_time_ms": 1000}),
        ),
        (
            "tool",
            "Chunk ID: 1a2b\nProcess exited with code 0\nOutput:\nsrc/sum.py\ntests/test_sum.py",
            "call_exec",
        ),
        ("assistant", ("call_shell", "local_shell", {"action": items[8]["action"]})),
        ("tool", "1 failed, 3 passed", "call_shell"),
        ("assistant", ("call_shell_2", "local_shell", {"action": items[10]["action"]})),
        ("tool", json.dumps({"output": items[11]["output"]}), "call_shell_2"),
        (
            "assistant",
            f"[web_search_call {json.dumps({'action': items[12]['action']})}]",
        ),
        (
            "assistant",
            ("call_search", "tool_search", {"arguments": {"query": "pull request", "limit": 3}}),
        ),
        ("tool", script.messages[12]["content"], "call_search"),
        ("assistant", ("call_issue", "mcp__tracker__read_issue", {"number": 7})),
        ("tool", '{"title":"add() subtracts"}', "call_issue"),
        ("assistant", ("call_patch", "apply_patch", {"input": items[18]["input"]})),
        ("tool", items[19]["output"], "call_patch"),
        ("user", "Now open a pull request."),
    ]
    assert "create_pull_request" in script.messages[12]["content"]
    assert script.tools == [
        "exec_command",
        "apply_patch",
        "mcp__tracker__read_issue",
        "list_agents",
        "mcp__github__create_pull_request",
    ]
    assert response["tools"] == body["tools"]
    assert response["parallel_tool_calls"] is False
    assert response["prompt_cache_key"] == body["prompt_cache_key"]


async def test_a_patch_of_codex_is_a_custom_call(client, script):
    patch = "*** Begin Patch\n*** Add File: a.txt\n+one\n*** End Patch"
    arguments = json.dumps({"input": patch})
    script.answer = lambda prompt: (
        f'<tool_call>\n{{"name": "apply_patch", "arguments": {arguments}}}\n</tool_call>'
    )
    [call] = (await answer_to(body_of("codex")))["output"]

    assert (call["type"], call["name"], call["input"]) == ("custom_tool_call", "apply_patch", patch)


async def test_a_call_in_a_namespace_is_answered_with_it(client, script):
    script.answer = lambda prompt: (
        '<tool_call>\n{"name": "mcp__github__create_pull_request", "arguments": {"title": "Fix"}}\n'
        "</tool_call>"
    )
    [call] = (await answer_to(body_of("codex")))["output"]

    assert (call["namespace"], call["name"]) == ("mcp__github", "create_pull_request")
    assert call["arguments"] == '{"title": "Fix"}'


async def test_the_agents_sdk(client, script):
    body = body_of("agents_sdk")
    items = body["input"]
    response = await answer_to(body)

    assert said(script.messages) == [
        ("system", body["instructions"]),
        ("user", "What is the weather in Tokyo, and who do I ask about my bill?"),
        (
            "assistant",
            "Let me check the weather.",
            ("call_fWVOx4bDAAgcEVsMdpIEmCu6", "get_weather", {"city": "Tokyo"}),
            ("call_Hq3cDAAgcEVsMdpIEmCu7", "transfer_to_billing_agent", {}),
        ),
        ("tool", "The weather in Tokyo is sunny.", "call_fWVOx4bDAAgcEVsMdpIEmCu6"),
        ("tool", '{"assistant": "Billing agent"}', "call_Hq3cDAAgcEVsMdpIEmCu7"),
        (
            "assistant",
            f"[web_search_call {json.dumps({'action': items[7]['action']})}]",
        ),
    ]
    assert script.tools == ["get_weather", "transfer_to_billing_agent"]
    assert response["tools"] == body["tools"]
    assert (response["store"], response["parallel_tool_calls"]) == (True, True)


async def test_langchain(client, script):
    response = await answer_to(body_of("langchain"))

    assert said(script.messages) == [
        ("system", "You answer questions about a database."),
        ("user", "How many users are there?"),
        (
            "assistant",
            "Count the rows of users.",
            "I will query the table.",
            ("call_sql", "run_sql", {"query": "SELECT count(*) FROM users"}),
        ),
        ("tool", "[(42,)]", "call_sql"),
        ("assistant", "I may not name them."),
        ("user", "And how many are new?"),
    ]
    assert script.tools == ["run_sql"]
    assert (script.prompts[-1]["effort"], response["temperature"]) == ("low", 0)


async def test_vercel(client, script):
    """It names what the server has stored by id, and repeats only what is new."""
    body = body_of("vercel")
    items = body["input"]
    script.answer = lambda prompt: f"<think>\nHot?\n</think>\n\nLet me see.\n{CALL}"
    first = await answer_to(body | {"input": items[:2]})
    script.answer = lambda prompt: "Little."
    for item, output in zip(items[2:5], first["output"], strict=True):
        item["id"] = output["id"]
    call_id = items[5]["call_id"] = first["output"][2]["call_id"]
    second = await answer_to(body)

    assert said(script.messages) == [
        ("system", "You are a travel guide."),
        ("user", "What is the weather in Rome?"),
        ("assistant", "Hot?", "Let me see.", (call_id, "weather", {"location": "Rome"})),
        ("tool", '{"temperature":31}', call_id),
        ("user", "And what should I wear?"),
    ]
    assert script.tools == ["weather"]
    assert second["output"][0]["content"][0]["text"] == "Little."
