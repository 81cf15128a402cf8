"""An application for daphne to serve: tests/test_daphne_patch.py is its client."""

import os

import daphne.server  # noqa: F401  before the patch, as its command does

from nanollmserve_site import daphne_patch
from nanollmserve_site.config import ServerConfig

CHUNK, NUM_CHUNKS = b"x" * 2**20, 200
MAX_BODY_SIZE = 2**20

sent = {"chunks": 0, "gone": 0}


async def application(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        if scope["path"] == "/flood":
            await flood({"type": "websocket.send", "bytes": CHUNK}, send)
        await send({"type": "websocket.close", "code": 1012})
        return
    if scope["path"] == "/flood":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        message = {"type": "http.response.body", "body": CHUNK, "more_body": True}
        await flood(message, send)
        await send({"type": "http.response.body"})
        return
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message["more_body"]
    text = f"{size} {sent['chunks']} {sent['gone']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text})


async def flood(message, send):
    for _ in range(NUM_CHUNKS):
        await send(message)
        sent["chunks"] += 1
    sent["gone"] += 1


if "PATCHED" in os.environ:
    daphne_patch.apply(MAX_BODY_SIZE, ServerConfig(upload_timeout_s=1, send_timeout_s=1))
