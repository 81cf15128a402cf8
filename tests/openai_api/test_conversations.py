"""Conversations through the official client: kept, read, and gone on from by responses."""

import asyncio
import json
import threading

import httpx2
import openai
import pytest
from asgiref.testing import ApplicationCommunicator
from channels.testing import WebsocketCommunicator
from django.utils.timezone import now

from nanollmserve_site.handlers import http_application
from openai_api import background, conversations, response_rows, runs
from openai_api.consumers import ResponsesConsumer
from openai_api.database import read, write
from openai_api.models import Conversation, ConversationItem, StoredResponse
from tests.helpers import FAILURE

WAIT_S = 10


class Model:
    """Repeats its whole prompt, unless the last message tells it to wait or to fail."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()

    def __call__(self, prompt: str) -> str:
        text = prompt.replace("<|im_start|>", "[").replace("<|im_end|>\n", "]")
        last = text.rpartition("[user\n")[2]
        if "wait" in last:
            self.may_go_on.wait(WAIT_S)
        return f"Hel{FAILURE}" if "fail" in last else text


@pytest.fixture
def script():
    return Model()


@pytest.fixture(autouse=True)
def nobody_waits_at_the_end(engine, script):
    """An engine cannot be closed in the middle of a step."""
    yield
    script.may_go_on.set()


def user(text: str, **fields) -> dict:
    return {"role": "user", "content": text, **fields}


def message(item_id: str, text: str, role: str = "user") -> dict:
    """As the API gives it."""
    return {
        "id": item_id,
        "type": "message",
        "status": "completed",
        "role": role,
        "content": [{"type": "input_text", "text": text}],
    }


def check_error(error: openai.APIStatusError, param: str | None, code: str | None) -> None:
    assert (error.param, error.code) == (param, code)
    assert error.body["message"]


async def texts_of(client, conversation_id: str) -> list[str]:
    items = [i async for i in client.conversations.items.list(conversation_id, order="asc")]
    return [item.content[0].text for item in items]


async def ids_of(page) -> list[str]:
    """Of all pages, as the client asks for them."""
    return [entry.id async for entry in page]


async def until(condition) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await condition():
            await asyncio.sleep(0.01)


async def until_locked(conversation_id: str) -> None:
    await until(
        lambda: Conversation.objects.filter(pk=conversation_id).exclude(run_id="").aexists()
    )


async def until_free(conversation_id: str) -> None:
    await until(lambda: Conversation.objects.filter(pk=conversation_id, run_id="").aexists())


@pytest.fixture
async def conversation(client) -> Conversation:
    items = [user("one", id="item_1"), user("two", id="item_2")]
    created = await client.conversations.create(items=items)
    return await Conversation.objects.aget(pk=created.id)


class TestConversation:
    async def test_one_is_created_and_retrieved(self, client):
        created = await client.conversations.create(
            items=[user("Hi"), {"role": "assistant", "content": "Hello"}], metadata={"a": "b"}
        )
        retrieved = await client.conversations.retrieve(created.id)

        assert created.to_dict() == {
            "id": created.id,
            "object": "conversation",
            "created_at": created.created_at,
            "metadata": {"a": "b"},
        }
        assert created.id.startswith("conv_")
        assert 0 <= now().timestamp() - created.created_at < 60
        assert retrieved == created
        assert await texts_of(client, created.id) == ["Hi", "Hello"]

    async def test_it_may_begin_with_nothing(self, client):
        created = await client.conversations.create()

        page = await client.conversations.items.list(created.id)

        assert created.to_dict()["metadata"] == {}
        assert page.to_dict() == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }

    async def test_an_update_replaces_all_metadata(self, client):
        created = await client.conversations.create(metadata={"a": "1", "b": "2"})

        updated = await client.conversations.update(created.id, metadata={"b": "3"})
        emptied = await client.conversations.update(created.id, metadata=None)

        assert updated.to_dict() == created.to_dict() | {"metadata": {"b": "3"}}
        assert emptied.to_dict()["metadata"] == {}
        assert await client.conversations.retrieve(created.id) == emptied

    async def test_what_was_deleted_is_gone_with_its_items(self, client, conversation):
        deleted = await client.conversations.delete(conversation.id)

        assert deleted.to_dict() == {
            "id": conversation.id,
            "object": "conversation.deleted",
            "deleted": True,
        }
        with pytest.raises(openai.NotFoundError):
            await client.conversations.retrieve(conversation.id)
        assert not await ConversationItem.objects.aexists()

    @pytest.mark.parametrize(
        "call",
        [
            lambda c: c.retrieve("x"),
            lambda c: c.update("x", metadata={}),
            lambda c: c.delete("x"),
            lambda c: c.items.create("x", items=[user("Hi")]),
            lambda c: c.items.list("x"),
            lambda c: c.items.retrieve("item_1", conversation_id="x"),
            lambda c: c.items.delete("item_1", conversation_id="x"),
        ],
        ids=["retrieve", "update", "delete", "add", "list", "item", "delete item"],
    )
    async def test_an_unknown_one_is_not_found(self, client, conversation, call):
        with pytest.raises(openai.NotFoundError) as caught:
            await call(client.conversations)

        check_error(caught.value, None, "not_found")
        assert caught.value.body["message"] == "Conversation with id 'x' not found."

    @pytest.mark.parametrize(
        ("body", "param", "code"),
        [
            ({"items": {}}, "items", "invalid_type"),
            ({"items": ["Hi"]}, "items[0]", "invalid_type"),
            ({"items": [user("a"), user(1)]}, "items[1].content", "invalid_type"),
            ({"items": [{"type": "thought"}]}, "items[0].type", "invalid_value"),
            ({"items": [user("a")] * 21}, "items", "array_above_max_length"),
            ({"items": [user("a", id="i"), user("b", id="i")]}, "items", "invalid_value"),
            ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ],
    )
    async def test_a_wrong_one_is_refused(self, client, body, param, code):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.post("/conversations", body=body, cast_to=object)

        check_error(caught.value, param, code)
        assert not await Conversation.objects.aexists()

    async def test_an_update_needs_metadata(self, client, conversation):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.post(f"/conversations/{conversation.id}", body={}, cast_to=object)

        check_error(caught.value, "metadata", "missing_required_parameter")


class TestItems:
    async def test_items_are_added_in_their_full_form(self, client, conversation):
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        output = {"type": "function_call_output", "call_id": "c", "output": "1"}

        added = await client.conversations.items.create(
            conversation.id, items=[user("three", id="item_3"), call, output], include=[]
        )

        first, second, third = (item.to_dict() for item in added.data)
        assert first == message("item_3", "three")
        assert second == call | {"id": second["id"], "status": "completed"}
        assert third == output | {"id": third["id"], "status": "completed"}
        assert (added.first_id, added.last_id, added.has_more) == ("item_3", third["id"], False)
        expected = ["item_1", "item_2", "item_3", second["id"], third["id"]]
        assert await ids_of(client.conversations.items.list(conversation.id)) == expected[::-1]

    @pytest.mark.parametrize("limit", [1, 2, 5, 6])
    @pytest.mark.parametrize("order", ["asc", "desc"])
    async def test_paging_loses_and_repeats_nothing(self, client, conversation, order, limit):
        items = client.conversations.items
        added = await items.create(conversation.id, items=[user(t) for t in "abc"])
        await client.conversations.create(items=[user("another")])

        listed = await ids_of(items.list(conversation.id, order=order, limit=limit))

        expected = ["item_1", "item_2", *[item.id for item in added.data]]
        assert listed == (expected if order == "asc" else expected[::-1])

    async def test_a_page_holds_the_newest_20_if_not_told_otherwise(self, client, conversation):
        items = client.conversations.items
        await items.create(conversation.id, items=[user(str(i)) for i in range(20)])

        page = await items.list(conversation.id, include=["message.output_text.logprobs"])

        assert [item.content[0].text for item in page.data] == [str(i) for i in range(19, -1, -1)]
        assert page.has_more
        assert len((await items.list(conversation.id, limit=100)).data) == 22

    async def test_one_is_retrieved(self, client, conversation):
        item = await client.conversations.items.retrieve(
            "item_2", conversation_id=conversation.id, include=["reasoning.encrypted_content"]
        )
        assert item.to_dict() == message("item_2", "two")

    async def test_what_was_deleted_is_gone(self, client, conversation):
        items = client.conversations.items

        left = await items.delete("item_1", conversation_id=conversation.id)

        assert left == await client.conversations.retrieve(conversation.id)
        assert await texts_of(client, conversation.id) == ["two"]

    @pytest.mark.parametrize("method", ["retrieve", "delete"])
    async def test_an_item_of_another_one_is_not_found(self, client, conversation, method):
        other = await client.conversations.create()

        with pytest.raises(openai.NotFoundError) as caught:
            await getattr(client.conversations.items, method)("item_1", conversation_id=other.id)

        check_error(caught.value, None, "not_found")
        assert caught.value.body["message"] == "Item with id 'item_1' not found."

    async def test_the_same_id_may_be_in_two_conversations(self, client, conversation):
        other = await client.conversations.create(items=[user("other", id="item_1")])

        assert await texts_of(client, other.id) == ["other"]
        assert await texts_of(client, conversation.id) == ["one", "two"]

    @pytest.mark.parametrize(
        ("body", "param", "code"),
        [
            ({}, "items", "missing_required_parameter"),
            ({"items": []}, "items", "empty_array"),
            ({"items": [user("a")] * 21}, "items", "array_above_max_length"),
            ({"items": [user("new"), user("a", id="item_1")]}, "items", "invalid_value"),
            ({"items": [user("a", id="i"), user("b", id="i")]}, "items", "invalid_value"),
        ],
    )
    async def test_wrong_items_are_refused_and_none_is_added(
        self, client, conversation, body, param, code
    ):
        path = f"/conversations/{conversation.id}/items"
        with pytest.raises(openai.BadRequestError) as caught:
            await client.post(path, body=body, cast_to=object)

        check_error(caught.value, param, code)
        assert await texts_of(client, conversation.id) == ["one", "two"]

    @pytest.mark.parametrize(
        ("query", "param", "code"),
        [
            ("limit=0", "limit", "integer_below_min_value"),
            ("limit=101", "limit", "integer_above_max_value"),
            ("order=up", "order", "invalid_value"),
            ("after=unknown", "after", "invalid_value"),
        ],
    )
    async def test_a_wrong_query_is_named(self, client, conversation, query, param, code):
        path = f"/conversations/{conversation.id}/items?{query}"
        with pytest.raises(openai.BadRequestError) as caught:
            await client.get(path, cast_to=httpx2.Response)

        check_error(caught.value, param, code)


TOLD = "[user\none][user\ntwo][user\nthree][assistant\n"


class TestResponse:
    @pytest.mark.parametrize("store", [True, False])
    async def test_it_goes_on_from_the_items_and_adds_its_own(self, client, conversation, store):
        response = await client.responses.create(
            model="m", input="three", conversation=conversation.id, store=store
        )

        assert response.output_text == TOLD
        assert response.conversation.id == conversation.id
        assert await texts_of(client, conversation.id) == ["one", "two", "three", TOLD]
        rows = [row async for row in ConversationItem.objects.all()]
        assert [row.response_id for row in rows] == ["", "", response.id, response.id]
        assert rows[-1].item == response.output[0].to_dict()
        if store:
            assert await client.responses.retrieve(response.id) == response

    async def test_a_stream_adds_the_same_before_its_last_event(self, client, conversation):
        stream = await client.responses.create(
            model="m", input="three", conversation={"id": conversation.id}, stream=True
        )
        events = [event async for event in stream]

        assert events[0].response.conversation.id == conversation.id
        assert events[-1].response.output_text == TOLD
        assert await texts_of(client, conversation.id) == ["one", "two", "three", TOLD]

    async def test_turns_follow_each_other(self, client):
        conversation = await client.conversations.create()
        first = await client.responses.create(model="m", input="a", conversation=conversation.id)
        second = await client.responses.create(
            model="m", input=[user("b", id="item_b")], conversation=conversation.id
        )

        assert first.output_text == "[user\na][assistant\n"
        assert (
            second.output_text == f"[user\na][assistant\n{first.output_text}][user\nb][assistant\n"
        )
        assert len(await texts_of(client, conversation.id)) == 4

    async def test_what_it_needs_may_all_be_there(self, client, conversation):
        response = await client.responses.create(model="m", conversation=conversation.id)

        assert response.output_text == "[user\none][user\ntwo][assistant\n"
        assert len(await texts_of(client, conversation.id)) == 3

    async def test_one_that_was_cut_is_added_too(self, client, conversation):
        response = await client.responses.create(
            model="m", input="three", conversation=conversation.id, max_output_tokens=5
        )

        assert response.status == "incomplete"
        assert await texts_of(client, conversation.id) == ["one", "two", "three", "[user"]

    async def test_a_deleted_item_is_forgotten(self, client, conversation):
        await client.conversations.items.delete("item_1", conversation_id=conversation.id)

        response = await client.responses.create(
            model="m", input="three", conversation=conversation.id
        )

        assert response.output_text == "[user\ntwo][user\nthree][assistant\n"

    async def test_in_the_background(self, client, conversation):
        begun = await client.responses.create(
            model="m", input="three", conversation=conversation.id, background=True
        )
        assert begun.conversation.id == conversation.id
        await until_free(conversation.id)

        response = await client.responses.retrieve(begun.id)

        assert response.output_text == TOLD
        assert await texts_of(client, conversation.id) == ["one", "two", "three", TOLD]

    async def test_over_a_websocket(self, client, conversation):
        events = await said_over_websocket({"conversation": conversation.id, "input": "three"})

        assert events[-1]["type"] == "response.completed"
        assert events[-1]["response"]["conversation"] == {"id": conversation.id}
        assert await texts_of(client, conversation.id) == ["one", "two", "three", TOLD]

    @pytest.mark.parametrize(
        ("params", "error", "param", "code"),
        [
            ({"conversation": "x"}, openai.NotFoundError, "conversation", "not_found"),
            (
                {"conversation": {"id": "x"}},
                openai.NotFoundError,
                "conversation",
                "not_found",
            ),
            ({"conversation": 7}, openai.BadRequestError, "conversation", "invalid_type"),
            (
                {"conversation": {}},
                openai.BadRequestError,
                "conversation.id",
                "missing_required_parameter",
            ),
            (
                {"conversation": {"id": 7}},
                openai.BadRequestError,
                "conversation.id",
                "invalid_type",
            ),
            (
                {"conversation": "x", "previous_response_id": "y"},
                openai.BadRequestError,
                "conversation",
                "mutually_exclusive_parameters",
            ),
        ],
    )
    async def test_a_wrong_one_is_named(self, client, params, error, param, code):
        with pytest.raises(error) as caught:
            await client.responses.create(model="m", input="Hi", **params)

        check_error(caught.value, param, code)

    async def test_an_item_that_is_there_already_is_refused(self, client, conversation):
        for items in ([user("a", id="item_1")], [user("a", id="i"), user("b", id="i")]):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.responses.create(model="m", input=items, conversation=conversation.id)

            check_error(caught.value, "input", "invalid_value")
        assert await texts_of(client, conversation.id) == ["one", "two"]

    async def test_without_one_nothing_is_said_of_it(self, client):
        response = await client.responses.create(model="m", input="Hi")

        assert "conversation" not in response.to_dict()


class TestChain:
    async def test_a_response_is_continued_from_where_it_was(self, client, conversation):
        first = await client.responses.create(
            model="m", input="three", conversation=conversation.id
        )
        await client.responses.create(model="m", input="four", conversation=conversation.id)

        second = await client.responses.create(
            model="m", input="else", previous_response_id=first.id
        )
        third = await client.responses.create(
            model="m", input="more", previous_response_id=second.id
        )

        told = f"{TOLD}{first.output_text}][user\nelse][assistant\n"
        assert second.output_text == told
        assert third.output_text == f"{told}{told}][user\nmore][assistant\n"
        assert len(await texts_of(client, conversation.id)) == 6

    async def test_without_its_conversation_it_cannot_be(self, client, conversation):
        first = await client.responses.create(
            model="m", input="three", conversation=conversation.id
        )
        await client.conversations.delete(conversation.id)

        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="m", input="x", previous_response_id=first.id)

        check_error(caught.value, "previous_response_id", "previous_response_not_found")
        assert (await client.responses.retrieve(first.id)).conversation.id == conversation.id

    async def test_a_deleted_response_leaves_its_items(self, client, conversation):
        response = await client.responses.create(
            model="m", input="three", conversation=conversation.id
        )
        await client.responses.delete(response.id)

        assert await texts_of(client, conversation.id) == ["one", "two", "three", TOLD]


async def said_over_websocket(*messages: dict) -> list[dict]:
    """All that is answered to these messages, each in a lane of its own."""
    events = []
    socket = WebsocketCommunicator(ResponsesConsumer.as_asgi(), "/v1/responses")
    await socket.connect()
    for lane, body in enumerate(messages):
        create = {"type": "response.create", "model": "m", "stream_id": str(lane), **body}
        await socket.send_to(text_data=json.dumps(create))
    num_ended = 0
    while num_ended < len(messages):
        events.append(json.loads(await socket.receive_from(WAIT_S)))
        ends = ("response.completed", "response.incomplete", "response.failed", "error")
        num_ended += events[-1]["type"] in ends
    await socket.disconnect()
    return events


class TestLock:
    """Of responses to one conversation, one at a time."""

    @pytest.fixture
    async def running(self, client, conversation):
        """A response that waits until it may go on."""
        params = {"model": "m", "input": "wait", "conversation": conversation.id}
        task = asyncio.create_task(client.responses.create(**params))
        await until_locked(conversation.id)
        yield task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    @pytest.mark.parametrize(
        "params", [{}, {"stream": True}, {"store": False}, {"background": True}]
    )
    async def test_a_second_one_is_told_to_wait(
        self, client, engine, conversation, script, running, params
    ):
        with pytest.raises(openai.ConflictError) as caught:
            await client.responses.create(
                model="m", input="me", conversation=conversation.id, **params
            )
        script.may_go_on.set()
        await running

        check_error(caught.value, "conversation", "conversation_locked")
        assert (await texts_of(client, conversation.id))[2:3] == ["wait"]
        assert await StoredResponse.objects.acount() == 1
        engine.check_capacity(64)  # nothing is being generated any more

    async def test_the_clients_own_retry_gets_through(self, client, conversation, script, running):
        patient = client.with_options(max_retries=5)
        task = asyncio.create_task(
            patient.responses.create(model="m", input="me", conversation=conversation.id)
        )
        await asyncio.sleep(0.05)
        script.may_go_on.set()

        response = await task

        assert "[user\nwait]" in response.output_text

    async def test_the_same_request_again_waits_for_the_first(self, client, conversation, script):
        params = {"model": "m", "input": "wait", "conversation": conversation.id}
        params["extra_headers"] = {"Idempotency-Key": "k"}
        first = asyncio.create_task(client.responses.create(**params))
        await until_locked(conversation.id)
        again = asyncio.create_task(client.responses.create(**params))
        await asyncio.sleep(0.05)
        script.may_go_on.set()

        assert (await first).id == (await again).id
        assert len(await texts_of(client, conversation.id)) == 4

    async def test_items_are_not_added_in_between(self, client, conversation, running):
        with pytest.raises(openai.ConflictError) as caught:
            await client.conversations.items.create(conversation.id, items=[user("me")])

        check_error(caught.value, "conversation", "conversation_locked")

    async def test_whoever_read_before_the_lock_was_free_is_too_late(self, client, conversation):
        items, position = await read(conversations.context, conversation.id)
        await client.conversations.items.create(conversation.id, items=[user("unseen")])
        row = StoredResponse(
            model="m", request={}, conversation=conversation, conversation_position=position
        )

        with pytest.raises(conversations.ConversationLocked):
            await write(response_rows.insert, row)

        assert len(items) == 2
        assert not await StoredResponse.objects.aexists()
        assert (await Conversation.objects.aget()).run_id == ""

    async def test_the_conversation_may_be_deleted_meanwhile(
        self, client, conversation, script, running
    ):
        await client.conversations.delete(conversation.id)
        script.may_go_on.set()

        response = await running

        assert response.status == "completed"
        assert not await ConversationItem.objects.aexists()

    async def test_another_conversation_is_free(self, client, conversation, script, running):
        other = await client.conversations.create()
        task = asyncio.create_task(
            client.responses.create(model="m", input="me", conversation=other.id)
        )
        await until_locked(other.id)
        script.may_go_on.set()

        assert (await task).output_text == "[user\nme][assistant\n"

    async def test_lanes_of_a_websocket_do_not_get_in_each_others_way(self, client, conversation):
        body = {"conversation": conversation.id, "input": "three"}

        events = await said_over_websocket(body, body)

        ends = [e for e in events if e["type"] in ("error", "response.completed")]
        refused = [e for e in ends if e["type"] == "error"]
        assert [(e["status"], e["error"]["code"]) for e in refused] in (
            [],
            [(409, "conversation_locked")],
        )
        assert len(await texts_of(client, conversation.id)) == 2 + 2 * (2 - len(refused))


async def leave(client, params: dict) -> None:
    """As a server tells of a client that has gone: the transport in process cannot."""
    body = json.dumps({**params, "input": "wait"}).encode()
    scope = {"type": "http", "method": "POST", "path": "/v1/responses", "query_string": b""}
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    request = ApplicationCommunicator(http_application(), scope | {"headers": headers})
    await request.send_input({"type": "http.request", "body": body})
    await until_locked(params["conversation"])
    await request.send_input({"type": "http.disconnect"})
    await request.wait(WAIT_S)


async def leave_stream(client, params: dict) -> None:
    await leave(client, params | {"stream": True})


async def leave_unstored(client, params: dict) -> None:
    await leave(client, params | {"store": False})


async def leave_websocket(client, params: dict) -> None:
    socket = WebsocketCommunicator(ResponsesConsumer.as_asgi(), "/v1/responses")
    await socket.connect()
    create = {"type": "response.create", **params, "input": "wait"}
    await socket.send_to(text_data=json.dumps(create))
    await until_locked(params["conversation"])
    await socket.disconnect()


async def fail(client, params: dict) -> None:
    response = await client.responses.create(**params, input="fail")
    assert response.status == "failed"


async def fail_unstored(client, params: dict) -> None:
    await fail(client, params | {"store": False})


async def fail_before_the_first_event(client, params: dict) -> None:
    await StoredResponse.objects.acreate(id="mine", model="m", request={})
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(**params, input="x", extra_body={"request_id": "mine"})


async def fail_before_the_lock(client, params: dict) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(**params, input="x" * 3000)


async def fail_in_the_background(client, params: dict) -> None:
    await client.responses.create(**params, input="fail", background=True)


async def cancel_in_the_background(client, params: dict) -> None:
    response = await client.responses.create(**params, input="wait", background=True)
    assert (await client.responses.cancel(response.id)).status == "cancelled"


async def delete_in_the_background(client, params: dict) -> None:
    response = await client.responses.create(**params, input="wait", background=True)
    await client.responses.delete(response.id)


async def lose_the_row(client, params: dict) -> None:
    response = await client.responses.create(**params, input="wait", background=True)
    await StoredResponse.objects.all().adelete()
    runs.running(response.id).cancel()


async def cancel_what_nobody_is_at(client, params: dict) -> None:
    await make_abandoned(params["conversation"], background=True)
    await client.responses.cancel("resp_lost")


@pytest.mark.parametrize(
    "end",
    [
        leave,
        leave_stream,
        leave_unstored,
        leave_websocket,
        fail,
        fail_unstored,
        fail_before_the_first_event,
        fail_before_the_lock,
        fail_in_the_background,
        cancel_in_the_background,
        delete_in_the_background,
        lose_the_row,
        cancel_what_nobody_is_at,
    ],
)
async def test_what_ends_badly_adds_nothing_and_leaves_no_lock(client, script, conversation, end):
    await end(client, {"model": "m", "conversation": conversation.id})
    await until_free(conversation.id)
    script.may_go_on.set()

    assert await texts_of(client, conversation.id) == ["one", "two"]
    response = await client.responses.create(model="m", input="three", conversation=conversation.id)
    assert response.output_text == TOLD


async def make_abandoned(conversation_id: str, **values) -> StoredResponse:
    """A response whose process is gone, with the lock that it had."""
    lock = {"run_id": "resp_lost", "boot_id": "dead"}
    await Conversation.objects.filter(pk=conversation_id).aupdate(**lock)
    last = await ConversationItem.objects.filter(conversation=conversation_id).alast()
    values = {
        "id": "resp_lost",
        "model": "m",
        "request": {"store": True},
        "input": [message("item_3", "three")],
        "conversation_id": conversation_id,
        "conversation_position": last.pk,
        "boot_id": "dead",
        **values,
    }
    return await StoredResponse.objects.acreate(**values)


class TestRestart:
    async def test_the_lock_of_a_response_that_was_lost_is_given_back(self, client, conversation):
        await make_abandoned(conversation.id)

        await write(response_rows.reconcile)

        assert (await Conversation.objects.aget()).run_id == ""
        assert (await client.responses.retrieve("resp_lost")).status == "failed"

    async def test_also_of_one_that_was_not_stored(self, client, conversation):
        await (await make_abandoned(conversation.id)).adelete()

        await write(response_rows.reconcile)

        assert (await Conversation.objects.aget()).run_id == ""

    async def test_a_lock_of_this_process_stays(self, client, conversation):
        boot_id = response_rows.BOOT_ID
        await Conversation.objects.aupdate(run_id="resp_1", boot_id=boot_id)

        await write(response_rows.reconcile)

        assert (await Conversation.objects.aget()).run_id == "resp_1"

    async def test_a_background_response_goes_on_with_its_lock(self, client, conversation):
        body = {"model": "m", "input": "three", "conversation": conversation.id, "background": True}
        await make_abandoned(conversation.id, background=True, body=body, status="queued")

        await write(response_rows.reconcile)
        kept = await Conversation.objects.aget()
        recovering = asyncio.run_coroutine_threadsafe(background._recover(), background.loop())
        await asyncio.wrap_future(recovering)
        await until_free(conversation.id)

        assert kept.run_id == "resp_lost"
        assert (await client.responses.retrieve("resp_lost")).output_text == TOLD
        assert await texts_of(client, conversation.id) == ["one", "two", "three", TOLD]
