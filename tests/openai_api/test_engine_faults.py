"""An engine that dies or hangs under its requests, as the API's clients see it."""

import asyncio
import json
import time

import httpx2
import openai
import pytest

from inference import service
from nanollmserve_site.handlers import http_application
from openai_api.models import RequestLog, StoredResponse
from tests.helpers import scripted_engine
from tests.openai_api.test_background import ended, events_of

pytestmark = pytest.mark.django_db(transaction=True)

TEXT = "".join(f"This is sentence {i}. " for i in range(20))
TIMEOUT_S = 1.0  # a step of a busy machine takes less


class Faults:
    """What the model's next step does instead of computing; kept short, it is slow enough."""

    def __init__(self) -> None:
        self.next = None

    def before_step(self) -> None:
        time.sleep(0.001)
        fault, self.next = self.next, None
        if fault == "die":
            raise SystemExit
        if fault == "hang":
            time.sleep(3 * TIMEOUT_S)


@pytest.fixture
def faults():
    return Faults()


@pytest.fixture
def engine(faults):
    """It goes on where a prompt ends in the middle of the answer."""

    def script(prompt):
        return TEXT.removeprefix(prompt.rpartition("assistant\n")[2])

    engine = scripted_engine(
        script, max_num_seqs=6, before_step=faults.before_step, step_timeout_s=TIMEOUT_S
    )
    service.install(engine)
    yield engine
    service.install(None)
    engine.close()


@pytest.fixture
async def http(client):
    transport = httpx2.ASGITransport(app=http_application())
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http


CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
ASKED = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "m", "prompt": "Hi", "max_tokens": 1500},
    "/v1/responses": {"model": "m", "input": "Hi"},
}


def last_of(answer) -> dict:
    """A whole answer, or the last event of a stream that had more than one."""
    events = [line for line in answer.text.split("\n") if line.startswith("data: {")]
    assert len(events) != 1
    return json.loads(events[-1].removeprefix("data: ")) if events else answer.json()


async def until_running(engine, number: int = 1) -> None:
    async with asyncio.timeout(10):
        while engine.stats.num_generated_tokens < 60 or engine.stats.num_running < number:
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("fault", ["die", "hang"])
async def test_every_request_that_runs_ends_with_an_error(http, engine, faults, fault):
    asked = [
        asyncio.create_task(http.post(path, json=body | {"stream": stream}))
        for path, body in ASKED.items()
        for stream in (False, True)
    ]
    await until_running(engine, len(asked))
    faults.next = fault
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*asked)

    assert [answer.status_code for answer in answers] == [500, 200, 500, 200, 200, 200]
    for answer in answers[:4]:
        assert last_of(answer)["error"]["type"] == "server_error"
    *_, whole, streamed = map(last_of, answers)
    assert streamed["type"] == "response.failed"
    for response in (whole, streamed["response"]):
        assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
        assert response["output"][0]["content"][0]["text"].startswith("Thi")
    assert "SystemExit" not in "".join(answer.text for answer in answers)
    async with asyncio.timeout(10):
        while engine.status.state != "ready":
            await asyncio.sleep(0.01)
    health = (await http.get("/health")).json()
    assert (health["num_restarts"], health["status"]) == (1, "ready")
    assert "nanollm_engine_restarts 1.0" in (await http.get("/metrics")).text
    assert (await http.post("/v1/chat/completions", json=CHAT)).json()["choices"]
    outcomes = [log.outcome async for log in RequestLog.objects.all()]
    assert sorted(outcomes) == ["failed"] * 6 + ["succeeded"]
    statuses = [(row.status, row.error["code"]) async for row in StoredResponse.objects.all()]
    assert statuses == [("failed", "server_error")] * 2


async def test_while_it_restarts_nobody_is_sent_here(http, engine, faults, monkeypatch):
    load, states = engine._load, []

    def look_and_load(report):
        states.append(engine.status.state)
        time.sleep(0.3)
        return load(report)

    monkeypatch.setattr(engine, "_load", look_and_load)
    asked = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
    await until_running(engine)
    faults.next = "die"
    await asked
    ready, refused = await asyncio.gather(
        http.get("/health/ready"), http.post("/v1/chat/completions", json=CHAT)
    )

    assert states == ["loading"]
    assert ready.status_code == refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert "the engine has died" in ready.json()["error"]["message"]


class TestBackground:
    async def test_it_goes_on_with_the_next_engine_and_nobody_notices(self, client, engine, faults):
        response = await client.responses.create(
            model="m", input="Hi", background=True, max_output_tokens=1500
        )
        follower = asyncio.create_task(events_of(client, response.id))
        await until_running(engine)
        faults.next = "die"
        events = await follower
        response = await ended(client, response.id)

        assert engine.stats.num_restarts == 1
        assert (response.status, response.output_text) == ("completed", TEXT)
        assert response.usage.output_tokens == len(TEXT) + 1
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
        assert "".join(deltas) == TEXT
        assert await events_of(client, response.id) == events

    async def test_the_second_time_it_fails_for_it_may_be_the_reason(self, client, engine, faults):
        response = await client.responses.create(model="m", input="Hi", background=True)
        for number in range(2):
            await until_running(engine)
            faults.next = "hang"
            async with asyncio.timeout(10):
                while engine.stats.num_restarts == number:
                    await asyncio.sleep(0.01)
        response = await ended(client, response.id)

        assert response.status == "failed"
        assert response.error.code == "server_error"
        last = (await events_of(client, response.id))[-1]
        assert last["type"] == "response.failed"

    async def test_it_can_be_cancelled_while_there_is_no_engine(
        self, client, engine, faults, monkeypatch
    ):
        load = engine._load
        monkeypatch.setattr(engine, "_load", lambda report: time.sleep(1) or load(report))
        response = await client.responses.create(model="m", input="Hi", background=True)
        await until_running(engine)
        faults.next = "die"
        while engine.status.state == "ready":
            await asyncio.sleep(0.01)
        assert (await client.responses.cancel(response.id)).status == "cancelled"
        assert engine.status.state == "loading"

    async def test_without_another_engine_it_fails(self, client, engine, faults, monkeypatch):
        monkeypatch.setattr(engine, "_load", lambda report: 1 / 0)
        response = await client.responses.create(model="m", input="Hi", background=True)
        await until_running(engine)
        faults.next = "die"

        assert (await ended(client, response.id)).status == "failed"
        with pytest.raises(openai.InternalServerError) as caught:
            await client.responses.create(model="m", input="Hi", background=True)
        assert caught.value.status_code == 503
