"""Every parameter of chat and text completions: the values that are refused.

What tools and structured output may be is tested beside them.
"""

import openai
import pytest

from openai_api.serializers.chat import ChatCompletionSerializer
from openai_api.serializers.completions import CompletionSerializer

USER = {"role": "user", "content": "Hi"}
TEXT = {"type": "text", "text": "Hi"}
VALID = {
    "chat/completions": {"model": "m", "messages": [USER], "max_tokens": 2},
    "completions": {"model": "m", "prompt": "Hi", "max_tokens": 2},
}
SERIALIZERS = {"chat/completions": ChatCompletionSerializer, "completions": CompletionSerializer}
ELSEWHERE = {
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar", "tools", "tool_choice", "functions", "function_call",
}  # fmt: skip

TYPE, VALUE = "invalid_type", "invalid_value"
UNSUPPORTED, BAD_CHOICE = "unsupported_parameter", "unsupported_value"
MISSING, EMPTY = "missing_required_parameter", "empty_array"
LOW, HIGH = "integer_below_min_value", "integer_above_max_value"
BELOW, ABOVE = "decimal_below_min_value", "decimal_above_max_value"
LONG, MANY = "string_above_max_length", "array_above_max_length"
PAIRS = "object_above_max_properties"


def called(name="f", arguments="{}", **fields) -> dict:
    """A message that calls a function."""
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"function": function} | fields]}


# parameter: [(bad value, code)], and the path of what is wrong where that is not the parameter
SHARED = {
    "model": [([], TYPE), ({}, TYPE), (True, TYPE)],
    "temperature": [([], TYPE), ({}, TYPE), (-0.001, BELOW), (2.001, ABOVE), (1e300, ABOVE)],
    "top_p": [("1", TYPE), (False, TYPE), (-0.1, BELOW), (1.001, ABOVE)],
    "top_k": [("5", TYPE), (1.5, TYPE), (True, TYPE), (-2, LOW), (2**31 + 1, HIGH)],
    "min_p": [("0", TYPE), (-0.1, BELOW), (1.1, ABOVE)],
    "presence_penalty": [("0", TYPE), (-2.1, BELOW), (2.1, ABOVE)],
    "frequency_penalty": [("0", TYPE), (-2.1, BELOW), (2.1, ABOVE)],
    "repetition_penalty": [("1", TYPE), (0, BELOW), (5e-324, BELOW), (101, ABOVE)],
    "length_penalty": [(2, UNSUPPORTED), (0.5, UNSUPPORTED)],
    "use_beam_search": [(True, UNSUPPORTED)],
    "n": [(0, LOW), (-1, LOW), (129, HIGH), ("2", TYPE), (1.5, TYPE), (True, TYPE)],
    "stop": [
        (1, TYPE),
        ({"a": 1}, TYPE),
        (["a", None], TYPE, "stop[1]"),
        ("x" * 257, LONG),
        (["a", "x" * 257], LONG, "stop[1]"),
    ],
    "seed": [("1", TYPE), (1.5, TYPE), (2**63, HIGH), (-(2**63) - 1, LOW)],
    "logit_bias": [
        ([], TYPE),
        ({"1": "2"}, TYPE, "logit_bias.1"),
        ({"1": None}, TYPE, "logit_bias.1"),
        ({"1": -100.5}, BELOW, "logit_bias.1"),
        ({"-1": 1}, VALUE),
        ({" 1": 1}, VALUE),
        ({"259": 1}, VALUE),
        ({str(i): 1 for i in range(1025)}, PAIRS),
    ],
    "stream": [(1, TYPE), ("true", TYPE), ([], TYPE)],
    "stream_options": [
        ("usage", TYPE),
        ([], TYPE),
        ({"include_usage": 1}, TYPE, "stream_options.include_usage"),
        ({"continuous_usage_stats": "x"}, TYPE, "stream_options.continuous_usage_stats"),
        ({"include_obfuscation": "x"}, TYPE, "stream_options.include_obfuscation"),
    ],
    "stop_token_ids": [
        (5, TYPE),
        ("5", TYPE),
        (["5"], TYPE, "stop_token_ids[0]"),
        ([1, 1.5], TYPE, "stop_token_ids[1]"),
        ([-1], LOW, "stop_token_ids[0]"),
        ([259], VALUE),
        ([1] * 129, MANY),
    ],
    "include_stop_str_in_output": [(1, TYPE), ("yes", TYPE)],
    "min_tokens": [("1", TYPE), (1.5, TYPE), (-1, LOW), (2**31 + 1, HIGH)],
    "ignore_eos": [(1, TYPE), ("yes", TYPE)],
    "bad_words": [
        ("word", TYPE),
        ([1], TYPE, "bad_words[0]"),
        (["x" * 257], LONG, "bad_words[0]"),
        (["x"] * 129, MANY),
    ],
    "allowed_token_ids": [
        (5, TYPE),
        (["5"], TYPE, "allowed_token_ids[0]"),
        ([-1], LOW, "allowed_token_ids[0]"),
        ([259], VALUE),
        ([], EMPTY),
    ],
    "skip_special_tokens": [(1, TYPE), ("no", TYPE)],
    "cache_salt": [(1, TYPE), ("x" * 1025, LONG)],
    "request_id": [(1, TYPE), ("", VALUE), ("ü", VALUE), ("a b", VALUE), ("x" * 65, VALUE)],
    "priority": [("1", TYPE), (0.5, TYPE), (2**31 + 1, HIGH), (-(2**31) - 1, LOW)],
    "prompt_logprobs": [("1", TYPE), (True, TYPE), (-1, BAD_CHOICE), (-2, LOW), (21, HIGH)],
    "truncate_prompt_tokens": [("5", TYPE), (1.5, TYPE), (-2, LOW), (0, LOW), (2**31 + 1, HIGH)],
    "truncation_side": [(1, TYPE), ("middle", VALUE), ("", VALUE)],
    "return_token_ids": [(1, TYPE), ("yes", TYPE)],
    "return_tokens_as_token_ids": [(1, TYPE), ("yes", TYPE)],
    "stream_interval": [("1", TYPE), (1.5, TYPE), (0, LOW), (-1, LOW)],
    "echo": [(1, TYPE), ("yes", TYPE)],
    "add_special_tokens": [(1, TYPE), ("yes", TYPE)],
}
CHAT = {
    "messages": [
        ({}, TYPE),
        ([None], TYPE, "messages[0]"),
        ([{"content": "Hi"}], MISSING, "messages[0].role"),
        ([{"role": 1, "content": "Hi"}], TYPE, "messages[0].role"),
        ([{"role": "user", "content": 1}], TYPE, "messages[0].content"),
        ([{"role": "user", "content": [1]}], TYPE, "messages[0].content[0]"),
        ([{"role": "user", "content": [{}]}], MISSING, "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "x"}]}], VALUE, "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "file"}]}], BAD_CHOICE, "messages[0].content[0]"),
        (
            [{"role": "user", "content": [TEXT, {"type": "input_audio"}]}],
            BAD_CHOICE,
            "messages[0].content[1]",
        ),
        ([USER | {"name": 1}], TYPE, "messages[0].name"),
        ([{"role": "assistant"}], MISSING, "messages[0].content"),
        ([{"role": "assistant", "content": 1}], TYPE, "messages[0].content"),
        (
            [{"role": "assistant", "content": "x", "reasoning_content": 1}],
            TYPE,
            "messages[0].reasoning_content",
        ),
        ([{"role": "assistant", "tool_calls": {"a": 1}}], TYPE, "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": ["f"]}], TYPE, "messages[0].tool_calls[0]"),
        ([called(id=1)], TYPE, "messages[0].tool_calls[0].id"),
        ([called(name=1)], TYPE, "messages[0].tool_calls[0].function.name"),
        ([called(arguments=1)], TYPE, "messages[0].tool_calls[0].function.arguments"),
        ([called(arguments="{")], VALUE, "messages[0].tool_calls[0].function.arguments"),
        ([{"role": "tool", "tool_call_id": "call_1"}], MISSING, "messages[0].content"),
        (
            [{"role": "tool", "content": "x", "tool_call_id": 1}],
            TYPE,
            "messages[0].tool_call_id",
        ),
    ],
    "max_completion_tokens": [("5", TYPE), (1.5, TYPE), (0, LOW), (-1, LOW), (2**31 + 1, HIGH)],
    "max_tokens": [("5", TYPE), (True, TYPE), (-1, LOW), (2**31 + 1, HIGH)],
    "logprobs": [(1, TYPE), ("yes", TYPE)],
    "top_logprobs": [("2", TYPE), (1.5, TYPE), (-1, LOW), (21, HIGH)],
    "logprob_token_ids": [(1, TYPE), ([1], VALUE), ([-1], LOW, "logprob_token_ids[0]")],
    "parallel_tool_calls": [(1, TYPE), ("no", TYPE)],
    "store": [(1, TYPE), ("yes", TYPE)],
    "metadata": [
        ([], TYPE),
        ("a", TYPE),
        ({"a": None}, TYPE, "metadata.a"),
        ({"a": "x" * 513}, LONG, "metadata.a"),
        ({"a" * 65: "x"}, LONG),
        ({str(i): "x" for i in range(17)}, PAIRS),
    ],
    "reasoning_effort": [(1, TYPE), ("", VALUE), ("High", VALUE)],
    "include_reasoning": [(0, TYPE), ("no", TYPE)],
    "thinking_token_budget": [("5", TYPE), (1.5, TYPE), (-1, LOW)],
    "modalities": [(["audio"], UNSUPPORTED), (["text", "audio"], UNSUPPORTED), ([], UNSUPPORTED)],
    "audio": [({"voice": "alloy", "format": "wav"}, UNSUPPORTED), ({}, UNSUPPORTED)],
    "web_search_options": [({}, UNSUPPORTED), ({"search_context_size": "low"}, UNSUPPORTED)],
    "chat_template": [(1, TYPE), ("x" * 65_537, LONG), ("{{ messages }}", UNSUPPORTED)],
    "chat_template_kwargs": [
        ([], TYPE),
        ({"a": [1]}, VALUE, "chat_template_kwargs.a"),
        ({"messages": "x"}, VALUE, "chat_template_kwargs.messages"),
    ],
    "documents": [
        ("text", TYPE),
        (["text"], TYPE, "documents[0]"),
        ([{"text": 1}], TYPE, "documents[0].text"),
        ([{"text": "x"}], UNSUPPORTED),  # this template has no place for it
    ],
    "add_generation_prompt": [(1, TYPE), ("yes", TYPE)],
    "continue_final_message": [(1, TYPE), ("yes", TYPE)],
}
COMPLETIONS = {
    "prompt": [
        (1, TYPE),
        ({}, TYPE),
        ([1.5], TYPE, "prompt[0]"),
        ([True], TYPE, "prompt[0]"),
        ([[]], TYPE, "prompt[0]"),
        (["a", [1, "b"]], TYPE, "prompt[1]"),
        ([[1], [-1]], None),
        (["a", ""], None),
        (["x"] * 17, HIGH),
        ("x" * 2048, "context_length_exceeded"),
        ([1] * 2048, "context_length_exceeded"),
    ],
    "prompt_embeds": [("aGVsbG8=", UNSUPPORTED)],
    "max_tokens": [("5", TYPE), (1.5, TYPE), (-1, LOW), (2**31 + 1, HIGH)],
    "best_of": [("2", TYPE), (0, LOW), (129, HIGH), (17, HIGH)],
    "suffix": [(1, TYPE), (["x"], TYPE)],
    "logprobs": [("1", TYPE), (True, TYPE), (-1, LOW), (1.5, TYPE)],
    "logprob_token_ids": [(1, TYPE), ([1], VALUE), ([-1], LOW, "logprob_token_ids[0]")],
}
TABLES = {"chat/completions": SHARED | CHAT, "completions": SHARED | COMPLETIONS}

ASKING = {"logprobs": True}
# path, fields that do not go together, the param and the code of the answer
CONFLICTS = [
    (
        "chat/completions",
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        VALUE,
    ),
    ("chat/completions", {"logprobs": False, "top_logprobs": 1}, "top_logprobs", VALUE),
    ("chat/completions", ASKING | {"logprob_token_ids": [259]}, "logprob_token_ids", VALUE),
    ("chat/completions", ASKING | {"logprob_token_ids": [1] * 129}, "logprob_token_ids", MANY),
    ("chat/completions", {"stream": True, "prompt_logprobs": 0}, "prompt_logprobs", BAD_CHOICE),
    ("completions", {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs", BAD_CHOICE),
    ("completions", {"logprobs": 1, "logprob_token_ids": [259]}, "logprob_token_ids", VALUE),
    ("completions", {"logprobs": 1, "logprob_token_ids": [1] * 129}, "logprob_token_ids", MANY),
    ("completions", {"n": 3, "best_of": 2}, "best_of", LOW),
    ("completions", {"n": 2, "prompt": ["x"] * 9}, "n", HIGH),
    ("completions", {"best_of": 2, "prompt": ["x"] * 9}, "best_of", HIGH),
    ("completions", {"suffix": "x", "echo": True}, "suffix", BAD_CHOICE),
    ("completions", {"suffix": "x", "prompt": [1, 2]}, "suffix", BAD_CHOICE),
]


async def refusal(client, path: str, fields: dict) -> tuple[str | None, str | None]:
    """The param and the code of the 400."""
    with pytest.raises(openai.BadRequestError) as caught:
        await client.post(f"/{path}", body=VALID[path] | fields, cast_to=object)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.type == "invalid_request_error"
    assert caught.value.body["message"]
    return caught.value.param, caught.value.code


@pytest.mark.parametrize("name", list(SHARED | CHAT | COMPLETIONS))
async def test_bad_values_are_refused_by_name(client, name):
    cases = [(path, *row) for path, table in TABLES.items() for row in table.get(name, ())]
    refused = [await refusal(client, path, {name: value}) for path, value, *_ in cases]

    assert refused == [((param or [name])[0], code) for _, _, code, *param in cases]


@pytest.mark.parametrize(("path", "fields", "param", "code"), CONFLICTS)
async def test_what_does_not_go_together_is_refused(client, path, fields, param, code):
    assert await refusal(client, path, fields) == (param, code)


@pytest.mark.parametrize(
    ("call", "param"),
    [({"id": "call_1"}, "function"), ({"function": {"arguments": "{}"}}, "function.name")],
)
async def test_what_is_missing_in_a_call_is_missing(client, call, param):
    fields = {"messages": [{"role": "assistant", "tool_calls": [call]}]}
    refused = await refusal(client, "chat/completions", fields)
    assert refused == (f"messages[0].tool_calls[0].{param}", MISSING)


async def test_the_path_to_a_legacy_call_is_its_own(client):
    call = {"name": 1, "arguments": "{}"}
    fields = {"messages": [{"role": "assistant", "function_call": call}]}
    refused = await refusal(client, "chat/completions", fields)
    assert refused == ("messages[0].function_call.name", TYPE)


async def test_a_call_without_an_id_may_say_so(client):
    fields = {"messages": [called(id=None), USER]}
    body = VALID["chat/completions"] | fields
    assert await client.post("/chat/completions", body=body, cast_to=object)


@pytest.mark.parametrize("path", VALID)
def test_every_parameter_has_a_row(path):
    serializer = SERIALIZERS[path]
    known = set(serializer().fields) | set(serializer.UNSUPPORTED)
    assert known - ELSEWHERE == set(TABLES[path])


@pytest.mark.parametrize("path", VALID)
async def test_an_empty_name_of_a_model_is_no_model(client, path):
    with pytest.raises(openai.NotFoundError) as caught:
        await client.post(f"/{path}", body=VALID[path] | {"model": ""}, cast_to=object)
    assert caught.value.code == "model_not_found"
