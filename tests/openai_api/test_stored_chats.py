"""Stored chat completions through the official client: list, retrieve, update, delete."""

from datetime import UTC, datetime

import httpx2
import openai
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from openai_api import stored_chats
from openai_api.database import write
from openai_api.errors import InvalidRequest
from openai_api.models import StoredChatCompletion
from tests.helpers import in_process_client

USER = {"role": "user", "content": "What is paging?"}


@pytest.fixture
async def client(transactional_db):
    async with in_process_client() as client:
        yield client


@pytest.fixture
def chats(client):
    return client.chat.completions


def completion(completion_id: str, model: str = "m", text: str = "A table.") -> dict:
    message = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": 1764000000,
        "model": model,
        "system_fingerprint": "fp_1",
        "service_tier": "default",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }


async def save(completion_id: str, *, model: str = "m", messages=(USER,), metadata=None) -> None:
    stored = completion(completion_id, model)
    await write(stored_chats.save, stored, {"messages": list(messages), "metadata": metadata})


async def save_all(*completion_ids: str) -> None:
    for completion_id in completion_ids:
        await save(completion_id)


async def ids_of(page) -> list[str]:
    """Of all pages, as the client asks for them."""
    return [entry.id async for entry in page]


class TestOne:
    async def test_what_was_stored_is_retrieved(self, chats):
        await save("chatcmpl-1", metadata={"topic": "memory"})

        retrieved = await chats.retrieve("chatcmpl-1")

        expected = completion("chatcmpl-1") | {"metadata": {"topic": "memory"}}
        assert retrieved.to_dict() == expected
        assert retrieved.choices[0].message.content == "A table."

    async def test_an_update_replaces_all_metadata(self, chats):
        await save("chatcmpl-1", metadata={"a": "1", "b": "2"})

        updated = await chats.update("chatcmpl-1", metadata={"b": "3"})

        assert updated.to_dict() == completion("chatcmpl-1") | {"metadata": {"b": "3"}}
        assert await chats.retrieve("chatcmpl-1") == updated

    async def test_null_takes_the_metadata_away(self, chats):
        await save("chatcmpl-1", metadata={"a": "1"})

        updated = await chats.update("chatcmpl-1", metadata=None)

        assert updated.to_dict()["metadata"] == {}

    @pytest.mark.parametrize(
        ("body", "param", "code"),
        [
            ({}, "metadata", "missing_required_parameter"),
            ({"metadata": []}, "metadata", "invalid_type"),
            ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
            ({"metadata": {"a": "b" * 513}}, "metadata.a", "string_above_max_length"),
            ({"metadata": {"a" * 65: ""}}, "metadata", "string_above_max_length"),
            (
                {"metadata": {str(i): "" for i in range(17)}},
                "metadata",
                "object_above_max_properties",
            ),
        ],
    )
    async def test_a_wrong_update_is_refused_and_changes_nothing(self, client, body, param, code):
        await save("chatcmpl-1", metadata={"a": "1"})

        with pytest.raises(openai.BadRequestError) as caught:
            await client.post("/chat/completions/chatcmpl-1", body=body, cast_to=object)

        check_error(caught.value, param, code)
        retrieved = await client.chat.completions.retrieve("chatcmpl-1")
        assert retrieved.to_dict()["metadata"] == {"a": "1"}

    async def test_what_was_deleted_is_gone(self, chats):
        await save_all("chatcmpl-1", "chatcmpl-2")

        deleted = await chats.delete("chatcmpl-1")

        assert deleted.to_dict() == {
            "id": "chatcmpl-1",
            "object": "chat.completion.deleted",
            "deleted": True,
        }
        with pytest.raises(openai.NotFoundError):
            await chats.retrieve("chatcmpl-1")
        assert await ids_of(chats.list()) == ["chatcmpl-2"]

    @pytest.mark.parametrize(
        "call",
        [
            lambda chats: chats.retrieve("x"),
            lambda chats: chats.update("x", metadata={}),
            lambda chats: chats.delete("x"),
            lambda chats: chats.messages.list("x"),
        ],
        ids=["retrieve", "update", "delete", "messages"],
    )
    async def test_an_unknown_one_is_not_found(self, chats, call):
        await save("chatcmpl-1")

        with pytest.raises(openai.NotFoundError) as caught:
            await call(chats)

        check_error(caught.value, None, "not_found")
        assert caught.value.body["message"] == "Chat completion with id 'x' not found."

    async def test_a_taken_id_is_refused_and_keeps_its_completion(self, chats):
        await save("mine")

        with pytest.raises(InvalidRequest) as caught:
            await save("mine", model="other")

        assert caught.value.param == "request_id"
        assert (await chats.retrieve("mine")).model == "m"


class TestList:
    async def test_an_empty_list_has_all_keys(self, chats):
        page = await chats.list()

        assert page.to_dict() == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }

    async def test_a_page_tells_its_ends_and_whether_there_is_more(self, chats):
        await save_all("a", "b", "c")

        page = await chats.list(limit=2)
        rest = await chats.list(limit=2, after="b")

        assert [entry.to_dict() for entry in page.data] == [
            completion("a") | {"metadata": {}},
            completion("b") | {"metadata": {}},
        ]
        assert (page.first_id, page.last_id, page.has_more) == ("a", "b", True)
        assert (rest.first_id, rest.last_id, rest.has_more) == ("c", "c", False)

    async def test_a_page_holds_20_if_not_told_otherwise(self, chats):
        await save_all(*(f"chatcmpl-{i}" for i in range(21)))

        assert len((await chats.list()).data) == 20
        assert len((await chats.list(limit=100)).data) == 21

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
    @pytest.mark.parametrize("order", ["asc", "desc"])
    async def test_paging_loses_and_repeats_nothing(self, chats, order, limit):
        """Of the same time are all, some, or none."""
        stored = ["d", "b", "a", "c", "g", "f", "e"]
        times = [1, 1, 1, 2, 3, 3, 3]
        await save_all(*stored)
        for completion_id, second in zip(stored, times, strict=True):
            at = datetime.fromtimestamp(second, UTC)
            await StoredChatCompletion.objects.filter(pk=completion_id).aupdate(created_at=at)

        listed = await ids_of(chats.list(order=order, limit=limit))

        expected = ["a", "b", "d", "c", "e", "f", "g"]
        assert listed == (expected if order == "asc" else expected[::-1])

    async def test_what_comes_while_paging_is_found_at_the_end(self, chats):
        await save_all("b", "c")
        page = await chats.list(limit=1)
        await save("a")

        assert await ids_of(page) == ["b", "c", "a"]

    async def test_the_cursor_need_not_match_the_filters(self, chats):
        await save("a", model="one")
        await save("b", model="two")
        await save("c", model="one")

        assert await ids_of(chats.list(after="b", model="one")) == ["c"]

    async def test_only_of_a_model(self, chats):
        await save("a", model="one")
        await save("b", model="two")
        await save("c", model="one")

        assert await ids_of(chats.list(model="one", limit=1)) == ["a", "c"]
        assert await ids_of(chats.list(model="on")) == []

    async def test_only_with_all_of_the_metadata(self, chats):
        await save("a", metadata={"user": "ann", "topic": "x"})
        await save("b", metadata={"user": "ann", "topic": "y"})
        await save("c", metadata={"user": "bob", "topic": "x"})
        await save("d", metadata={"user": "ann", "topic": "x", "more": "z"})
        await save("e")

        wanted = {"user": "ann", "topic": "x"}
        assert await ids_of(chats.list(metadata=wanted, limit=1)) == ["a", "d"]
        assert await ids_of(chats.list(metadata={"user": "Ann"})) == []
        assert await ids_of(chats.list(metadata={"more": "x"})) == []

    @pytest.mark.parametrize(
        "key",
        [
            "0",
            "a.b",
            "a__b",
            "contains",
            "a]b",
            "a[b]",
            'a"b',
            "a'b",
            "a\\b",
            "$",
            "%s",
            "wörld 🎉",
        ],
    )
    async def test_any_key_and_value_can_be_asked_for(self, chats, key):
        await save("a", metadata={key: key})
        await save("b", metadata={key: "other"})
        await save("c", metadata={"other": key})

        assert await ids_of(chats.list(metadata={key: key})) == ["a"]

    @pytest.mark.skipif(connection.vendor != "sqlite", reason="reads SQLite's plans")
    @pytest.mark.parametrize("filters", [{}, {"model": "m"}], ids=["all", "model"])
    @pytest.mark.parametrize("order", ["asc", "desc"])
    def test_an_index_has_the_order(self, transactional_db, filters, order):
        stored_chats.save(completion("a"), {"messages": [USER]})
        with CaptureQueriesContext(connection) as queries:
            stored_chats.page({"order": order, "limit": 20, "after": "a"} | filters)

        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {queries[-1]['sql']}")
            plan = " ".join(row[-1] for row in cursor.fetchall())
        assert "USING INDEX" in plan
        assert "B-TREE" not in plan  # a sort

    @pytest.mark.parametrize(
        ("query", "param", "code"),
        [
            ("limit=0", "limit", "integer_below_min_value"),
            ("limit=-1", "limit", "integer_below_min_value"),
            ("limit=101", "limit", "integer_above_max_value"),
            (f"limit={10**40}", "limit", "integer_above_max_value"),
            ("limit=many", "limit", "invalid_type"),
            ("limit=1.0", "limit", "invalid_type"),
            ("limit=%D9%A3", "limit", "invalid_type"),  # a digit, but not one of ours
            ("limit=", "limit", "invalid_type"),
            ("limit=1&limit=2", "limit", "invalid_type"),
            ("order=up", "order", "invalid_value"),
            ("order=ASC", "order", "invalid_value"),
            ("order=asc&order=desc", "order", "invalid_type"),
            ("after=unknown", "after", "invalid_value"),
            ("after=", "after", "invalid_value"),
            ("model=a&model=b", "model", "invalid_type"),
            ("metadata=a", "metadata", "invalid_type"),
            ("metadata=a&metadata[b]=c", "metadata", "invalid_type"),
            ("metadata[a]=b&metadata[a]=c", "metadata.a", "invalid_type"),
            (f"metadata[{'a' * 65}]=b", "metadata", "string_above_max_length"),
            (f"metadata[a]={'b' * 513}", "metadata.a", "string_above_max_length"),
        ],
    )
    async def test_a_wrong_query_is_named(self, client, query, param, code):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.get(f"/chat/completions?{query}", cast_to=httpx2.Response)

        check_error(caught.value, param, code)

    async def test_what_nobody_knows_is_ignored(self, chats):
        await save("a")

        assert await ids_of(chats.list(extra_query={"include": ["x"], "colour": "red"})) == ["a"]


class TestMessages:
    async def test_every_message_has_an_id_of_its_own(self, chats):
        await save("chatcmpl-1", messages=[{"role": "system", "content": "Be kind."}, USER])
        await save("chatcmpl-2")

        page = await chats.messages.list("chatcmpl-1")

        assert [message.to_dict() for message in page.data] == [
            {
                "id": "chatcmpl-1-0",
                "role": "system",
                "content": "Be kind.",
                "content_parts": None,
            },
            {"id": "chatcmpl-1-1", **USER, "content_parts": None},
        ]
        assert (page.first_id, page.last_id) == ("chatcmpl-1-0", "chatcmpl-1-1")
        assert await ids_of(chats.messages.list("chatcmpl-2")) == ["chatcmpl-2-0"]

    @pytest.mark.parametrize("limit", [1, 2, 3, 4])
    @pytest.mark.parametrize("order", ["asc", "desc"])
    async def test_paging_loses_and_repeats_nothing(self, chats, order, limit):
        await save("c", messages=[USER] * 3)

        listed = await ids_of(chats.messages.list("c", order=order, limit=limit))

        expected = ["c-0", "c-1", "c-2"]
        assert listed == (expected if order == "asc" else expected[::-1])

    async def test_parts_come_beside_their_text(self, chats):
        parts = [{"type": "text", "text": "What "}, {"type": "text", "text": "is this?"}]
        await save("c", messages=[{"role": "user", "content": parts, "name": None}])

        [message] = (await chats.messages.list("c")).data

        assert message.content == "What is this?"
        assert [part.to_dict() for part in message.content_parts] == parts

    @pytest.mark.parametrize("arguments", ['{"city": "Zürich"}', {"city": "Zürich"}])
    async def test_a_call_has_its_arguments_as_a_string(self, chats, arguments):
        call = {"id": "call_1", "function": {"name": "weather", "arguments": arguments}}
        result = {"role": "tool", "tool_call_id": "call_1", "content": "Rain"}
        await save("c", messages=[USER, {"role": "assistant", "tool_calls": [call]}, result])

        [_, calling, answered] = (await chats.messages.list("c")).data

        assert calling.content is None
        assert calling.tool_calls[0].function.arguments == '{"city": "Zürich"}'
        assert calling.tool_calls[0].type == "function"
        assert answered.to_dict()["tool_call_id"] == "call_1"

    async def test_other_calls_are_listed_as_they_came(self, chats):
        custom = {"id": "call_1", "type": "custom", "custom": {"name": "sh", "input": "ls"}}
        legacy = {"name": "weather", "arguments": {"city": "Oslo"}}
        messages = [
            {"role": "assistant", "tool_calls": [custom]},
            {"role": "assistant", "function_call": legacy},
        ]
        await save("c", messages=messages)

        [first, second] = (await chats.messages.list("c")).data

        assert first.to_dict()["tool_calls"] == [custom]
        assert second.function_call.arguments == '{"city": "Oslo"}'

    @pytest.mark.parametrize(
        ("query", "param"),
        [("limit=0", "limit"), ("order=up", "order"), ("after=d-0", "after"), ("after=", "after")],
    )
    async def test_a_wrong_query_is_named(self, client, query, param):
        await save_all("c", "d")

        with pytest.raises(openai.BadRequestError) as caught:
            await client.get(f"/chat/completions/c/messages?{query}", cast_to=httpx2.Response)

        assert caught.value.param == param


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("put", "/chat/completions/c"),
        ("post", "/chat/completions/c/messages"),
        ("delete", "/chat/completions"),
    ],
)
async def test_other_methods_are_not_allowed(client, method, path):
    with pytest.raises(openai.APIStatusError) as caught:
        await getattr(client, method)(path, cast_to=httpx2.Response)

    assert caught.value.status_code == 405


def check_error(error: openai.APIStatusError, param: str | None, code: str) -> None:
    assert set(error.body) == {"message", "type", "param", "code"}
    assert (error.type, error.param, error.code) == ("invalid_request_error", param, code)
