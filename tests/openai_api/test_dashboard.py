"""The admin's first page: what it shows, to whom, how it stays live, and how it ends a request."""

import asyncio
import re
import threading

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client

from inference import service
from inference.engine.core import EngineStats
from nanollmserve_site.handlers import websocket_application
from openai_api import history
from openai_api.console import consumer, dashboard, samples
from openai_api.console.charts import bar_chart, nice_top, sparkline
from openai_api.console.formats import duration, number, size_in_bytes, spoken
from openai_api.console.samples import Quantiles, Sampler, quantiles
from openai_api.history import End
from openai_api.models import RequestLog, StoredResponse, Usage
from openai_api.usage import today
from tests.helpers import in_process_client, scripted_engine
from tests.openai_api.callers import make_key
from tests.openai_api.test_admin import EVIL, make_request, page_of, staff, text_of

WAIT_S = 10
ASK = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing of other tests: neither a page, nor a sample, nor an end."""
    dashboard._rendered.clear()
    history.ends.clear()
    sampler = Sampler()
    monkeypatch.setattr(dashboard, "sampler", sampler)
    monkeypatch.setattr(consumer, "sampler", sampler)
    return sampler


def operator() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("alice"))
    return client


class FakeEngine:
    def __init__(self, **stats) -> None:
        self.stats = EngineStats(**stats)


class TestSamples:
    @pytest.fixture
    def now(self):
        return [1000.0]

    @pytest.fixture
    def sampler(self, now):
        sampler = Sampler(lambda: now[0])
        sampler.engine = FakeEngine(num_generated_tokens=50, num_prompt_tokens=7)
        sampler.take()
        return sampler

    def test_rates_are_those_since_the_last_one(self, sampler, now):
        now[0] += 2
        sampler.engine.stats = EngineStats(
            num_generated_tokens=250, num_prompt_tokens=107, num_queried_tokens=100,
            num_hit_tokens=64, num_running=3, num_waiting=2, kv_cache_usage=0.5,
        )  # fmt: skip
        sampler.take()
        latest = sampler.latest
        assert (latest.generation_per_s, latest.prompt_per_s, latest.hit_rate) == (100, 50, 0.64)
        assert (latest.num_running, latest.num_waiting, latest.kv_cache_usage) == (3, 2, 0.5)
        assert sampler.samples[0].generation_per_s == 0

    def test_an_engine_that_was_begun_anew_counts_from_zero(self, sampler, now):
        now[0] += 2
        sampler.engine.stats = EngineStats(num_generated_tokens=20)
        sampler.take()
        assert sampler.latest.generation_per_s == 10

    def test_requests_are_those_of_the_last_minute(self, sampler, now):
        for i, (status, failed) in enumerate([(200, False), (200, True), (500, True), (429, True)]):
            history.ends.append(End(now[0], status, failed, 0.1 * (i + 1), 0.01))
        sampler.take()
        latest = sampler.latest
        assert (latest.ended_per_min, latest.errors_per_min, latest.refused_per_min) == (4, 2, 1)
        assert latest.first_token_s == Quantiles(0.2, 0.4)
        now[0] += samples.WINDOW_S + 1
        sampler.take()
        assert (sampler.latest.ended_per_min, sampler.latest.first_token_s) == (0, None)

    def test_the_ring_is_five_minutes(self, sampler):
        for _ in range(200):
            sampler.take()
        assert len(sampler.samples) == 150

    def test_quantiles_are_nearest_ranks(self):
        assert quantiles([None]) is None
        assert quantiles([3, None, 1]) == (1, 3)
        assert quantiles(range(1, 101)) == (50, 95)


class TestCharts:
    def test_a_line_ends_at_the_right_edge_and_has_gaps(self):
        (line,) = sparkline([("a", [0, None, 5, 10])], num_slots=4)
        assert line.strokes == ["-1,46 0,46", "200,24 300,2"]
        assert line.areas[1] == "200,46 200,24 300,2 300,46"

    def test_all_lines_have_one_scale(self):
        lines = sparkline([("a", [1.0, 1.0]), ("b", [2.0, 2.0])], 2, top=4.0)
        assert [line.strokes[0].split(",")[1][:2] for line in lines] == ["35", "24"]

    def test_bars_are_stacked(self):
        chart = bar_chart(["mon", "tue"], [("a", [3, 0]), ("b", [1, 0])], width=100, height=100)
        monday, tuesday = chart.bars
        assert [(part.y, part.height, part.kind) for part in monday.parts] == [
            (40, 60, 0),
            (20, 20, 1),
        ]
        assert (monday.total, tuesday.parts, chart.total) == (4, [], 4)
        assert chart.lines == [(100, 0), (50, 2.5), (0, 5)]

    @pytest.mark.parametrize(("highest", "top"), [(0, 1), (1, 1), (3, 5), (11, 20), (5001, 10000)])
    def test_an_axis_ends_at_a_round_number(self, highest, top):
        assert nice_top(highest) == top

    def test_numbers_are_read_easily(self):
        assert [number(value) for value in (0, 3, 0.26, 99.96, 12345)] == [
            "0", "3", "0.3", "100", "12,345",
        ]  # fmt: skip
        times = [duration(value) for value in (None, 0.0042, 0.25, 0.9999, 3.14159, 75)]
        assert times == [
            ("–", ""), ("4.2", "ms"), ("250", "ms"), ("1.00", "s"), ("3.14", "s"), ("75", "s"),
        ]  # fmt: skip
        assert [spoken(value) for value in (5, 3700, 90000)] == ["5 s", "1 h 1 min", "1 d 1 h"]
        assert [size_in_bytes(size) for size in (1536, 5e8, 5e9)] == ["1.5 kB", "477 MB", "4.7 GB"]


@pytest.mark.django_db
class TestPage:
    def test_it_is_whole_without_scripts(self, fresh):
        fresh.engine = FakeEngine()
        fresh.engine.status = type("Status", (), {"state": "loading", "stage": "reading weights"})
        fresh.take()
        key, _ = make_key("bot")
        Usage.objects.create(key=key, day=today(), num_requests=3, num_prompt_tokens=1500)
        row = make_request(endpoint="POST /v1/completions", num_completion_tokens=77, key=key)

        html = page_of(operator(), "/admin/")

        text = text_of(html)
        for title in ("Generation", "Prompts", "Running", "Waiting", "KV cache", "Prefix hits"):
            assert title in text
        assert f"of {settings.ENGINE.max_num_seqs:,}" in text
        assert "The engine takes no requests: reading weights." in text
        assert "completions bot – 77" in text
        assert "bot 3 1,500" in text
        assert re.search(r"Database \d+\.\d kB", text) or re.search(r"Database [\d.]+ MB", text)
        assert f"Version {settings.VERSION}" in text
        assert html.count('class="spark"') == 10
        assert row.pk.replace("_", "_5F") in html
        assert 'href="/playground/"' in html
        assert "API keys" in text  # Django's own list, below

    def test_what_callers_wrote_is_never_markup(self):
        make_request(endpoint=EVIL[:80], error_code=EVIL)
        for url in ("/admin/", "/admin/live/"):
            html = page_of(operator() if url == "/admin/" else self.again(), url)
            assert "&lt;script&gt;alert(1)" in html
            assert "<script>" not in html
            assert "<img src=x" not in html

    @staticmethod
    def again() -> Client:
        client = Client()
        client.force_login(User.objects.get())
        return client

    def test_who_may_see_nothing_sees_figures_alone(self):
        client = Client()
        staff(client)
        make_request(endpoint="POST /v1/completions")
        for url in ("/admin/", "/admin/live/"):
            html = page_of(client, url)
            assert "Generation" in html
            assert "Last requests" not in html
            assert "Top keys" not in html
            assert "Abort" not in html

    def test_a_stranger_is_sent_to_the_login(self):
        for url in ("/admin/", "/admin/live/"):
            assert Client().get(url).url.startswith("/admin/login/")
        assert Client().post("/admin/abort/", {"id": "x"}).url.startswith("/admin/login/")


class Gated:
    """Answers without end; `gate` holds every step up while it is closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, prompt: str) -> str:
        return "word " * 5000


@pytest.fixture
def gated():
    return Gated()


@pytest.fixture
def engine(gated, fresh):
    def step() -> None:
        gated.gate.wait(WAIT_S)
        threading.Event().wait(0.002)

    engine = scripted_engine(gated, max_model_len=30_000, max_num_seqs=2, before_step=step)
    service.install(engine)
    fresh.engine = engine
    yield engine
    gated.gate.set()
    service.install(None)
    engine.close()


@pytest.fixture
def client(engine, transactional_db):
    return in_process_client()


async def until(is_so) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_so():
            await asyncio.sleep(0.01)


@sync_to_async
def browser(*permissions: str, check_csrf: bool = False) -> Client:
    """Of the superuser alice, or of bob, who may do this much."""
    client = Client(enforce_csrf_checks=check_csrf)
    if permissions:
        staff(client, *permissions)
    else:
        client.force_login(User.objects.create_superuser("alice"))
    return client


async def row_of(request_id: str) -> RequestLog:
    async with asyncio.timeout(WAIT_S):
        while True:
            row = await RequestLog.objects.aget(pk=request_id)
            if row.outcome != "running":
                return row
            await asyncio.sleep(0.01)


async def read_all(client, **more) -> None:
    answer = await client.chat.completions.create(**ASK, **more)
    if more:
        async for _ in answer:
            pass


async def started(client, **more) -> tuple[asyncio.Task, str]:
    """Somebody who waits for an answer, and the id of the request, which is being answered."""
    before = set(history.running)
    reading = asyncio.create_task(read_all(client, **more))

    def is_answered() -> bool:
        return any(history.running[id_].num_tokens for id_ in history.running.keys() - before)

    await until(is_answered)
    return reading, (history.running.keys() - before).pop()


async def leave(*readers: asyncio.Task) -> None:
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


class TestAbort:
    async def test_the_callers_stream_ends_and_the_blocks_are_free(self, client, engine):
        reading, id_ = await started(client, stream=True)
        assert engine.stats.kv_cache_usage > 0
        page = await browser()
        html = await sync_to_async(page_of)(page, "/admin/")
        assert f'value="{id_}"' in html

        answer = await sync_to_async(page.post)("/admin/abort/", {"id": id_})

        assert answer.url == "/admin/"
        with pytest.raises(Exception, match="operator of this server has ended"):
            await reading
        await until(lambda: engine.stats.num_running == 0)
        assert engine.stats.kv_cache_usage == 0
        row = await row_of(id_)
        assert (row.outcome, row.error_code) == ("failed", "request_aborted")
        assert row.error_message == "Ended by alice."
        assert id_ not in history.running

    async def test_one_that_waits_for_its_turn(self, client, engine):
        others = [await started(client) for _ in range(2)]
        waiting = asyncio.create_task(
            client.with_options(max_retries=2).chat.completions.create(**ASK)
        )
        await until(lambda: engine.stats.num_waiting == 1)
        id_ = list(history.running)[-1]
        await sync_to_async((await browser()).post)("/admin/abort/", {"id": id_})
        with pytest.raises(Exception, match="has ended this request"):
            await asyncio.wait_for(waiting, 5)  # and it is not sent again
        await until(lambda: engine.stats.num_waiting == 0)
        assert await RequestLog.objects.acount() == 3
        await leave(*(reading for reading, _ in others))

    async def test_a_response_is_cancelled(self, client, engine):
        asking = asyncio.create_task(client.responses.create(model="m", input="Hi"))
        await until(lambda: engine.stats.num_running == 1)
        id_ = next(iter(history.running))
        await until(lambda: history.running[id_].num_tokens > 0)
        assert await sync_to_async(dashboard.abort)(id_, "alice")
        assert (await asking).status == "cancelled"
        assert (await row_of(id_)).error_code == "request_aborted"

    async def test_one_in_the_background(self, client, engine):
        response = await client.responses.create(model="m", input="Hi", background=True)
        await until(lambda: engine.stats.num_running == 1)
        page = await browser()
        html = await sync_to_async(page_of)(page, "/admin/")
        assert f'id="run-{response.id}"' in html
        await sync_to_async(page.post)("/admin/abort/", {"id": response.id})
        await until(lambda: engine.stats.num_running == 0)
        while (await StoredResponse.objects.aget()).status == "in_progress":
            await asyncio.sleep(0.01)
        assert (await StoredResponse.objects.aget()).status == "cancelled"

    async def test_who_may_not_does_not(self, client, engine):
        reading, id_ = await started(client)
        page = await browser("view_requestlog")
        assert (await sync_to_async(page.post)("/admin/abort/", {"id": id_})).status_code == 403
        assert "Abort" not in await sync_to_async(page_of)(page, "/admin/")
        full = await browser(check_csrf=True)
        assert (await sync_to_async(full.post)("/admin/abort/", {"id": id_})).status_code == 403
        assert (await sync_to_async(full.get)(f"/admin/abort/?id={id_}")).status_code == 405
        assert id_ in history.running
        await leave(reading)

    async def test_what_does_not_run_is_no_error(self, client):
        page = await browser()
        answer = await sync_to_async(page.post)("/admin/abort/", {"id": EVIL[:30]}, follow=True)
        assert "It may have ended by itself." in answer.content.decode()
        assert EVIL[:30] not in answer.content.decode()


ORIGIN = {"origin": "http://testserver"}


def socket_of(client: Client | None, **headers: str) -> WebsocketCommunicator:
    sent = {"host": "testserver", **headers}
    if client is not None:
        sent["cookie"] = f"sessionid={client.cookies['sessionid'].value}"
    encoded = [(name.encode(), value.encode()) for name, value in sent.items()]
    return WebsocketCommunicator(websocket_application(), "/admin/live/", encoded)


class TestSocket:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setattr(consumer, "INTERVAL_S", 0.02)
        monkeypatch.setattr(dashboard, "FRESH_S", 0.0)

    async def test_it_tells_what_happens(self, client, engine):
        socket = socket_of(await browser(), **ORIGIN)
        assert (await socket.connect(WAIT_S))[0]
        html = await socket.receive_from(WAIT_S)
        assert "Generation" in html
        assert "Nothing runs" in html
        reading, id_ = await started(client)
        while f'id="run-{id_}"' not in html:
            html = await socket.receive_from(WAIT_S)
        assert "<form" not in html  # nor a token: all with the same rights get the same
        await leave(reading)
        await socket.disconnect(timeout=WAIT_S)

    async def test_only_staff_is_let_in_and_only_from_our_pages(self, client):
        full, stranger = await browser(), Client()
        other = await sync_to_async(User.objects.create_user)("eve")
        await sync_to_async(stranger.force_login)(other)
        for who, headers in (
            (None, ORIGIN),
            (stranger, ORIGIN),
            (full, {}),
            (full, {"origin": "http://evil.example"}),
            (full, {"origin": "http://testserver:81"}),
            (full, {"origin": "null"}),
            (full, ORIGIN | {"host": "evil.example", "origin": "http://evil.example"}),
        ):
            assert not (await socket_of(who, **headers).connect(WAIT_S))[0]

    async def test_it_shows_no_more_than_one_may_see(self, client):
        await sync_to_async(make_request)()
        page = await browser("view_usage")
        socket = socket_of(page, **ORIGIN)
        await socket.connect(WAIT_S)
        html = await socket.receive_from(WAIT_S)
        assert "Top keys" in html
        assert "Last requests" not in html
        await socket.disconnect(timeout=WAIT_S)

    async def test_a_right_that_was_taken_away_ends_with_the_connection(self, client, monkeypatch):
        monkeypatch.setattr(consumer, "MAX_AGE_S", 0.1)
        page = await browser("view_usage")
        socket = socket_of(page, **ORIGIN)
        await socket.connect(WAIT_S)
        assert await self.code_at_the_end(socket) == consumer.TRY_AGAIN
        await User.objects.filter(username="bob").aupdate(is_staff=False)
        assert not (await socket_of(page, **ORIGIN).connect(WAIT_S))[0]

    async def test_it_does_not_hold_up_the_end_of_the_server(self, client, engine):
        socket = socket_of(await browser(), **ORIGIN)
        await socket.connect(WAIT_S)
        engine.is_draining = True
        assert await self.code_at_the_end(socket) == consumer.SERVICE_RESTART

    @staticmethod
    async def code_at_the_end(socket: WebsocketCommunicator) -> int:
        while (message := await socket.receive_output(WAIT_S))["type"] == "websocket.send":
            pass
        await socket.wait(WAIT_S) if socket.future.done() else await socket.disconnect()
        return message["code"]

    async def test_what_is_said_to_it_changes_nothing(self, client):
        socket = socket_of(await browser(), **ORIGIN)
        await socket.connect(WAIT_S)
        await socket.send_to(text_data="abort")
        assert "Generation" in await socket.receive_from(WAIT_S)
        await socket.disconnect(timeout=WAIT_S)


def test_permissions_are_made():
    """They are the table's own, so that a group can have them."""
    names = {name for name, _ in RequestLog._meta.permissions}
    assert names == {"abort_requestlog", "replay_requestlog", "use_playground"}
