"""Who is answered when not everybody can be: states of the server, the queue, fairness, time."""

import asyncio
import json
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx2
import pytest
from asgiref.sync import sync_to_async

from inference import service
from inference.engine.client import QueueLimits
from nanollmserve_site.handlers import http_application
from openai_api import prompts
from openai_api.database import write
from openai_api.models import RequestLog, StoredResponse
from tests.helpers import scripted_engine
from tests.openai_api.callers import Caller, new_caller
from tests.openai_api.wire import DONE, PING, event_of, exchange

BODIES = {
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"model": "m", "prompt": "Hi", "max_tokens": 1000},
    "/v1/responses": {"model": "m", "input": "Hi"},
}


SHORT = {
    "/v1/chat/completions": {"max_tokens": 3},
    "/v1/completions": {"max_tokens": 3},
    "/v1/responses": {"max_output_tokens": 16},
}


@pytest.fixture
async def http(client):
    transport = httpx2.ASGITransport(app=http_application())
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http


class TestWhetherNewRequestsAreTaken:
    @pytest.fixture(params=["draining", "loading", "broken"])
    def state(self, request, engine):
        if request.param == "draining":
            service.drain()
        else:
            engine.status.state, engine.status.stage = request.param, "no step for 30 s"
        yield request.param
        engine.status.state = "ready"

    @pytest.mark.parametrize("path", BODIES)
    async def test_a_new_one_is_a_503_that_says_when_to_come_back(self, http, state, path):
        refused = await http.post(path, json=BODIES[path])

        assert (refused.status_code, refused.json()["error"]["type"]) == (503, "server_error")
        assert 1 <= int(refused.headers["retry-after"]) <= 120

    async def test_so_is_one_over_a_websocket(self, http, state):
        async with Caller().socket() as socket:
            refused = await socket.ask("Hi")

        assert (refused["type"], refused["status"]) == ("error", 503)
        assert int(refused["error"]["headers"]["retry-after"]) >= 1

    async def test_a_balancer_is_told(self, http, state):
        live, ready = await http.get("/health"), await http.get("/health/ready")

        assert live.json()["status"] == service.state() == state
        assert live.status_code == (503 if state == "broken" else 200)
        assert ready.status_code == 503
        assert int(ready.headers["retry-after"]) >= 1

    async def test_afterwards_all_is_well(self, http):
        assert (await http.get("/health/ready")).json() == {"status": "ready", "model": "m"}
        answers = [await http.post(path, json=BODIES[path] | SHORT[path]) for path in BODIES]
        assert [answer.status_code for answer in answers] == [200, 200, 200]

    async def test_who_was_let_in_before_is_answered(self, http, engine, monkeypatch):
        """One was let in and is not queued yet when the draining begins."""
        chat_prompt = prompts.chat_prompt

        async def drained_meanwhile(*args, **kwargs):
            service.drain()
            return await chat_prompt(*args, **kwargs)

        monkeypatch.setattr("openai_api.views.chat.chat_prompt", drained_meanwhile)
        path = "/v1/chat/completions"
        answer = await http.post(path, json=BODIES[path] | SHORT[path])
        assert answer.status_code == 200


@pytest.fixture
def script():
    """So many words that nobody waits for the last."""
    return lambda prompt: "word " * 400


class TestAFullQueue:
    @pytest.mark.parametrize("path", BODIES)
    async def test_turns_away_before_anything_is_done(self, http, engine, path, monkeypatch):
        def never(*args, **kwargs):
            raise AssertionError("it was tokenized")

        monkeypatch.setattr(prompts.chat_template, "encode", never)
        engine.limits = QueueLimits(0)
        refused = await http.post(path, content=b"not even JSON")
        await write(int)

        error = refused.json()["error"]
        assert refused.status_code == 429
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert not await RequestLog.objects.aexists()

    async def test_neither_a_refusal_nor_an_answer_waits_for_the_thread_of_django(
        self, http, engine
    ):
        """All of Django's synchronous code has one thread, which others may keep busy."""
        go_on = threading.Event()
        busy = asyncio.create_task(sync_to_async(go_on.wait)())
        path, statuses = "/v1/chat/completions", []
        try:
            async with asyncio.timeout(20):
                for limit in (8, 0):
                    engine.limits = QueueLimits(limit)
                    answer = await http.post(path, json=BODIES[path] | SHORT[path])
                    statuses.append(answer.status_code)
        finally:
            go_on.set()
            await busy
        assert statuses == [200, 429]

    async def test_a_refusal_costs_less_than_5_ms(self, engine, transactional_db):
        engine.limits = QueueLimits(0)
        path, costs_s = "/v1/chat/completions", []
        for _ in range(30):
            began_at = time.thread_time()
            async with exchange(path, BODIES[path]) as answer:
                assert await answer.status() == 429
            costs_s.append(time.thread_time() - began_at)
        assert sorted(costs_s)[-3] < 0.005

    async def test_holds_what_it_says_whoever_comes_at_the_same_time(self, http, engine):
        engine.limits = QueueLimits(3)
        path, sent = "/v1/responses", BODIES["/v1/responses"] | SHORT["/v1/responses"]
        answers = await asyncio.gather(*[http.post(path, json=sent) for _ in range(12)])

        assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 9
        await write(int)
        assert await RequestLog.objects.acount() == 3
        assert (await http.post(path, json=sent)).status_code == 200  # every place is free again

    async def test_whatever_is_wrong_with_a_request_its_place_is_free_again(self, http, engine):
        engine.limits = QueueLimits(2)
        for path in BODIES:
            for body in ({"model": "unknown"}, BODIES[path] | {"temperature": 9}):
                assert (await http.post(path, json=body)).status_code in (400, 404)
        async with Caller().socket() as socket:
            for fields in ({"model": "unknown"}, {"temperature": 9}):
                assert (await socket.ask("Hi", **fields))["type"] == "error"
        assert not engine._places
        engine.check_capacity(2)

    async def test_of_one_key_leaves_room_for_another(self, engine, transactional_db):
        many, few = await new_caller("many"), await new_caller("few")
        engine.limits = QueueLimits(4)
        go_on = threading.Event()
        core = engine._life.core
        add = core.add
        core.add = lambda request: (go_on.wait(30), add(request))
        path = "/v1/chat/completions"
        body = BODIES[path] | SHORT[path]
        sent = [asyncio.create_task(many.send("POST", path, body)) for _ in range(6)]
        while sum(task.done() for task in sent) < 2:
            await asyncio.sleep(0.01)
        assert {task.result().status_code for task in sent if task.done()} == {429}
        asking = asyncio.create_task(few.send("POST", path, body))
        while engine.backlog.num_unfinished < 5 and not asking.done():
            await asyncio.sleep(0.01)
        go_on.set()
        other, *answers = await asyncio.gather(asking, *sent)

        assert other.status_code == 200
        assert sorted(answer.status_code for answer in answers) == [200] * 4 + [429] * 2


class TestTime:
    @pytest.fixture
    def engine(self, script, settings):
        """One request at a time, and that one slowly."""
        settings.API = replace(settings.API, queue_timeout_s=0.3)
        engine = scripted_engine(script, max_num_seqs=1, before_step=lambda: time.sleep(0.01))
        service.install(engine)
        yield engine
        service.install(None)
        engine.close()

    @asynccontextmanager
    async def busy(self):
        """While somebody else is being answered."""
        async with exchange("/v1/completions", BODIES["/v1/completions"] | {"stream": True}) as one:
            assert await one.status() == 200
            yield

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("path", BODIES)
    async def test_who_waits_too_long_is_told_so(self, client, http, path, stream):
        """With a status, if nothing was sent yet."""
        async with self.busy(), exchange(path, BODIES[path] | {"stream": stream}) as answer:
            status = await answer.status()
            writes = [write async for write in answer.writes()]
        if path == "/v1/responses" and stream:
            assert (status, writes[-1]) == (200, DONE)
            last = event_of(writes[-2])
            assert last["type"] == "response.failed"
            assert last["response"]["error"]["code"] == "queue_timeout"
        else:
            error = json.loads(b"".join(writes))["error"]
            assert (status, error["type"]) == (429, "rate_limit_error")
            assert error["code"] == "queue_timeout"
            assert int(answer.headers["retry-after"]) >= 1
        if path == "/v1/responses":
            assert (await StoredResponse.objects.alatest("created_at")).status == "failed"

    async def test_a_stream_that_has_begun_to_ping_is_told_in_an_event(self, client, settings):
        settings.API = replace(settings.API, ping_interval_s=0.05)
        path = "/v1/chat/completions"
        async with self.busy(), exchange(path, BODIES[path] | {"stream": True}) as answer:
            assert await answer.status() == 200
            writes = [write async for write in answer.writes()]

        assert writes.count(PING) >= 2
        error = json.loads([write for write in writes if write != PING][0][len("data: ") :])
        assert error["error"]["code"] == "queue_timeout"
        assert writes[-1] == DONE

    async def test_who_sends_it_again_with_the_same_key_is_answered(self, client, http):
        headers = {"Idempotency-Key": "k"}
        body = BODIES["/v1/responses"] | SHORT["/v1/responses"]
        async with self.busy():
            refused = await http.post("/v1/responses", json=body, headers=headers)
        again = await http.post("/v1/responses", json=body, headers=headers)

        assert (refused.status_code, again.status_code) == (429, 200)
        assert again.json()["status"] == "incomplete"

    async def test_what_is_done_in_the_background_waits(self, client, http):
        body = BODIES["/v1/responses"] | SHORT["/v1/responses"] | {"background": True}
        async with self.busy():
            queued = (await http.post("/v1/responses", json=body)).json()
            await asyncio.sleep(0.6)
        for _ in range(200):
            now = (await http.get(f"/v1/responses/{queued['id']}")).json()
            if now["status"] not in ("queued", "in_progress"):
                break
            await asyncio.sleep(0.02)
        assert now["status"] == "incomplete"
        assert now["usage"]["output_tokens"] == 16

    async def test_an_answer_that_takes_too_long_ends_like_one_that_is_too_long(
        self, client, http, settings
    ):
        settings.API = replace(settings.API, total_timeout_s=0.5)
        chat, text, response = [
            (await http.post(path, json=BODIES[path])).json() for path in BODIES
        ]

        for choice in (chat["choices"][0], text["choices"][0]):
            assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "timeout")
        assert chat["choices"][0]["message"]["content"].startswith("word word")
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["output"][0]["content"][0]["text"].startswith("word word")
