"""Every refusal is in OpenAI's shape, names the field, and is no 5xx."""

import json

import httpx2
import openai
import pytest

from inference import errors as inference_errors
from inference.engine.client import QueueLimits
from openai_api import response_requests
from openai_api.errors import TRANSLATIONS
from openai_api.policies.parsers import MAX_VALUES
from tests.helpers import in_process_client

USER = {"role": "user", "content": "Hi"}
CHAT = {"model": "m", "messages": [USER]}
RESPONSE = {"model": "m", "input": "Hi"}
COMPLETION = {"model": "m", "prompt": "Hi"}

ARGUMENTS = "messages[1].tool_calls[0].function.arguments"


def called(arguments: str) -> list[dict]:
    """A conversation in which a tool was called."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [USER, {"role": "assistant", "tool_calls": [call]}, USER]


# path, what is sent instead of a valid body's field, the param and the code of the answer
REFUSED = [
    ("chat/completions", {"model": None}, "model", "missing_required_parameter"),
    ("chat/completions", {"model": 1}, "model", "invalid_type"),
    ("chat/completions", {"messages": None}, "messages", "missing_required_parameter"),
    ("chat/completions", {"messages": []}, "messages", "empty_array"),
    ("chat/completions", {"messages": "Hi"}, "messages", "invalid_type"),
    ("chat/completions", {"messages": [USER, "Hi"]}, "messages[1]", "invalid_type"),
    (
        "chat/completions",
        {"messages": [USER, {"role": "robot", "content": "Hi"}]},
        "messages[1].role",
        "invalid_value",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user"}]},
        "messages[0].content",
        "missing_required_parameter",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0]",
        "unsupported_value",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
        "messages[0].content[0].text",
        "invalid_type",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0].tool_call_id",
        "missing_required_parameter",
    ),
    ("chat/completions", {"temperature": 2.1}, "temperature", "decimal_above_max_value"),
    ("chat/completions", {"temperature": -1}, "temperature", "decimal_below_min_value"),
    ("chat/completions", {"temperature": "0.5"}, "temperature", "invalid_type"),
    ("chat/completions", {"temperature": True}, "temperature", "invalid_type"),
    ("chat/completions", {"top_p": 1.5}, "top_p", "decimal_above_max_value"),
    ("chat/completions", {"stream": "yes"}, "stream", "invalid_type"),
    ("chat/completions", {"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ("chat/completions", {"max_tokens": 1.5}, "max_tokens", "invalid_type"),
    ("chat/completions", {"n": 17}, "n", "integer_above_max_value"),
    ("chat/completions", {"n": 10**30}, "n", "integer_above_max_value"),
    ("chat/completions", {"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ("chat/completions", {"stop": ["a"] * 17}, "stop", "array_above_max_length"),
    ("chat/completions", {"stop": [1]}, "stop[0]", "invalid_type"),
    ("chat/completions", {"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
    ("chat/completions", {"logit_bias": {"1": 101}}, "logit_bias.1", "decimal_above_max_value"),
    ("chat/completions", {"logit_bias": {"99999": 1}}, "logit_bias", "invalid_value"),
    (
        "chat/completions",
        {"tools": [{"type": "function"}]},
        "tools[0].function",
        "missing_required_parameter",
    ),
    (
        "chat/completions",
        {"response_format": {"type": "xml"}},
        "response_format.type",
        "invalid_value",
    ),
    (
        "chat/completions",
        {"chat_template_kwargs": {"tokenize": True}},
        "chat_template_kwargs.tokenize",
        "invalid_value",
    ),
    ("chat/completions", {"logit_bias": {"1" * 5000: 1}}, "logit_bias", "invalid_value"),
    (
        "chat/completions",
        {"chat_template_kwargs": {"tokenizer": 1}},
        "chat_template_kwargs.tokenizer",
        "invalid_value",
    ),
    ("chat/completions", {"messages": called('{"a": "\\ud800"}')}, ARGUMENTS, "invalid_value"),
    ("chat/completions", {"messages": called('{"a": NaN}')}, ARGUMENTS, "invalid_value"),
    ("chat/completions", {"messages": called("[1]")}, ARGUMENTS, "invalid_value"),
    ("chat/completions", {"request_id": "a/b"}, "request_id", "invalid_value"),
    ("chat/completions", {"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value"),
    ("chat/completions", {"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": "x" * 3000}]},
        "messages",
        "context_length_exceeded",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": "x" * 300_000}]},
        "messages",
        "context_length_exceeded",
    ),
    ("completions", {"prompt": None}, "prompt", "missing_required_parameter"),
    ("completions", {"prompt": []}, "prompt", "empty_array"),
    ("completions", {"prompt": ""}, "prompt", None),
    ("completions", {"prompt": [1, 99999]}, "prompt", None),
    ("completions", {"prompt": ["a", 1]}, "prompt[1]", "invalid_type"),
    ("completions", {"suffix": "x"}, "suffix", "unsupported_parameter"),
    ("completions", {"best_of": 2, "stream": True}, "best_of", "unsupported_value"),
    ("completions", {"logprobs": 6}, "logprobs", "integer_above_max_value"),
    ("responses", {"input": None}, "input", "missing_required_parameter"),
    ("responses", {"input": [{"type": "robot"}]}, "input[0].type", "invalid_value"),
    ("responses", {"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "invalid_value"),
    ("responses", {"background": True, "store": False}, "background", "invalid_value"),
    (
        "responses",
        {"text": {"format": {"type": "json_schema"}}},
        "text.format.name",
        "missing_required_parameter",
    ),
    ("responses", {"text": {"verbosity": 5}}, "text.verbosity", "invalid_type"),
    ("responses", {"include": ["robots"]}, "include[0]", "invalid_value"),
    (
        "responses",
        {"previous_response_id": "resp_x"},
        "previous_response_id",
        "previous_response_not_found",
    ),
    ("responses", {"input": "x" * 3000}, "input", "context_length_exceeded"),
]
VALID = {"chat/completions": CHAT, "completions": COMPLETION, "responses": RESPONSE}


@pytest.mark.parametrize(("path", "change", "param", "code"), REFUSED)
async def test_it_names_what_is_wrong(client, path, change, param, code):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.post(f"/{path}", body=VALID[path] | change, cast_to=object)

    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.type == "invalid_request_error"
    assert (caught.value.param, caught.value.code) == (param, code)


async def test_deeply_nested_arguments_are_no_failure_of_the_server(client, engine):
    engine.model.tokenizer.chat_template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "{{ c.function.arguments | tojson }}{% endfor %}{{ m.content }}{% endfor %}"
    )
    for depth, status in ((10, 200), (900, 400), (5000, 400)):
        messages = called('{"a":' * depth + "1" + "}" * depth)
        response = await client._client.post(
            "http://localhost/v1/chat/completions", json=CHAT | {"messages": messages}
        )
        assert response.status_code == status, depth


@pytest.mark.parametrize("path", VALID)
async def test_an_unknown_model_is_a_404(client, path):
    with pytest.raises(openai.NotFoundError) as caught:
        await client.post(f"/{path}", body=VALID[path] | {"model": "gpt-9"}, cast_to=object)

    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("path", VALID)
async def test_null_means_not_given_and_unknown_fields_are_ignored(client, path):
    nulls = dict.fromkeys(["temperature", "stream", "stop", "seed", "metadata", "tools"])
    body = VALID[path] | nulls | {"brand_new_field": {"a": 1}}
    assert await client.post(f"/{path}", body=body, cast_to=object)


RAW = [
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"\xff\xfe",
    b'{"model": NaN}',
    b'{"model": 1e999}',
    b'{"model": "\\ud800"}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"n": ' + b"1" * 5000 + b"}",
]


@pytest.mark.parametrize("body", RAW, ids=lambda body: repr(body[:12]))
async def test_what_is_not_json_is_a_400(client, body):
    response = await client._client.post("http://localhost/v1/chat/completions", content=body)

    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_other_paths_and_methods_answer_in_json_too(client):
    http: httpx2.AsyncClient = client._client
    unknown = await http.get("http://localhost/v1/robots")
    method = await http.put("http://localhost/v1/chat/completions", json={})
    host = await http.get("http://evil.example/v1/models")

    assert (unknown.status_code, method.status_code, host.status_code) == (404, 405, 400)
    assert unknown.json()["error"]["message"] == "Invalid URL (GET /v1/robots)"
    assert "POST" in method.headers["allow"]
    assert "NANOLLM_ALLOWED_HOSTS" in host.json()["error"]["message"]


MANY = MAX_VALUES + 1


@pytest.mark.parametrize(
    ("path", "body", "message", "param"),
    [
        ("completions", COMPLETION | {"prompt": [1] * MANY}, "more than 524,288 commas", None),
        ("completions", COMPLETION | {"prompt": [[]] * MANY}, "more than 524,288 commas", None),
        ("chat/completions", {"messages": [USER] * 8193}, "array too long", "messages"),
        ("responses", {"input": [USER] * 8193}, "array too long", "input"),
        ("conversations", {"items": [USER] * 8193}, "array too long", "items"),
    ],
)
async def test_many_small_things_do_not_hold_up_the_others(client, path, body, message, param):
    body = json.dumps({"model": "m"} | body)
    answer = await client._client.post(f"http://localhost/v1/{path}", content=body)

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["param"] == param


async def test_a_long_chain_is_not_looked_through_again_and_again(client, monkeypatch):
    """What cannot fit is left out at once, or refused at once."""
    items, last = [USER | {"content": "x"}] * 2000, None
    for _ in range(2):  # none of them fits; so the first one is dropped but for its end
        response = await client.responses.create(
            model="m", input=items, previous_response_id=last, truncation="auto"
        )
        last = response.id
    going_on = {"model": "m", "input": "Hi", "previous_response_id": last}
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(**going_on)
    assert caught.value.code == "context_length_exceeded"
    assert "4002 items" in caught.value.message

    sizes, check = [], response_requests.check_calls
    monkeypatch.setattr(
        response_requests, "check_calls", lambda items: sizes.append(len(items)) or check(items)
    )
    await client.responses.create(**going_on, truncation="auto")
    assert sizes == [2048 + 1]


async def test_too_large_a_body_is_a_413(client, settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    with pytest.raises(openai.APIStatusError) as caught:
        await client.responses.create(model="m", input="x" * 2000)

    assert caught.value.status_code == 413
    assert json.loads(caught.value.response.text)["error"]["type"] == "invalid_request_error"


async def test_while_loading_it_is_a_503_with_the_progress(transactional_db):
    from inference import service
    from inference.engine.thread import ThreadEngine

    def load(report):
        report("reading the weights")
        raise inference_errors.ModelLoadError("no such model")

    engine = ThreadEngine(load, QueueLimits(1))
    engine._thread.join()
    service.install(engine)
    try:
        client = in_process_client()
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(**CHAT)
        live = await client._client.get("http://localhost/health")
        ready = await client._client.get("http://localhost/health/ready")
    finally:
        service.install(None)

    assert caught.value.status_code == 503
    assert "no such model" in caught.value.message
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert ready.status_code == 503
    assert live.status_code == 503  # this engine will never answer


async def test_a_full_queue_is_a_429_that_says_when_to_come_back(client, engine):
    engine.limits = QueueLimits(0)
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(**CHAT)

    assert caught.value.type == "rate_limit_error"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 120


def test_every_engine_error_has_an_http_meaning():
    classes = [c for c in vars(inference_errors).values() if isinstance(c, type)]
    assert set(classes) - set(TRANSLATIONS) == set()
