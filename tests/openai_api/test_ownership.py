"""What a key has made is there for that key alone: for another one it does not exist."""

import asyncio
import re
import threading
import time
from dataclasses import replace

import pytest

from openai_api import background
from openai_api.database import read, write
from openai_api.models import (
    Conversation,
    EventBatch,
    RequestLog,
    StoredChatCompletion,
    StoredResponse,
)
from openai_api.urls import urlpatterns
from tests.openai_api.callers import Caller, new_caller

pytestmark = pytest.mark.usefixtures("engine", "transactional_db")

HI = {"model": "m", "input": "Hi"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "store": True}


@pytest.fixture
async def alice() -> Caller:
    return await new_caller("alice")


@pytest.fixture
async def bob() -> Caller:
    return await new_caller("bob")


@pytest.fixture
def salts(engine, monkeypatch):
    """Of all that the engine is asked for."""
    found, generate = [], engine.generate

    def noting(request):
        found.append(request.cache_salt)
        return generate(request)

    monkeypatch.setattr(engine, "generate", noting)
    return found


async def completed(caller: Caller, response_id: str) -> bool:
    """Whether a background response ends well."""
    deadline = time.monotonic() + 10
    while (await caller.client.responses.retrieve(response_id)).status != "completed":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    return True


async def made_by(caller: Caller) -> dict[str, str]:
    """One object of each kind."""
    response = await caller.client.responses.create(**HI)
    conversation = await caller.client.conversations.create(
        items=[{"role": "user", "content": "Hi"}]
    )
    items = await caller.client.conversations.items.list(conversation.id)
    chat = await caller.client.chat.completions.create(**CHAT)
    return {
        "response_id": response.id,
        "output_item": response.output[0].id,
        "conversation_id": conversation.id,
        "item_id": items.data[0].id,
        "completion_id": chat.id,
    }


def reference(name: str) -> dict:
    return HI | {"input": [{"type": "item_reference", "id": f"<{name}>"}]}


PREVIOUS = HI | {"previous_response_id": "<response_id>"}
GOING_ON = HI | {"conversation": "<conversation_id>"}
ITEMS = {"items": [{"type": "item_reference", "id": "<item_id>"}]}
OUTPUT_ITEMS = {"items": [{"type": "item_reference", "id": "<output_item>"}]}
METADATA = {"metadata": {"a": "b"}}
NEW_ITEMS = {"items": [{"role": "user", "content": "Me too"}]}

# Method, path, body, and the status of what does not exist.
REQUESTS = [
    ("GET", "responses/<response_id>", None, 404),
    ("GET", "responses/<response_id>?stream=true", None, 404),
    ("GET", "responses/<response_id>?stream=true&starting_after=2", None, 404),
    ("DELETE", "responses/<response_id>", None, 404),
    ("POST", "responses/<response_id>/cancel", {}, 404),
    ("GET", "responses/<response_id>/input_items", None, 404),
    ("POST", "responses", PREVIOUS, 400),
    ("POST", "responses", PREVIOUS | {"stream": True}, 400),
    ("POST", "responses", PREVIOUS | {"background": True}, 400),
    ("POST", "responses", PREVIOUS | {"store": False}, 400),
    ("POST", "responses", GOING_ON, 404),
    ("POST", "responses", GOING_ON | {"store": False}, 404),
    ("POST", "responses", reference("item_id"), 400),
    ("POST", "responses", reference("output_item"), 400),
    ("POST", "responses/input_tokens", PREVIOUS, 400),
    ("POST", "responses/input_tokens", GOING_ON, 404),
    ("POST", "responses/input_tokens", reference("item_id"), 400),
    ("POST", "responses/compact", PREVIOUS, 400),
    ("POST", "responses/compact", reference("output_item"), 400),
    ("GET", "conversations/<conversation_id>", None, 404),
    ("POST", "conversations/<conversation_id>", METADATA, 404),
    ("DELETE", "conversations/<conversation_id>", None, 404),
    ("GET", "conversations/<conversation_id>/items", None, 404),
    ("GET", "conversations/<conversation_id>/items?after=<item_id>", None, 404),
    ("POST", "conversations/<conversation_id>/items", NEW_ITEMS, 404),
    ("GET", "conversations/<conversation_id>/items/<item_id>", None, 404),
    ("DELETE", "conversations/<conversation_id>/items/<item_id>", None, 404),
    ("POST", "conversations", ITEMS, 400),
    ("POST", "conversations", OUTPUT_ITEMS, 400),
    ("GET", "chat/completions/<completion_id>", None, 404),
    ("POST", "chat/completions/<completion_id>", METADATA, 404),
    ("DELETE", "chat/completions/<completion_id>", None, 404),
    ("GET", "chat/completions/<completion_id>/messages", None, 404),
    ("GET", "chat/completions?after=<completion_id>", None, 400),
]


def filled(value, ids: dict[str, str]):
    if isinstance(value, str):
        return re.sub("<([a-z_]+)>", lambda match: ids[match[1]], value)
    if isinstance(value, dict):
        return {key: filled(item, ids) for key, item in value.items()}
    return [filled(item, ids) for item in value] if isinstance(value, list) else value


async def attempt(caller: Caller, number: int, ids: dict[str, str]) -> tuple[int, bytes]:
    method, path, body, _ = REQUESTS[number]
    answer = await caller.send(method, f"/v1/{filled(path, ids)}", filled(body, ids))
    return answer.status_code, answer.content


def delete_everything() -> None:
    for model in (StoredResponse, Conversation, StoredChatCompletion):
        model.objects.all().delete()


def contents() -> list[list[dict]]:
    models = (StoredResponse, Conversation, StoredChatCompletion)
    return [list(model.objects.order_by("pk").values()) for model in models]


class TestAnotherKey:
    async def test_is_told_what_is_told_of_nothing(self, alice, bob):
        """On every route, byte for byte; and it changes nothing."""
        ids = await made_by(alice)
        before = await read(contents)
        numbers = range(len(REQUESTS))
        found = [await attempt(bob, number, ids) for number in numbers]
        assert await read(contents) == before

        await write(delete_everything)
        unknown = [await attempt(bob, number, ids) for number in numbers]
        for number in numbers:
            assert found[number] == unknown[number], REQUESTS[number]
            assert found[number][0] == REQUESTS[number][3], (REQUESTS[number], found[number])

    async def test_whose_these_are_finds_them(self, alice):
        """Else the test above would prove nothing."""
        for number in range(len(REQUESTS)):
            if "cancel" in REQUESTS[number][1]:  # which is for background responses alone
                continue
            status, body = await attempt(alice, number, await made_by(alice))
            assert status == 200, (REQUESTS[number], body)

    def test_every_route_with_an_id_is_tried(self):
        routes = [re.sub("<str:", "<", str(pattern.pattern)) for pattern in urlpatterns]
        tried = {f"v1/{path.partition('?')[0]}" for _, path, _, _ in REQUESTS}
        with_id = {route for route in routes if "<" in route and "<path:name>" not in route}
        assert with_id <= tried

    async def test_over_a_socket(self, alice, bob):
        ids = await made_by(alice)
        requests = [PREVIOUS, GOING_ON, reference("item_id"), reference("output_item")]

        async def attempts(caller: Caller) -> list[dict]:
            async with caller.socket() as socket:
                return [
                    await socket.ask(**({"text": "Hi"} | filled(request, ids)))
                    for request in requests
                ]

        assert {event["type"] for event in await attempts(alice)} == {"response.completed"}
        found = await attempts(bob)
        await write(delete_everything)
        assert found == await attempts(bob)
        assert [event["status"] for event in found] == [400, 404, 400, 400]

    async def test_the_list_of_chats_is_each_ones_own(self, alice, bob):
        mine, yours = await made_by(alice), await made_by(bob)
        for caller, ids in ((alice, mine), (bob, yours)):
            listed = [chat.id async for chat in caller.client.chat.completions.list()]
            assert listed == [ids["completion_id"]]

    async def test_an_idempotency_key_is_each_ones_own(self, alice, bob):
        headers = {"Idempotency_Key": "the-same"}
        answers = [
            await caller.send("POST", "/v1/responses", body, **headers)
            for caller in (alice, bob)
            for body in (HI, HI, HI | {"input": "Else"})
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 400] * 2
        ids = [answer.json()["id"] for answer in answers if answer.status_code == 200]
        assert ids[0] == ids[1] != ids[2] == ids[3]

    async def test_a_chosen_id_that_is_taken_is_not_taken_over(self, alice, bob):
        body = HI | {"request_id": "mine"}
        first = await alice.send("POST", "/v1/responses", body, Idempotency_Key="a")
        second = await bob.send("POST", "/v1/responses", body, Idempotency_Key="a")
        assert (first.status_code, second.status_code) == (200, 400)
        assert (await StoredResponse.objects.aget()).key_id == alice.key.pk

    async def test_a_chain_does_not_go_over_to_another_key(self, alice, bob):
        """Even if the other one takes the id of a deleted link."""
        await alice.send("POST", "/v1/responses", HI | {"request_id": "first"})
        body = HI | {"request_id": "second", "previous_response_id": "first"}
        await alice.send("POST", "/v1/responses", body)
        await alice.send("DELETE", "/v1/responses/first")
        taken = await bob.send("POST", "/v1/responses", HI | {"request_id": "first"})
        assert taken.status_code == 200

        answer = await alice.send("POST", "/v1/responses", HI | {"previous_response_id": "second"})
        assert answer.json()["error"]["code"] == "previous_response_not_found"


class TestWhileItRuns:
    @pytest.fixture
    def gate(self):
        return threading.Event()

    @pytest.fixture
    def script(self, gate):
        def say(prompt: str) -> str:
            gate.wait(10)
            return "done"

        yield say
        gate.set()

    async def test_nobody_else_follows_or_ends_a_background_response(self, alice, bob, gate):
        started = await alice.client.responses.create(**HI, background=True)
        for method, path in (
            ("GET", ""),
            ("GET", "?stream=true"),
            ("DELETE", ""),
            ("POST", "/cancel"),
        ):
            answer = await bob.send(method, f"/v1/responses/{started.id}{path}")
            assert answer.status_code == 404, (method, path)
        gate.set()
        assert await completed(alice, started.id)

    async def test_what_a_killed_server_left_is_still_its_keys(self, alice, bob, gate, salts):
        gate.set()
        first = await alice.client.responses.create(**HI)
        body = HI | {"previous_response_id": first.id, "background": True}
        left = await alice.client.responses.create(**body)
        assert await completed(alice, left.id)
        await EventBatch.objects.filter(response=left.id).adelete()
        rows = StoredResponse.objects.filter(pk=left.id)
        await rows.aupdate(status="queued", boot_id="another", body=body, output=[], usage=None)

        salts.clear()
        recovering = asyncio.run_coroutine_threadsafe(background._recover(), background.loop())
        await asyncio.wrap_future(recovering)
        assert await completed(alice, left.id)
        assert salts == [f"{alice.key.pk}:"]
        assert (await bob.send("GET", f"/v1/responses/{left.id}")).status_code == 404


class TestNobodys:
    """What was made before there were keys."""

    async def test_keys_do_not_see_it(self):
        ids = await made_by(Caller())
        alice = await new_caller("alice")
        for number in range(len(REQUESTS)):
            status, _ = await attempt(alice, number, ids)
            assert status == REQUESTS[number][3], REQUESTS[number]
        assert [chat async for chat in alice.client.chat.completions.list()] == []
        assert await StoredResponse.objects.filter(key=None).aexists()

    async def test_an_idempotency_key_without_an_api_key_counts_once(self):
        answers = [
            await Caller().send("POST", "/v1/responses", HI, Idempotency_Key="a") for _ in "ab"
        ]
        assert len({answer.json()["id"] for answer in answers}) == 1


class TestTheHistory:
    async def test_every_row_shows_its_key(self, alice, bob):
        await made_by(alice)
        await bob.send("GET", "/v1/models")
        rows = RequestLog.objects.values_list("key__name", "endpoint")
        assert {name async for name, _ in rows} == {"alice", "bob"}
        assert [endpoint async for name, endpoint in rows if name == "bob"] == ["GET /v1/models"]


class TestThePrefixCache:
    @staticmethod
    async def ask_everywhere(caller: Caller, **fields) -> None:
        """By each way that leads to the engine."""
        threshold = {"context_management": [{"type": "compaction", "compact_threshold": 1}]}
        first = await caller.send("POST", "/v1/responses", HI | fields)
        for path, body in (
            ("chat/completions", CHAT),
            ("completions", {"model": "m", "prompt": "Hi"}),
            ("responses/compact", HI),
            ("responses", HI | threshold | {"previous_response_id": first.json()["id"]}),
        ):
            answer = await caller.send("POST", f"/v1/{path}", body | fields)
            assert answer.status_code == 200, answer.text
        async with caller.socket() as socket:
            assert (await socket.ask("Hi", **fields))["type"] == "response.completed"

    async def test_no_two_keys_share_a_prefix(self, alice, bob, salts):
        for caller in (alice, bob):
            for fields in ({}, {"cache_salt": "tenant"}):
                salts.clear()
                await self.ask_everywhere(caller, **fields)
                assert len(salts) == 7  # one of them for a summary
                assert set(salts) == {f"{caller.key.pk}:{fields.get('cache_salt', '')}"}

    async def test_without_keys_there_is_nobody_to_be_kept_apart(self, salts):
        await self.ask_everywhere(Caller())
        assert set(salts) == {"nobody:"}

    async def test_all_share_prefixes_if_the_operator_says_so(self, alice, bob, salts, settings):
        settings.API = replace(settings.API, prefix_cache_scope="global")
        await self.ask_everywhere(alice)
        await self.ask_everywhere(bob)
        assert set(salts) == {""}
