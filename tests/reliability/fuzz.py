"""Whatever is sent: no 5xx, no HTML, every refusal in OpenAI's shape, and the server lives on.

    python -m tests.reliability.fuzz [bodies] [frames] [raw requests] [seed]

Bodies and frames are valid ones with random changes, raw requests broken HTTP.
"""

import json
import random
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import websockets.sync.client
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from tests.helpers import LiveServer, live_server
from tests.reliability.mutations import mutated
from tests.reliability.payloads import PAYLOADS, RESPONSES
from tests.reliability.programme import Check, result

MODEL = "nanollmserve-demo"
# Short answers: what is tested is what comes before them.
SMALL = {"NANOLLM_MAX_MODEL_LEN": "512", "NANOLLM_MAX_CHOICES": "4"}
PATIENCE_S = 600.0  # a machine may stand still for minutes, and then there is nothing to be seen
ERROR_KEYS = {"message", "type", "param", "code"}


def run(
    num_bodies: int = 20_000,
    num_frames: int = 2_000,
    num_raw: int = 2_000,
    seed: int = 0,
    max_stall_s: float = 1.0,
) -> dict:
    """All three on one server. `figures` has what was sent, what came back, and what went wrong."""
    with (
        tempfile.TemporaryDirectory() as folder,
        live_server(Path(folder), **SMALL) as server,
        Prober(server, seed) as prober,
    ):
        for probe, count in (
            (prober.bodies, num_bodies),
            (prober.frames, num_frames),
            (prober.raw_requests, num_raw),
        ):
            probe(count)
        return prober.result("fuzz", max_stall_s)


class Prober:
    """Sends what is hostile to one server, and remembers what came of it."""

    def __init__(self, server: LiveServer, seed: int = 0) -> None:
        self.server, self.seed = server, seed
        self.http = httpx2.Client(base_url=server.url, timeout=PATIENCE_S)
        self.ids = existing_objects(self.http)
        self.statuses: dict[str, int] = {}
        self.failures: list[str] = []
        self.slowest, self.began = (0.0, ""), time.monotonic()

    def __enter__(self) -> "Prober":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.http.close()

    def bodies(self, count: int) -> None:
        total = sum(map(len, PAYLOADS.values()))
        for path, payloads in PAYLOADS.items():
            share = max(count * len(payloads) // total, 1)
            url = path.format(**self.ids)
            self._try(share, [{"model": MODEL} | body for body in payloads], self._post, url)

    def frames(self, count: int) -> None:
        frames = [{"type": "response.create", "model": MODEL} | body for body in RESPONSES]
        frames.append({"type": "response.create", "model": MODEL, "input": [], "generate": False})
        frames += [{"type": "response.cancel", "response_id": "x"}, {"type": "response.steer"}]
        self._try(count, frames, self._send_frame)

    def raw_requests(self, count: int) -> None:
        """Many at a time, as some have to be waited for."""
        rng = random.Random(self.seed)
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(self._send_raw, [broken_http(rng) for _ in range(count)]))

    def result(self, name: str, max_stall_s: float) -> dict:
        log = self.server.log.read_text()
        stalls = re.findall(r"the event loop is (\S+) s late, in (.*)", log)
        unexpected: dict[str, str] = {}
        stall_s = max((float(seconds) for seconds, _ in stalls), default=0.0)
        if self.server.process.poll() is not None:
            self.failures.append("the process has ended")
        for line in re.findall(r"^\S+ \S+ (?:ERROR|CRITICAL) .*(?:\n(?!\d{4}-).*)*", log, re.M):
            what = " ".join(line.splitlines()[-3:])
            if "DisallowedHost" not in line and what not in unexpected:
                unexpected[what] = f"in the log: {line[-1500:]}"
        self.failures += unexpected.values()
        figures = {
            "sent": sum(self.statuses.values()),
            "answers": dict(sorted(self.statuses.items())),
            "slowest_s": round(self.slowest[0], 3),
            "slowest": self.slowest[1],
            "worst_loop_stall_s": stall_s,
            "stalls": stalls,
            "seconds": round(time.monotonic() - self.began, 1),
            "failures": self.failures,
        }
        return result(
            name,
            figures,
            {
                "failures": Check(len(self.failures), 0),
                "the event loop stands still for seconds": Check(stall_s, max_stall_s),
            },
        )

    def _try(self, count: int, payloads: list[dict], send: Callable, *args: Any) -> None:
        """Hypothesis makes the smallest body that still fails of the first that did."""

        @seeded(self.seed)
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(mutated(payloads))
        def probe(raw: bytes) -> None:
            nonlocal last
            last, began = raw, time.monotonic()
            send(raw, *args)
            self.slowest = max(self.slowest, (time.monotonic() - began, repr(raw[-200:])))

        last = b""
        try:
            probe()
        except Exception as exc:
            self.failures.append(
                f"{args} {type(exc).__name__} {exc}"[:1000] + f" for {last[:1000]!r}"
            )

    def _post(self, raw: bytes, url: str) -> None:
        answer = self.http.post(url, content=raw)
        self._count(answer.status_code)
        check_answer(answer.status_code, answer.headers.get("content-type", ""), answer.content)

    def _send_frame(self, raw: bytes) -> None:
        """A connection for each: the last event says how it ended."""
        url = self.server.url.replace("http", "ws") + "/v1/responses"
        with websockets.sync.client.connect(url, max_size=None) as connection:
            connection.send(raw.decode(errors="replace"))
            while True:
                event = json.loads(connection.recv(PATIENCE_S))
                if event["type"] == "error":
                    self._count(event["status"])
                    error = event["error"]
                    error.pop("headers", None)
                    assert event["status"] < 500, event
                    check_error(error)
                    return
                if event["type"] in FINAL_EVENTS:
                    self._count(event["type"])
                    assert event["type"] != "response.failed", event
                    return

    def _send_raw(self, raw: bytes) -> None:
        answer = exchange(self.server.port, raw)
        status = answer[9:12].decode(errors="replace") or "closed"
        self._count(status)
        head, _, body = answer.partition(b"\r\n\r\n")
        problem = problem_of(raw, answer)
        if problem or self.http.get("/health").status_code != 200:
            self.failures.append(f"{problem}: {raw[:500]!r} got {answer[:500]!r}")

    def _count(self, status: int | str) -> None:
        self.statuses[str(status)] = self.statuses.get(str(status), 0) + 1


FINAL_EVENTS = {
    "response.completed",
    "response.incomplete",
    "response.failed",
    "response.steer.failed",
}


def existing_objects(http: httpx2.Client) -> dict[str, str]:
    """Ids for the paths that need one."""
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "store": True}
    response = {"input": "Hi", "max_output_tokens": 3, "background": True}
    made = {
        "chat": http.post("/v1/chat/completions", json={"model": MODEL} | chat),
        "response": http.post("/v1/responses", json={"model": MODEL} | response),
        "conversation": http.post("/v1/conversations", json={}),
    }
    return {name: answer.json()["id"] for name, answer in made.items()}


def check_answer(status: int, content_type: str, body: bytes) -> None:
    """Whether an answer is one that a client of OpenAI's can read."""
    assert status < 500, body[:500]
    if content_type.startswith("text/event-stream"):
        assert body.endswith(b"data: [DONE]\n\n"), body[-500:]
        assert b'"server_error"' not in body, body[-1000:]
        return
    assert content_type == "application/json", content_type
    value = json.loads(body)
    if status >= 400:
        assert value.keys() == {"error"}, value
        check_error(value["error"])
    else:
        assert value.get("status") != "failed", value


def check_error(error: dict) -> None:
    assert error.keys() == ERROR_KEYS, error
    assert isinstance(error["message"], str), error
    assert error["message"], error
    assert len(error["message"]) < 10_000, error["message"][:200]
    assert isinstance(error["type"], str), error
    assert isinstance(error["param"], str | None), error
    assert isinstance(error["code"], str | None), error


def problem_of(raw: bytes, answer: bytes) -> str | None:
    """What is wrong with an answer to broken HTTP; none at all may be right."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head[9:10]
    if answer and not answer.startswith(b"HTTP/1."):
        return "no HTTP"
    if status == b"5":
        return "a failure"
    if status == b"4" and b"Content-Security-Policy" not in head and not raw.startswith(b"HEAD"):
        try:  # the pages with a policy are those of the admin
            if b"chunked" in head:
                body = body.partition(b"\r\n")[2]
            check_error(json.JSONDecoder().raw_decode(body.decode())[0]["error"])  # more may follow
        except (ValueError, AssertionError):
            return "no error of OpenAI's"
    return None


def exchange(port: int, raw: bytes) -> bytes:
    """What a server says to these bytes, until its answer is whole or it waits for more."""
    answer = b""
    with (
        suppress(ConnectionError, TimeoutError),
        socket.create_connection(("127.0.0.1", port)) as s,
    ):
        s.settimeout(1)
        s.sendall(raw)
        while not is_whole(answer) and (chunk := s.recv(65536)):
            answer += chunk
    return answer


def is_whole(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(separator) and (
        len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n")
    )


BODY = json.dumps({"model": MODEL, "prompt": "Hi", "max_tokens": 1}).encode()
HEADERS = [b"Host: localhost", b"Content-Type: application/json"]
ODD_LINES = [
    b"Host: evil.example", b"Host:", b"Host: localhost:99999", b"Host: [::1", b"Content-Length: -1",
    b"Content-Length: 5, 6", b"Content-Length: 1e3", b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked, x",
    b"Expect: 100-continue", b"Connection: Upgrade", b"Upgrade: websocket", b"Upgrade: h2c",
    b"Sec-WebSocket-Version: 99", b"Sec-WebSocket-Key: x", b"X: " + b"y" * 20_000,
    b"Authorization: Bearer \xff\xfe", b"Authorization: Basic " + b"x" * 1000, b"Cookie: \x00=\x01",
    b"X-Forwarded-Proto: https", b"X-Forwarded-For: ' or 1=1", b"Daphne-Root-Path: /\xff",
    b"Idempotency-Key: " + b"k" * 5000, b"Idempotency-Key: \xc3\xa9", b"no colon", b": no name",
    b" folded", b"\xff\xfe: x", b"Accept: \xff", b"User-Agent: \xf0\x9f\x8e\x89\x1b[31m",
    b"Content-Encoding: gzip", b"Content-Type: multipart/form-data; boundary=x", b"Range: bytes=0-",
]  # fmt: skip
TARGETS = [
    b"/v1/completions", b"/v1/chat/completions", b"/v1/responses", b"/v1/models", b"/v1/models/..",
    b"/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", b"/v1/models/%00", b"/v1/models/\xff",
    b"/v1/responses/%ff%fe", b"/v1/responses/" + b"x" * 5000, b"/v1/responses/resp_x?limit=\xff",
    b"/v1/responses/a/input_items?limit=1&limit=2&after=%00&order=%ed%a0%80", b"//v1//models",
    b"/v1/chat/completions?metadata[a]=%00&metadata[a]=1&model=%00", b"http://evil.example/v1/models",
    b"*", b"/", b"/admin/login/", b"/static/../manage.py", b"/static/%2e%2e/%2e%2e/manage.py",
    b"/health?%", b"/v1/conversations/%F0%9F%8E%89/items", b"/\x00", b"relative", b"/v1/..;/admin",
    b"/metrics", b"/docs/", b"/v1/openapi.json",
]  # fmt: skip
METHODS = [
    b"GET",
    b"POST",
    b"PUT",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"TRACE",
    b"CONNECT",
    b"PRI",
    b"G\x00T",
]


def broken_http(rng: random.Random) -> bytes:
    """A request with something odd in each part, and perhaps some bytes that were changed."""
    method = rng.choice([b"GET", b"POST", rng.choice(METHODS)])
    version = rng.choice([b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b""])
    lines = [b" ".join([method, rng.choice(TARGETS), version])]
    lines += HEADERS + rng.sample(ODD_LINES, rng.randint(0, 3))
    rng.random() < 0.8 and lines.append(b"Content-Length: %d" % len(BODY))
    body = rng.choice([BODY, BODY, b"", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", rng.randbytes(40)])
    raw = bytearray(rng.choice([b"\r\n"] * 9 + [b"\n"]).join([*lines, b"", body]))
    for _ in range(rng.choice([0, 0, 0, 1, 3])):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw)


def main() -> int:
    result = run(*map(int, sys.argv[1:]))
    sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return not result["passed"]


if __name__ == "__main__":
    sys.exit(main())
