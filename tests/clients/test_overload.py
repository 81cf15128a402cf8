"""More clients at once than a live server lets in."""

import asyncio
import json
import time
from collections import Counter

NUM_CLIENTS = 420
ROOM = 64 + 256  # the defaults of --max-num-seqs and --max-num-queued-reqs


class Client:
    """A connection, and what came back over it."""

    async def connect(self, port: int) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)

    async def ask(self, body: bytes) -> None:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        asked_at = time.monotonic()
        self.writer.write(f"{head}\r\n\r\n".encode() + body)
        status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        answer = json.loads(await self.reader.readexactly(int(headers["content-length"])))
        self.duration_s = time.monotonic() - asked_at
        self.status, self.headers, self.answer = int(status.split()[1]), headers, answer
        self.writer.close()


async def test_a_crowd_is_let_in_as_far_as_there_is_room_and_the_rest_is_told_at_once(server):
    body = {"model": server.client.models.list().data[0].id, "prompt": "once", "max_tokens": 16}
    clients = [Client() for _ in range(NUM_CLIENTS)]
    for client in clients:
        await client.connect(server.port)
    sent = json.dumps(body | {"ignore_eos": True}).encode()
    await asyncio.gather(*[client.ask(sent) for client in clients])

    served = [client for client in clients if client.status == 200]
    refused = [client for client in clients if client.status == 429]
    assert Counter(c.status for c in clients) == {200: len(served), 429: len(refused)}
    assert len(served) >= ROOM
    assert {client.answer["usage"]["completion_tokens"] for client in served} == {16}
    assert {client.answer["error"]["code"] for client in refused} == {"queue_full"}
    assert all(1 <= int(client.headers["retry-after"]) <= 120 for client in refused)
    # they wait for no model: half of the answers take longer than any refusal
    typical_s = sorted(client.duration_s for client in served)[len(served) // 2]
    assert max((client.duration_s for client in refused), default=0) < typical_s
    assert server.client.completions.create(**body).usage.completion_tokens > 0
