"""Callers with keys of their own, over HTTP and WebSocket."""

import json
from contextlib import asynccontextmanager

import httpx2
from channels.testing import WebsocketCommunicator

from nanollmserve_site.handlers import http_application, websocket_application
from openai_api.database import write
from openai_api.models import ApiKey
from tests.helpers import in_process_client

WAIT_S = 10


class Caller:
    """One key, and what it is sent with. Without a key: a program that shows none."""

    def __init__(self, key: ApiKey | None = None, secret: str = "") -> None:
        self.key, self.secret = key, secret
        self.headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self.client = in_process_client(secret or "unused")

    async def send(self, method: str, path: str, body=None, **headers: str) -> httpx2.Response:
        transport = httpx2.ASGITransport(app=http_application())
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.request(method, path, json=body, headers=self.headers | sent)

    @asynccontextmanager
    async def socket(self):
        """A connection that has been accepted."""
        headers = [(k.lower().encode(), v.encode()) for k, v in self.headers.items()]
        socket = WebsocketCommunicator(websocket_application(), "/v1/responses", headers)
        accepted, _ = await socket.connect(WAIT_S)
        assert accepted
        try:
            yield Socket(socket)
        finally:
            await socket.disconnect(timeout=WAIT_S)


class Socket:
    def __init__(self, socket: WebsocketCommunicator) -> None:
        self._socket = socket

    async def frame(self) -> dict:
        return await self._socket.receive_output(WAIT_S)

    async def event(self) -> dict:
        return json.loads((await self.frame())["text"])

    async def ask(self, text: str, **fields) -> dict:
        """The last event of a response."""
        request = {"type": "response.create", "model": "m", "input": text}
        await self._socket.send_json_to(request | fields)
        while True:
            event = await self.event()
            if event["type"] in ("error", "response.completed", "response.failed"):
                return event


def make_key(name: str, **fields) -> tuple[ApiKey, str]:
    key = ApiKey(name=name, **fields)
    secret = key.set_secret()
    key.full_clean()
    key.save()
    return key, secret


async def new_caller(name: str, **fields) -> Caller:
    return Caller(*await write(lambda: make_key(name, **fields)))
