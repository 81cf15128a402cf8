"""GET /v1/responses/{id}/input_items through the official client."""

import httpx2
import openai
import pytest

from openai_api.models import StoredResponse


@pytest.fixture
def input_items(client):
    return client.responses.input_items


def user(text: str, **fields) -> dict:
    return {"role": "user", "content": text, **fields}


async def ids_of(page) -> list[str]:
    """Of all pages, as the client asks for them."""
    return [entry.id async for entry in page]


async def test_a_text_is_listed_as_a_message(client, input_items):
    response = await client.responses.create(model="m", input="Hi")

    page = await input_items.list(response.id)

    [item] = page.data
    assert item.id.startswith("msg_")
    assert item.to_dict() == {
        "id": item.id,
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_text", "text": "Hi"}],
    }
    assert (page.first_id, page.last_id, page.has_more) == (item.id, item.id, False)


async def test_items_are_listed_in_their_full_form(client, input_items):
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "1"}
    response = await client.responses.create(model="m", input=[user("Hi", id="i"), call, output])

    page = await input_items.list(response.id, order="asc", include=["reasoning.encrypted_content"])

    first, second, third = page.data
    assert first.id == "i"
    assert second.to_dict() == call | {"id": second.id, "status": "completed"}
    assert third.to_dict() == output | {"id": third.id, "status": "completed"}
    assert page.first_id == "i"


async def test_what_came_before_is_not_listed(client, input_items):
    conversation = await client.conversations.create(items=[user("before")])
    first = await client.responses.create(model="m", input="one", conversation=conversation.id)
    second = await client.responses.create(model="m", input="two", previous_response_id=first.id)

    for response, text in ((first, "one"), (second, "two")):
        [item] = (await input_items.list(response.id)).data
        assert item.content[0].text == text


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_paging_loses_and_repeats_nothing(client, input_items, order, limit):
    items = [user(text, id=text) for text in "abc"]
    response = await client.responses.create(model="m", input=items)

    listed = await ids_of(input_items.list(response.id, order=order, limit=limit))

    assert listed == (["a", "b", "c"] if order == "asc" else ["c", "b", "a"])


async def test_the_newest_20_come_first(client, input_items):
    items = [user(str(i), id=str(i)) for i in range(21)]
    response = await client.responses.create(model="m", input=items)

    page = await input_items.list(response.id)

    assert [item.id for item in page.data] == [str(i) for i in range(20, 0, -1)]
    assert page.has_more


async def test_without_input_the_list_is_empty(client, input_items):
    conversation = await client.conversations.create(items=[user("Hi")])
    response = await client.responses.create(model="m", conversation=conversation.id)

    page = await input_items.list(response.id)

    assert page.to_dict() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


async def test_an_unknown_response_is_not_found(input_items):
    with pytest.raises(openai.NotFoundError) as caught:
        await input_items.list("x")

    assert caught.value.body["message"] == "Response with id 'x' not found."


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("limit=0", "limit", "integer_below_min_value"),
        ("limit=101", "limit", "integer_above_max_value"),
        ("order=up", "order", "invalid_value"),
        ("after=unknown", "after", "invalid_value"),
    ],
)
async def test_a_wrong_query_is_named(client, query, param, code):
    await StoredResponse.objects.acreate(id="mine", model="m", request={})
    with pytest.raises(openai.BadRequestError) as caught:
        await client.get(f"/responses/mine/input_items?{query}", cast_to=httpx2.Response)

    assert (caught.value.param, caught.value.code) == (param, code)
