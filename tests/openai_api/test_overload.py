"""Who is answered when not everybody can be: states of the server, the queue, fairness, time."""

import json

import httpx2
import pytest
from channels.testing import WebsocketCommunicator

from inference import service
from nanollmserve_site.handlers import http_application, websocket_application

BODIES = {
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"model": "m", "prompt": "Hi"},
    "/v1/responses": {"model": "m", "input": "Hi"},
}


@pytest.fixture
async def http(client):
    transport = httpx2.ASGITransport(app=http_application())
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http


async def response_over_websocket() -> dict:
    """The first frame that comes back."""
    socket = WebsocketCommunicator(websocket_application(), "/v1/responses")
    await socket.connect(10)
    try:
        await socket.send_json_to(BODIES["/v1/responses"] | {"type": "response.create"})
        return json.loads(await socket.receive_from(10))
    finally:
        await socket.disconnect(timeout=10)


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
        refused = await response_over_websocket()

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
        answers = [await http.post(path, json=BODIES[path]) for path in BODIES]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
