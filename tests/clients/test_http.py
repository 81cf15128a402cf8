"""What clients send and do that is not in any schema: odd headers, uploads, and leaving."""

import asyncio
import json
import random
import re
import socket
import time

import httpx2
import pytest

CHAT = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}
ENDLESS = {"prompt": "once upon a time", "max_tokens": 20_000, "ignore_eos": True}


@pytest.fixture(scope="module")
def http(server):
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def model(http):
    return http.get("/v1/models").json()["data"][0]["id"]


def test_an_agent_that_accepts_only_event_streams_gets_its_answer(http, model):
    response = http.post(
        "/v1/chat/completions",
        json=CHAT | {"model": model},
        headers={"Accept": "text/event-stream"},
    )
    assert response.status_code == 200
    assert response.json()["object"] == "chat.completion"


def test_a_chunked_upload_without_length_is_read(http, model):
    body = json.dumps(CHAT | {"model": model}).encode()
    response = http.post(
        "/v1/chat/completions",
        content=iter([body[:20], body[20:]]),
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "application/json; charset=utf-8", ""])
def test_the_content_type_does_not_matter(http, model, content_type):
    body = json.dumps(CHAT | {"model": model}).encode()
    response = http.post(
        "/v1/chat/completions", content=body, headers={"Content-Type": content_type}
    )
    assert response.status_code == 200


def test_a_page_of_another_site_cannot_have_us_work(server, http, model):
    """Without a key. To send one, its browser would ask us first, and we allow nothing."""
    body = {"model": model, "prompt": "Hi", "max_tokens": 1}
    for origin in ("http://evil.example", "null", "http://127.0.0.1"):
        headers = {"Origin": origin, "Content-Type": "text/plain"}
        for path in ("v1/completions", "v1/responses/resp_x/cancel", "tokenize"):
            answer = http.post(f"/{path}", json=body, headers=headers)
            assert answer.status_code == 403, origin
            assert "another origin" in answer.json()["error"]["message"]
        headers |= {"Access-Control-Request-Method": "POST"}
        asked = http.options("/v1/completions", headers=headers)
        assert not [name for name in asked.headers if name.startswith("access-control")]
    assert "PermissionDenied" not in server.log.read_text()
    for headers in ({"Origin": server.url}, {"Origin": "null", "Authorization": "Bearer unused"}):
        assert http.post("/v1/completions", json=body, headers=headers).status_code == 200


def test_white_space_of_a_prompt_is_kept(http, model):
    sizes = [
        http.post("/v1/completions", json={"model": model, "prompt": p, "max_tokens": 1}).json()
        for p in ("x", "  x\n\n ")
    ]
    assert sizes[1]["usage"]["prompt_tokens"] > sizes[0]["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 200),
        ("GET", "/v1/nothing", 404),
        ("PATCH", "/v1/responses", 405),
        ("GET", "/health", 200),
        ("GET", "/nothing", 404),
        ("POST", "/v1/chat/completions", 400),
    ],
)
def test_every_answer_carries_a_request_id_and_is_json(server, http, method, path, status):
    response = http.request(method, path)
    request_id = response.headers["x-request-id"]

    assert response.status_code == status
    assert re.fullmatch("req_[0-9a-f]{32}", request_id)
    assert isinstance(response.json(), dict)
    if path.startswith("/v1"):
        assert request_id in server.log.read_text()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 100_000, 400),
        (b'{"model": "' + b"x" * 33 * 2**20 + b'"}', 413),
        (b'{"model": "m", "prompt": "x", "temperature": "0.5"}', 400),
        (b'{"model": "m", "prompt": "x", "stream": "yes"}', 400),
        (b"\xff", 400),
    ],
    ids=["nested", "oversized", "number as text", "boolean as text", "not utf-8"],
)
def test_a_bad_body_gets_a_json_answer(http, body, status):
    response = http.post("/v1/completions", content=body)

    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert int(response.headers["content-length"]) == len(response.content)


def test_a_stream_is_sent_as_it_comes(http, model):
    body = ENDLESS | {"model": model, "max_tokens": 300, "stream": True}
    arrivals = []
    with http.stream("POST", "/v1/completions", json=body) as response:
        for _ in response.iter_raw():
            arrivals.append(time.monotonic())

    assert response.headers["x-accel-buffering"] == "no"
    assert len(arrivals) > 20
    assert arrivals[-1] - arrivals[0] > 0.05


def test_two_requests_have_two_ids(http):
    ids = {http.get("/v1/models").headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2


def num_generated(http) -> int:
    """Tokens the engine has made so far; it says so beside its health."""
    return http.get("/health").json()["num_generated_tokens"]


def num_unfinished(http) -> int:
    health = http.get("/health").json()
    return health["num_running"] + health["num_waiting"]


def wait_until_idle(http, timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while num_unfinished(http):
        assert time.monotonic() < deadline, "the generation goes on without its client"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_generation(server, http, model, stream):
    body = json.dumps(ENDLESS | {"model": model, "stream": stream}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    wait_until_idle(http)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body)
        while not num_unfinished(http):
            time.sleep(0.01)
        if stream:
            assert b"200 OK" in connection.recv(4096)
    wait_until_idle(http)
    before = num_generated(http)
    time.sleep(0.2)

    assert num_generated(http) == before
    last_lines = server.log.read_text().strip().splitlines()[-12:]
    ended = f"POST /v1/completions {200 if stream else '-'} cancelled"
    assert any(ended in line for line in last_lines)


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
def test_leaving_before_the_first_token_leaks_nothing(server, http, model, path):
    """Some leave between the head of the answer and its first token, where nobody reads yet."""
    fields = {
        "chat/completions": CHAT | {"max_tokens": 20_000, "n": 2},
        "completions": ENDLESS,
        "responses": {"input": "Hello!"},
    }[path]
    body = json.dumps(fields | {"model": model, "stream": True, "ignore_eos": True}).encode()
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    rng = random.Random(path)
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head.encode() + body)
            time.sleep(rng.random() * 0.03)
    wait_until_idle(http)


def test_a_response_whose_reader_left_is_cancelled_and_keeps_what_was_said(http, model):
    body = {"model": model, "input": "Hello!", "stream": True, "ignore_eos": True}
    with http.stream("POST", "/v1/responses", json=body) as response:
        events = (line for line in response.iter_lines() if line.startswith("data: "))
        response_id = json.loads(next(events)[6:])["response"]["id"]
        while "output_text.delta" not in next(events):
            pass
    wait_until_idle(http)
    deadline = time.monotonic() + 5
    while (stored := http.get(f"/v1/responses/{response_id}").json())["status"] == "in_progress":
        assert time.monotonic() < deadline
        time.sleep(0.02)

    assert stored["status"] == "cancelled"
    assert stored["output"][0]["status"] == "incomplete"
    assert stored["output"][0]["content"][0]["text"]


async def test_many_that_leave_at_random_leave_nothing_behind(server, http, model):
    async def leave_after(delay_s: float) -> None:
        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
            body = ENDLESS | {"model": model, "stream": True}
            try:
                async with asyncio.timeout(delay_s):
                    await client.post("/v1/completions", json=body)
            except TimeoutError:
                pass

    await asyncio.gather(*(leave_after(0.01 * i) for i in range(40)))
    wait_until_idle(http)
    assert http.get("/health").json()["kv_cache_usage"] == 0
