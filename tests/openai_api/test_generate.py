"""The three ways to generate, through the official client, with a model that keeps to a script."""

import json

import openai
import pytest

from openai_api import response_rows
from openai_api.models import RequestLog, StoredResponse
from tests.helpers import FAILURE
from tests.openai_api.conftest import HELLO

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


async def test_a_whole_chat_completion(client):
    completion = await client.chat.completions.create(**CHAT)
    [choice] = completion.choices

    assert choice.message.content == HELLO
    assert choice.finish_reason == "stop"
    assert completion.usage.completion_tokens == len(HELLO.encode()) + 1  # and the end
    assert completion.usage.prompt_tokens == len("<user\nHi>\n<assistant\n")
    assert completion.id.startswith("chatcmpl-")
    assert completion.system_fingerprint == "fp_1"


async def test_a_chat_stream_adds_up_to_the_answer(client):
    stream = await client.chat.completions.create(
        **CHAT, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == HELLO
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-2:] == [None, "stop"]
    assert [bool(c.usage) for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len({c.id for c in chunks}) == 1


async def test_without_being_asked_no_chunk_mentions_usage(client):
    stream = await client.chat.completions.create(**CHAT, stream=True)
    chunks = [chunk async for chunk in stream]

    assert len(chunks) > 2
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


async def test_the_chat_stream_helper(client):
    async with client.chat.completions.stream(**CHAT, n=2) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_completion()

    assert [choice.message.content for choice in final.choices] == [HELLO, HELLO]
    assert sum(event.type == "content.done" for event in events) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_the_answer_and_is_not_shown(client, stream):
    params = {**CHAT, "stop": ["rld", "never"], "stream": stream}
    answer = await client.chat.completions.create(**params)
    if stream:
        chunks = [chunk async for chunk in answer]
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        last = chunks[-1].choices[0]
    else:
        text, last = answer.choices[0].message.content, answer.choices[0]

    assert text == "Hello, wö"
    assert (last.finish_reason, last.stop_reason) == ("stop", "rld")


async def test_min_tokens_keeps_a_stop_string_from_stopping(client):
    completion = await client.chat.completions.create(
        **CHAT, stop="l", extra_body={"min_tokens": 5, "include_stop_str_in_output": True}
    )
    assert completion.choices[0].message.content == "Hello, wörl"


async def test_the_limit_is_length(client):
    completion = await client.chat.completions.create(**CHAT, max_completion_tokens=5)
    assert completion.choices[0].message.content == "Hello"
    assert completion.choices[0].finish_reason == "length"


async def test_logprobs_are_one_for_each_token_and_their_bytes_spell_the_text(client):
    whole = await client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2)
    entries = whole.choices[0].logprobs.content
    stream = await client.chat.completions.create(
        **CHAT, logprobs=True, top_logprobs=2, stream=True
    )
    streamed = [
        entry
        async for chunk in stream
        for entry in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]

    assert bytes(b for entry in entries for b in entry.bytes).decode() == HELLO
    assert all(len(entry.top_logprobs) == 2 and entry.logprob > -0.01 for entry in entries)
    assert streamed == entries


async def test_completions_number_choices_prompt_by_prompt(client):
    completion = await client.completions.create(
        model="m", prompt=["a", "b"], n=2, max_tokens=3, logprobs=1
    )

    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in completion.choices] == ["Hel"] * 4
    assert completion.choices[0].logprobs.tokens == ["H", "e", "l"]
    assert completion.choices[0].logprobs.text_offset == [0, 1, 2]
    assert completion.usage.prompt_tokens == 2
    assert completion.usage.completion_tokens == 12


async def test_completions_take_token_ids_and_default_to_16_tokens(client, engine):
    prompt = engine.model.tokenizer.encode("abc")
    stream = await client.completions.create(model="m", prompt=prompt, stream=True)
    chunks = [chunk async for chunk in stream]

    assert "".join(chunk.choices[0].text for chunk in chunks) == HELLO.encode()[:16].decode(
        errors="replace"
    )
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_a_response_is_stored_and_retrieved_as_it_was(client):
    created = await client.responses.create(model="m", input="Hi", metadata={"a": "b"})
    retrieved = await client.responses.retrieve(created.id)

    assert created.output_text == HELLO
    assert created.status == "completed"
    assert retrieved == created


async def test_a_response_stream(client):
    stream = await client.responses.create(model="m", input="Hi", stream=True)
    events = [event async for event in stream]

    assert [e.sequence_number for e in events] == list(range(len(events)))
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == HELLO == events[-1].response.output_text
    assert await client.responses.retrieve(events[-1].response.id) == events[-1].response


async def test_the_response_stream_helper(client):
    async with client.responses.stream(model="m", input="Hi") as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()

    assert final.output_text == HELLO


async def test_a_cut_response_is_incomplete(client):
    response = await client.responses.create(model="m", input="Hi", max_output_tokens=5)

    assert (response.status, response.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert response.output[0].status == "incomplete"


async def test_store_false_keeps_nothing(client):
    response = await client.responses.create(model="m", input="Hi", store=False)

    assert not await StoredResponse.objects.aexists()
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)


async def test_an_id_that_is_taken_leaves_its_response_alone(client):
    await StoredResponse.objects.acreate(id="mine", model="m", request={})
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="m", input="Hi", extra_body={"request_id": "mine"})
    row = await StoredResponse.objects.aget()

    assert caught.value.param == "request_id"
    assert (row.status, row.output) == ("in_progress", [])


async def test_a_chain_that_bites_its_tail_is_read_once(client):
    await StoredResponse.objects.acreate(
        id="mine", previous_id="mine", model="m", request={}, status="completed"
    )
    response = await client.responses.create(
        model="m", input="Hi", previous_response_id="mine", timeout=5
    )
    assert response.output_text == HELLO


async def test_a_deleted_response_is_gone(client):
    response = await client.responses.create(model="m", input="Hi")
    await client.responses.delete(response.id)

    with pytest.raises(openai.NotFoundError) as caught:
        await client.responses.retrieve(response.id)
    assert caught.value.body["message"] == f"Response with id '{response.id}' not found."


class TestConversation:
    @pytest.fixture
    def script(self):
        """A model that repeats its whole prompt."""
        return lambda prompt: prompt.replace("<|im_start|>", "[").replace("<|im_end|>\n", "]")

    async def test_a_response_continues_another(self, client):
        first = await client.responses.create(model="m", input="one", instructions="Be brief.")
        second = await client.responses.create(
            model="m", input="two", previous_response_id=first.id
        )
        third = await client.responses.create(
            model="m", input="three", previous_response_id=second.id
        )

        assert first.output_text == "[system\nBe brief.][user\none][assistant\n"
        told = f"[user\none][assistant\n{first.output_text}][user\ntwo]"
        assert second.output_text == f"{told}[assistant\n"
        assert third.output_text.startswith(told)
        assert third.previous_response_id == second.id

    async def test_a_broken_chain_is_an_error_and_not_a_gap(self, client):
        first = await client.responses.create(model="m", input="one")
        second = await client.responses.create(
            model="m", input="two", previous_response_id=first.id
        )
        await client.responses.delete(first.id)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="m", input="three", previous_response_id=second.id)

        assert caught.value.code == "previous_response_not_found"
        assert caught.value.param == "previous_response_id"

    async def test_items_become_the_messages_of_a_conversation(self, client):
        first = await client.responses.create(model="m", input="one")
        items = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
            *[item.model_dump() for item in first.output],
            {"type": "reasoning", "id": "rs_1", "summary": None, "encrypted_content": None},
            {"role": "assistant", "content": [{"type": "output_text", "text": "again"}]},
            {"role": "user", "content": "two"},
        ]
        response = await client.responses.create(model="m", input=items)

        assert response.output_text == (
            f"[system\nBe brief.][user\none][assistant\n{first.output_text}]"
            "[assistant\nagain][user\ntwo][assistant\n"
        )


class TestThinking:
    @pytest.fixture
    def script(self):
        return lambda prompt: "<think>\nA greeting.\n</think>\n\nHi!"

    async def test_chat_tells_thoughts_from_the_answer(self, client):
        completion = await client.chat.completions.create(**CHAT)
        message = completion.choices[0].message

        assert (message.reasoning_content, message.content) == ("A greeting.", "Hi!")
        assert completion.usage.completion_tokens_details.reasoning_tokens > 10

    async def test_a_response_has_an_item_for_each(self, client):
        async with client.responses.stream(model="m", input="Hi") as stream:
            final = await stream.get_final_response()

        assert [item.type for item in final.output] == ["reasoning", "message"]
        assert final.output[0].content[0].text == "A greeting."
        assert final.output_text == "Hi!"

    async def test_completions_show_the_text_as_it_is(self, client):
        completion = await client.completions.create(model="m", prompt="Hi", max_tokens=100)
        assert completion.choices[0].text == "<think>\nA greeting.\n</think>\n\nHi!"


class TestFailure:
    @pytest.fixture
    def script(self):
        def fail(prompt):
            return FAILURE if "bad" in prompt else f"Hel{FAILURE}" if "late" in prompt else "ok"

        return fail

    async def test_a_failing_step_is_a_500_that_says_nothing_of_the_inside(self, client):
        with pytest.raises(openai.InternalServerError) as caught:
            await client.completions.create(model="m", prompt="bad")

        assert "secret" not in str(caught.value)
        assert caught.value.type == "server_error"
        assert (await client.completions.create(model="m", prompt="good")).choices[0].text

    async def test_a_failure_before_the_first_token_is_a_status(self, client):
        with pytest.raises(openai.InternalServerError):
            await client.completions.create(model="m", prompt="bad", stream=True)

    async def test_a_failing_stream_ends_with_an_error(self, client):
        stream = await client.completions.create(model="m", prompt="late", stream=True)
        text = ""
        with pytest.raises(openai.APIError, match="The server had an error"):
            async for chunk in stream:
                text += chunk.choices[0].text

        assert text == "Hel"
        row = await RequestLog.objects.aget()
        assert (row.outcome, row.error_code) == ("failed", "server_error")

    async def test_a_failing_response_is_failed_in_every_view(self, client):
        stream = await client.responses.create(model="m", input="late", stream=True)
        events = [event async for event in stream]
        row = await StoredResponse.objects.aget()

        assert events[-1].type == "response.failed"
        assert events[-1].response.error.code == "server_error"
        assert events[-1].response.output_text == "Hel"
        assert row.status == "failed"
        assert (await client.responses.retrieve(row.id)).status == "failed"


async def test_every_request_leaves_a_row_of_history(client):
    await client.models.list()
    await client.chat.completions.create(**CHAT)
    [_ async for _ in await client.completions.create(model="m", prompt="x", stream=True)]
    response = await client.responses.create(model="m", input="Hi")
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(**CHAT, temperature=3)
    rows = [row async for row in RequestLog.objects.order_by("created_at")]

    assert [row.endpoint for row in rows] == [
        "GET /v1/models",
        "POST /v1/chat/completions",
        "POST /v1/completions",
        "POST /v1/responses",
        "POST /v1/chat/completions",
    ]
    assert [row.outcome for row in rows] == ["succeeded"] * 4 + ["failed"]
    assert [row.status for row in rows] == [200] * 4 + [400]
    assert [row.stream for row in rows] == [False, False, True, False, False]
    assert rows[1].num_completion_tokens == len(HELLO.encode()) + 1
    assert 0 < rows[1].time_to_first_token_s <= rows[1].duration_s
    assert (rows[1].finish_reason, rows[2].finish_reason) == ("stop", "length")
    assert rows[3].response_id == response.id
    assert rows[4].error_code == "decimal_above_max_value"
    assert not any(HELLO in json.dumps(row.__dict__, default=str) for row in rows)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_that_could_not_be_stored_is_no_success(client, monkeypatch, stream):
    def fail(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr(response_rows, "finish", fail)
    answer = await client.responses.create(model="m", input="Hi", stream=stream)
    if stream:
        events = [event async for event in answer]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert events[-1].type == "response.failed"
        answer = events[-1].response

    assert answer.status == "failed"
    assert answer.error.code == "server_error"
    assert "disk" not in answer.error.message
