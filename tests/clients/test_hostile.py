"""What nobody sends by mistake, to a live server. Long forms of this are in tests/reliability."""

import socket
import time

import httpx2
import pytest

from tests.helpers import live_server
from tests.reliability import fuzz, schema

USER = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of its own, as it has to be whole afterwards and its log without an error."""
    with live_server(tmp_path_factory.mktemp("hostile"), **fuzz.SMALL) as server:
        yield server


@pytest.fixture(scope="module")
def http(server):
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client


def test_random_changes_of_valid_requests(server):
    with fuzz.Prober(server) as prober:
        prober.bodies(250)
        prober.frames(25)
        prober.raw_requests(80)
        result = prober.result("fuzz", max_stall_s=2.0)
    assert result["passed"], result["figures"]["failures"]
    assert result["figures"]["sent"] > 250
    assert {"200", "400", "404"} < set(result["figures"]["answers"])


def test_what_the_schema_allows_and_what_it_does_not(server):
    result = schema.check(server, max_examples=2)
    assert result["passed"], result["figures"]["failures"]
    assert result["figures"]["operations"] > 25


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "..", "~", "nanollmserve-demo/../x", "C:\\x", "a\x00b",
     "http://127.0.0.1:1/model", "file:///etc/passwd", "x" * 100_000, "%2e%2e", "\u202ex"],
)  # fmt: skip
def test_a_model_is_a_name_and_never_a_path(http, name):
    for path, body in (
        ("chat/completions", {"messages": [USER]}),
        ("completions", {"prompt": "Hi"}),
        ("responses", {"input": "Hi"}),
    ):
        answer = http.post(f"/v1/{path}", json={"model": name} | body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (404, "model_not_found")
        assert len(error["message"]) < 10_000


def test_no_url_is_ever_fetched(http):
    """Pictures are refused, and so is whatever else could make the server call somebody."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        chat_part = {"type": "image_url", "image_url": {"url": url}}
        part = {"type": "input_image", "image_url": url}
        for path, body in (
            ("chat/completions", {"messages": [{"role": "user", "content": [chat_part]}]}),
            ("responses", {"input": [{"role": "user", "content": [part]}]}),
            ("responses", {"input": [{"role": "user", "content": [
                {"type": "input_file", "file_url": url}]}]}),
            ("chat/completions", {"messages": [USER], "chat_template": url}),
        ):  # fmt: skip
            answer = http.post(f"/v1/{path}", json={"model": fuzz.MODEL} | body)
            assert answer.status_code == 400, path
        hosted = {"type": "mcp", "server_label": "x", "server_url": url}
        schema_of_it = {"$ref": url}
        for path, body, statuses in (
            ("responses", {"input": "Hi", "max_output_tokens": 2, "tools": [hosted]}, {200}),
            ("completions", {"prompt": "Hi", "guided_json": schema_of_it}, {400}),
        ):
            answer = http.post(f"/v1/{path}", json={"model": fuzz.MODEL} | body)
            assert answer.status_code in statuses, answer.text
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_who_says_where_the_site_lives_is_not_heard(http):
    for value in (b"/evil", b"/\xff"):
        answer = http.get("/admin/login/", headers={b"Daphne-Root-Path": value})
        assert answer.status_code == 200
        assert b"evil" not in answer.content


@pytest.mark.parametrize("path", ["/static/../manage.py", "/static/%2e%2e/%2e%2e/manage.py"])
def test_files_beside_the_static_ones_are_not_there(server, path):
    raw = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    answer = fuzz.exchange(server.port, raw)
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"DJANGO_SETTINGS_MODULE" not in answer


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /v1/models?\xff HTTP/1.1", 400),
        (b"GET /v1/models", 400),
        (b"GET /v1/models HTTP/1.1\r\nno colon", 400),
        (b"GET /v1/models HTTP/1.1\r\nX-\xff: x", 400),
        (b"GET /v1/models HTTP/1.1\r\nX: a\x00b", 400),
        (b"POST /v1/responses HTTP/1.1\r\nUpgrade: websocket", 405),
        (b"GET /v1/responses HTTP/1.1\r\nUpgrade: websocket", 400),
    ],
)
def test_what_never_reaches_the_application_is_refused_alike(server, line, status):
    raw = line + b"\r\nHost: localhost\r\n\r\n"
    answer = fuzz.exchange(server.port, raw)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert fuzz.problem_of(raw, answer) is None


def test_metrics_tell_how_late_the_loop_was(server, http):
    time.sleep(0.2)
    text = http.get("/metrics").text
    count = next(line for line in text.splitlines() if line.startswith("nanollm_loop_stall_sec")
                 and "_count " in line)  # fmt: skip
    assert float(count.split()[1]) > 1
    assert "nanollm_loop_stall_seconds_max" in text
