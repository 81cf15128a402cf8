"""Stored requests asked again from the admin, and rows taken away as JSONL."""

import asyncio
import json
import re
import threading
from datetime import UTC, datetime

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.test import AsyncClient, Client

from openai_api import keys
from openai_api.console import export, replay_admin
from openai_api.models import RequestLog, StoredChatCompletion, StoredResponse, Usage
from tests.helpers import in_process_client
from tests.openai_api.callers import Caller, make_key
from tests.openai_api.showing import Listener, listening_engine
from tests.openai_api.test_admin import (
    EVIL,
    make_request,
    make_response,
    page_of,
    staff,
    text_of,
    url_of,
)

NOTHING = {"instructions": "", "temperature": "", "top_p": "", "max_tokens": "", "seed": ""}


@pytest.fixture
def model():
    """Is told everything as JSON, and says what the test wants."""
    return Listener()


@pytest.fixture
def engine(model):
    with listening_engine(model) as engine:
        yield engine


@pytest.fixture
def client(engine, transactional_db):
    return in_process_client()


@sync_to_async
def browser(*permissions: str) -> Client:
    client = Client()
    if permissions:
        staff(client, *permissions)
    else:
        client.force_login(
            User.objects.get_or_create(username="alice", is_superuser=True, is_staff=True)[0]
        )
    return client


async def get(page: Client, url: str) -> str:
    return await sync_to_async(page_of)(page, url)


async def replayed(row, **fields) -> tuple[str, str]:
    """The page with both answers, and its path."""
    page = await browser()
    sent = await sync_to_async(page.post)(url_of(row, "replay"), NOTHING | fields)
    assert sent.status_code == 302, text_of(sent.content.decode())
    return await get(page, sent.url), sent.url


async def told(row, **fields) -> str:
    """What the form says that was not accepted."""
    page = await browser()
    sent = await sync_to_async(page.post)(url_of(row, "replay"), NOTHING | fields)
    assert sent.status_code == 200
    return text_of(sent.content.decode())


class TestReplay:
    async def test_a_response_with_other_settings(self, client, model):
        model.answer = lambda prompt: "first"
        await client.responses.create(
            model="m", input="Why?", instructions="Be brief.", temperature=0.5, metadata={"a": "b"}
        )
        row = await StoredResponse.objects.aget()
        model.answer = lambda prompt: EVIL

        html, _ = await replayed(
            row, instructions="Be long.", temperature="0.25", seed="3", max_tokens="900"
        )

        assert [m["content"] for m in model.messages] == ["Be long.", "Why?"]
        new = await StoredResponse.objects.exclude(pk=row.pk).aget()
        assert new.request["temperature"] == 0.25
        assert new.request["max_output_tokens"] == 900
        assert new.request["metadata"] == {"a": "b", "replay_of": row.pk, "replay_seed": "3"}
        text = text_of(html)
        both = text[text.index("Stored answer") : text.index("Once more")]
        assert "Be brief. assistant first" in both
        assert "Be long. assistant &lt;script&gt;alert(1)" in both
        assert "Temperature 0.5" in both
        assert "Temperature 0.25" in both
        assert "<script>alert" not in html
        log = await RequestLog.objects.aget(response_id=new.pk)
        assert log.endpoint == "POST /v1/responses"
        assert log.user_agent == f"replay of {row.pk} by alice"
        assert (log.outcome, log.time_to_first_token_s is not None) == ("succeeded", True)

    async def test_a_chat_with_other_instructions(self, client, model):
        await client.chat.completions.create(
            model="m",
            messages=[
                {"role": "system", "content": "Old."},
                {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            ],
            temperature=0.5,
            max_tokens=5,
            store=True,
            tools=[{"type": "function", "function": {"name": "look", "parameters": {}}}],
        )
        row = await StoredChatCompletion.objects.aget()
        page = await get(await browser(), url_of(row, "replay"))
        assert 'value="0.5"' in page
        assert 'value="5"' in page
        assert "Old.</textarea>" in page

        await replayed(row, instructions="New.", max_tokens="7")

        assert [(m["role"], m["content"]) for m in model.messages] == [
            ("system", "New."),
            ("user", "Hi"),
        ]
        assert model.tools == ["look"]
        new = await StoredChatCompletion.objects.exclude(pk=row.pk).aget()
        assert new.request["max_completion_tokens"] == 7
        assert "temperature" not in new.request
        assert "max_tokens" not in new.request

    async def test_the_whole_conversation_is_asked_again_as_nobodys(self, client, model):
        key, secret = await sync_to_async(make_key)("bot")
        keys.outdate()
        caller = Caller(key, secret).client
        first = await caller.responses.create(model="m", input="One")
        await caller.responses.create(model="m", input="Two", previous_response_id=first.id)
        row = await StoredResponse.objects.aget(previous=first.id)
        before = await Usage.objects.aget(key=key)

        await replayed(row)

        assert [m["content"] for m in model.messages] == ["One", "ok", "Two"]
        new = await StoredResponse.objects.aget(key=None)
        assert new.previous_id is None
        after = await Usage.objects.aget(key=key)
        assert after.num_requests == before.num_requests
        listed = await Caller(key, secret).send("GET", f"/v1/responses/{new.pk}")
        assert listed.status_code == 404

    async def test_what_cannot_be_asked_says_why(self, client, model):
        await client.responses.create(model="m", input="Hi")
        row = await StoredResponse.objects.aget()
        assert "less than or equal to 2" in await told(row, temperature="3")
        assert "maximum context length" in await told(row, instructions="long " * 40_000)
        gone = await sync_to_async(make_response)(previous_id="resp_gone")
        assert "&#x27;resp_gone&#x27; not found" in await told(gone)
        assert await StoredResponse.objects.acount() == 2

    async def test_one_that_takes_long_has_a_page_to_wait_on(self, client, model, monkeypatch):
        monkeypatch.setattr(replay_admin, "FIRST_LOOK_S", 0.2)
        await client.responses.create(model="m", input="Hi")
        row, go_on = await StoredResponse.objects.aget(), threading.Event()
        model.answer = lambda prompt: go_on.wait(10) and "late"

        html, url = await replayed(row)

        assert 'http-equiv="refresh"' in html
        assert "is being generated" in html
        go_on.set()
        while "is being generated" in html:
            await asyncio.sleep(0.02)
            html = await get(await browser(), url)
        assert 'http-equiv="refresh"' not in html
        assert "assistant late" in text_of(html)

    async def test_only_with_permission_and_only_by_post(self, client):
        await client.responses.create(model="m", input="Hi")
        row = await StoredResponse.objects.aget()
        url = url_of(row, "replay")
        looking = await browser("view_storedresponse", "view_requestlog")
        for send in (looking.get, looking.post):
            assert (await sync_to_async(send)(url)).status_code == 403
        assert url not in await get(looking, url_of(row))
        assert (await sync_to_async(Client().post)(url)).url.startswith("/admin/login/")
        careful = Client(enforce_csrf_checks=True)
        page = await browser()
        careful.cookies = page.cookies
        assert (await sync_to_async(careful.post)(url, NOTHING)).status_code == 403
        assert url in await get(page, url_of(row))
        await get(page, f"{url}?temperature=1")
        assert await StoredResponse.objects.acount() == 1

    async def test_only_its_own_replays_are_shown_beside_it(self, client):
        row = await sync_to_async(make_response)()
        other = await sync_to_async(make_request)(user_agent="replay of resp_x by alice")
        page = await browser()
        answer = await sync_to_async(page.get)(f"{url_of(row, 'replay')}{other.pk}/")
        assert answer.status_code == 404


async def exported(url: str, data: dict | None = None) -> list[dict]:
    page = AsyncClient()
    user, _ = await User.objects.aget_or_create(username="al", is_staff=True, is_superuser=True)
    await page.aforce_login(user)
    answer = await (page.get(url) if data is None else page.post(url, data))
    assert answer.status_code == 200
    assert answer["Content-Type"] == "application/jsonl; charset=utf-8"
    assert answer.streaming
    text = b"".join([part async for part in answer.streaming_content]).decode()
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


@pytest.mark.django_db(transaction=True)
class TestExport:
    HISTORY = "/admin/openai_api/requestlog/"
    RESPONSES = "/admin/openai_api/storedresponse/"

    async def test_all_that_the_list_is_filtered_to(self, monkeypatch):
        monkeypatch.setattr(export, "BATCH_SIZE", 2)
        for i in range(5):
            await sync_to_async(make_request)(id=f"req_{i}", status=200 if i else 404)
        rows = await exported(f"{self.HISTORY}export/?http=2xx")
        assert [row["id"] for row in rows] == ["req_4", "req_3", "req_2", "req_1"]
        assert rows[0]["endpoint"] == "POST /v1/responses"
        assert "boot_id" not in rows[0]

    async def test_what_was_selected(self):
        rows = [await sync_to_async(make_response)() for _ in range(3)]
        chosen = {"action": "export_selected", "_selected_action": [rows[1].pk]}
        (row,) = await exported(self.RESPONSES, chosen)
        assert row["id"] == rows[1].pk
        assert row["output"][0]["content"][0]["text"] == "A table of blocks."
        assert row["input"][0]["content"][0]["text"] == "What is paging?"

    async def test_rows_of_one_moment_come_once_each(self, monkeypatch):
        monkeypatch.setattr(export, "BATCH_SIZE", 2)
        row = await sync_to_async(make_request)(id="req_a")
        for name in "bcde":
            await sync_to_async(make_request)(id=f"req_{name}", created_at=row.created_at)
        rows = await exported(f"{self.HISTORY}export/")
        assert [row["id"] for row in rows] == [f"req_{name}" for name in "edcba"]

    async def test_no_more_than_a_batch_is_read_ahead(self, monkeypatch):
        monkeypatch.setattr(export, "BATCH_SIZE", 2)
        for i in range(6):
            await sync_to_async(make_request)(id=f"req_{i}")
        lines = export.lines(RequestLog.objects.all())
        first = await anext(lines)
        assert first.count(b"\n") == 2
        await RequestLog.objects.exclude(pk__in=["req_5", "req_4"]).adelete()
        assert [line async for line in lines] == []

    @pytest.mark.parametrize("value", [2**70, "\ud800", "é\n\u2028"])
    async def test_any_value_is_one_line(self, value):
        await sync_to_async(make_response)(request={"x": value})
        (row,) = await exported(f"{self.RESPONSES}export/")
        assert row["x"] == value

    async def test_who_may_not_look_gets_nothing(self):
        page = await browser("view_storedresponse")
        url = f"{self.HISTORY}export/"
        assert (await sync_to_async(page.get)(url)).status_code == 403
        assert (await sync_to_async(Client().get)(url)).url.startswith("/admin/login/")
        page = await browser()
        assert (await sync_to_async(page.get)(f"{url}?nonsense=1")).url == self.HISTORY


@pytest.mark.django_db
class TestHistoryBars:
    def test_they_are_as_long_as_beside_the_longest(self):
        make_request(duration_s=4, time_to_first_token_s=1, num_completion_tokens=40)
        make_request(duration_s=1, time_to_first_token_s=0.5, num_completion_tokens=5)
        client = Client()
        client.force_login(User.objects.create_superuser("alice"))
        html = page_of(client, "/admin/openai_api/requestlog/")
        bars = re.findall(r'bar-first" width="([\d.]+)".*?bar-rest" x="\S+" width="([\d.]+)"', html)
        assert bars == [("12.5", "12.5"), ("0", "50.0"), ("25.0", "75.0"), ("0", "100.0")]

    @pytest.mark.parametrize(("query", "found"), [("2020-01-02", True), ("2020-01-03", False)])
    def test_a_day_can_be_chosen(self, query, found):
        make_request(id="req_then", created_at=datetime(2020, 1, 2, 23, 59, tzinfo=UTC))
        client = Client()
        client.force_login(User.objects.create_superuser("alice"))
        html = page_of(client, f"/admin/openai_api/requestlog/?day={query}")
        assert ("req_5Fthen" in html) is found
        assert f"?day={query}" in html
