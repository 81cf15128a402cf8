"""The start of the server, mostly as its user sees it: a process, its output, its exit status."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
from asgiref.testing import ApplicationCommunicator
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command

from inference.demo_model import DEMO_MODEL_PATH
from nanollmserve_site.config import BASE_DIR, ServerConfig
from nanollmserve_site.door import (
    is_loopback,
    loopback_only,
    reached_from_outside,
    safe_address,
)
from nanollmserve_site.guard import guard
from nanollmserve_site.handlers import http_application
from tests import postgres

MANAGE = [sys.executable, "manage.py"]
DAPHNE = [sys.executable, "-m", "daphne"]
ASGI = "nanollmserve_site.asgi:application"
SMALL = {"NANOLLM_KV_CACHE_MEMORY": "16MiB", "NANOLLM_MAX_MODEL_LEN": "1024"}

needs_demo_model = pytest.mark.skipif(
    not (DEMO_MODEL_PATH / "model.safetensors").exists(), reason="the demo model is not there"
)


class Process:
    """A started command, with what it has said so far in one file."""

    def __init__(self, command: list[str], folder: Path, **variables: str) -> None:
        self.log = folder / f"log-{time.monotonic_ns()}"
        environ = os.environ | {"NANOLLM_DATA_DIR": str(folder / "data")}
        environ |= postgres.variables(folder / "data") | variables
        with self.log.open("w") as log:
            self.popen = subprocess.Popen(
                command, cwd=BASE_DIR, env=environ, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait(self) -> int:
        return self.popen.wait(timeout=120)

    def wait_for(self, url: str, status: int = 200) -> tuple[int, dict[str, str], bytes]:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.popen.poll() is None:
            try:
                answer = get(url)
                if answer[0] == status:
                    return answer
            except URLError:
                pass  # the port is not open yet
            time.sleep(0.1)
        raise AssertionError(f"{url} never answered {status}:\n{self.output}")

    def wait_for_output(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in self.output:
            assert time.monotonic() < deadline, f"never said {text!r}:\n{self.output}"
            time.sleep(0.02)


@contextmanager
def running(command: list[str], folder: Path, **variables: str) -> Iterator[Process]:
    process = Process(command, folder, **variables)
    try:
        yield process
    finally:
        process.popen.kill()
        process.wait()


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urlopen(Request(url, headers=headers), timeout=30) as response:
            return response.status, dict(response.headers), response.read()
    except HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


# A start that cannot succeed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dtype", "int8"], "NANOLLM_DTYPE (--dtype) is 'int8'; allowed: auto, float32"),
        (["--host", "0.0.0.0"], "--host (NANOLLM_HOST) is '0.0.0.0', which others can reach"),
    ],
)
def test_a_start_that_is_refused_says_why(tmp_path: Path, flags: list[str], message: str) -> None:
    process = Process([*MANAGE, "serve", *flags], tmp_path)

    assert process.wait() != 0
    assert message in process.output
    assert "Traceback" not in process.output


def test_daphne_refuses_a_misspelt_variable_too(tmp_path: Path) -> None:
    process = Process([*DAPHNE, ASGI], tmp_path, NANOLLM_MODELL="x")

    assert process.wait() != 0
    assert process.output.startswith("Error: NANOLLM_MODELL is not a setting; did you mean")


def test_a_taken_port_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = Process([*MANAGE, "serve", "--port", port], tmp_path)
        assert process.wait() == 1

    assert f"Couldn't listen on 127.0.0.1:{port}" in process.output
    assert "--port (NANOLLM_PORT)" in process.output
    assert len(process.output.splitlines()) == 1


def test_a_model_that_cannot_load_ends_the_server(tmp_path: Path, port: int) -> None:
    process = Process([*MANAGE, "serve", str(tmp_path / "gone"), "--port", str(port)], tmp_path)

    assert process.wait() == 1
    assert f"{tmp_path}/gone" in process.output.splitlines()[-1]
    assert "Traceback" not in process.output


# A start that succeeds


def endless_stream() -> bytes:
    message = {"role": "user", "content": "Tell me a story."}
    body = {"model": "nanollmserve-demo", "messages": [message], "stream": True, "ignore_eos": True}
    text = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}"
    return f"{head}\r\nConnection: close\r\n\r\n".encode() + text


@needs_demo_model
def test_first_and_second_start(tmp_path: Path, port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    with running([*MANAGE, "serve", "--port", str(port)], tmp_path, **SMALL) as first:
        status, headers, body = first.wait_for(f"{url}/v1/models", status=503)
        assert 1 <= int(headers["Retry-After"]) <= 120
        assert json.loads(body)["error"]["type"] == "server_error"
        assert get(f"{url}/health")[0] == 200
        first.wait_for(f"{url}/health/ready")
        first.wait_for_output(f"ready: {url}/v1")  # a timer says it, a moment later
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(endless_stream())
            assert b" 200 " in client.recv(4096)
            first.popen.send_signal(signal.SIGTERM)
            first.wait_for_output("shutting down: 1 requests may take 30 s")
            assert get(f"{url}/health/ready")[0] == 503
            first.popen.send_signal(signal.SIGINT)
            with client.makefile("rb") as rest:
                assert b"The server is shutting down." in rest.read()
        assert first.wait() == 0

    with running([*DAPHNE, "-p", str(port), ASGI], tmp_path, **SMALL) as second:
        second.wait_for(f"{url}/health/ready")

    assert len(re.findall('password "[^"]{16}"', first.output)) == 1
    assert f"listening on {url}" in first.output
    assert f"ready: {url}/v1" in first.output
    assert "secure cookies and HSTS are off" in first.output
    assert "password" not in second.output
    assert "Traceback" not in first.output + second.output


@needs_demo_model
def test_a_key_opens_the_server_to_others_and_is_asked_for(tmp_path: Path, port: int) -> None:
    """Made before the first start, and revoked while the server runs."""
    made = Process([*MANAGE, "apikey", "create", "bot"], tmp_path)
    assert made.wait() == 0, made.output
    secret = re.search(r"^sk-\S+$", made.output, re.MULTILINE)[0]
    models = f"http://127.0.0.1:{port}/v1/models"

    def status() -> int:
        return get(models, Authorization=f"Bearer {secret}")[0]

    flags = ["--host", "0.0.0.0", "--allowed-hosts", "localhost", "--port", str(port)]
    with running([*MANAGE, "serve", *flags], tmp_path, **SMALL) as server:
        server.wait_for(f"http://127.0.0.1:{port}/health/ready")
        assert get(models)[0] == 401
        assert status() == 200

        assert Process([*MANAGE, "apikey", "revoke", "bot"], tmp_path).wait() == 0
        deadline = time.monotonic() + 10
        while status() != 401:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    assert secret not in server.output
    assert "no API key is asked for" not in server.output


def test_the_deployment_checks_find_nothing(tmp_path: Path) -> None:
    call_command("check", deploy=True, fail_level="WARNING")

    command = [*MANAGE, "check", "--deploy", "--fail-level", "WARNING"]
    process = Process(command, tmp_path, NANOLLM_TLS="true")
    assert process.wait() == 0, process.output


def test_make_passes_on_what_stands_on_its_command_line() -> None:
    outside = {name: os.environ[name] for name in os.environ if not name.startswith(("MAKE", "MF"))}
    shown = subprocess.run(
        ["make", "-n", "serve", "MODEL=org/model", "PORT=8001", "ARGS=--seed 1"],
        cwd=BASE_DIR,
        env={**outside, "HOST": "x86_64-linux-gnu"},  # as if not called by make itself
        text=True,
        capture_output=True,
        check=True,
    )
    last = " ".join(shown.stdout.replace("\\\n", " ").split())
    assert last.endswith('manage.py serve --model "org/model" --port "8001" --seed 1')


# The guard


async def faulty(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Raises before its answer, within it, or after it."""
    if scope["path"] != "/before":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
    if scope["path"] == "/after":
        await send({"type": "http.response.body", "body": b"b"})
    raise RuntimeError("a secret")


guarded = guard(faulty)  # served by daphne below


async def answer(app: Any, **scope: Any) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({"type": "http", "method": "GET", **scope}, None, send)
    return sent


async def test_a_failure_before_the_answer_is_an_error_in_openai_shape() -> None:
    start, body = await answer(guarded, path="/before")

    assert start["status"] == 500
    error = json.loads(body["body"])["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]


@pytest.mark.parametrize(("path", "text"), [("/within", b"a"), ("/after", b"ab")])
async def test_a_failure_after_the_start_ends_the_answer_once(path: str, text: bytes) -> None:
    _, *bodies = await answer(guarded, path=path)

    assert b"".join(message["body"] for message in bodies) == text
    assert [message for message in bodies if not message.get("more_body")] == [bodies[-1]]


async def test_a_cancelled_request_stays_cancelled() -> None:
    async def cancelled(scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await answer(guard(cancelled), path="/")


def test_daphne_outlives_the_failure_of_a_stream(tmp_path: Path, port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    with running([*DAPHNE, "-p", str(port), "tests.test_serve:guarded"], tmp_path) as process:
        process.wait_for(f"{url}/before", status=500)
        for _ in range(3):
            assert get(f"{url}/within")[::2] == (200, b"a")
        time.sleep(1.1)  # daphne looks once a second after the requests that ended
        assert get(f"{url}/within")[::2] == (200, b"a")

    assert process.output.count("RuntimeError: a secret") == 5
    assert "Exception inside application" not in process.output


# Who may reach what


@pytest.mark.parametrize(
    ("server", "outside"),
    [
        (["127.0.0.1", 8000], False),
        (["::1", 8000], False),
        (["::ffff:127.0.0.1", 8000], False),
        (["localhost", 8000], False),
        (["192.168.1.5", 8000], True),
        (["::ffff:192.168.1.5", 8000], True),
        (["/run/server.sock", None], False),
        (None, False),
    ],
)
def test_what_counts_as_outside(server: Any, outside: bool) -> None:
    assert reached_from_outside({"server": server}) is outside


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_loopback_address_is_safe(host: str) -> None:
    assert is_loopback(safe_address(ServerConfig(host=host)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ServerConfig(host="0.0.0.0"), "which others can reach"),
        (ServerConfig(host="::"), "which others can reach"),
        (ServerConfig(host="192.0.2.1"), "which others can reach"),
        (ServerConfig(host="0.0.0.0", allow_no_auth=True), "name the hosts"),
        (ServerConfig(host="no such host"), "NANOLLM_HOST"),
    ],
)
def test_an_open_address_is_refused(config: ServerConfig, message: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=message):
        safe_address(config)


def test_keys_make_an_open_address_safe() -> None:
    assert safe_address(ServerConfig(host="192.0.2.1"), has_keys=True) == "192.0.2.1"
    with pytest.raises(ImproperlyConfigured, match="name the hosts"):
        safe_address(ServerConfig(host="0.0.0.0"), has_keys=True)


def test_an_open_address_can_be_chosen_on_purpose() -> None:
    chosen = ServerConfig(host="0.0.0.0", allow_no_auth=True, allowed_hosts=("llm.example.org",))
    assert safe_address(chosen) == "0.0.0.0"


async def test_without_keys_an_outside_address_is_refused() -> None:
    async def has_keys() -> bool:
        return False

    app = loopback_only(http_application(), has_keys)
    start, body = await answer(app, path="/v1/models", server=["10.0.0.1", 8000])

    assert start["status"] == 403
    assert "NANOLLM_ALLOW_NO_AUTH" in json.loads(body["body"])["error"]["message"]


async def test_with_keys_an_outside_address_is_served() -> None:
    async def has_keys() -> bool:
        return True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "reached"})

    app = loopback_only(app, has_keys)
    assert await answer(app, path="/", server=["10.0.0.1", 8000]) == [{"type": "reached"}]


async def fetch(path: str, host: str = "localhost") -> tuple[int, dict[str, str], bytes]:
    """What the application answers, without a server around it."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", host.encode())],
    }
    communicator = ApplicationCommunicator(http_application(), scope)
    await communicator.send_input({"type": "http.request"})
    start = await communicator.receive_output(timeout=10)
    body, more = b"", True
    while more:
        message = await communicator.receive_output(timeout=10)
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await communicator.wait()
    return start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, body


async def test_the_api_has_no_middleware_but_its_headers() -> None:
    status, headers, body = await fetch("/health/unknown")

    assert status == 404
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert headers == {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "X-Content-Type-Options": "nosniff",
    }


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/admin/"])
async def test_an_unknown_host_is_refused_everywhere(path: str) -> None:
    status, _, body = await fetch(path, host="rebound.example.org")

    assert status == 400
    assert "error" in json.loads(body)


async def test_the_admin_has_its_middleware_and_its_style() -> None:
    status, headers, _ = await fetch("/")
    assert (status, headers["Location"]) == (302, "/playground/")
    assert headers["X-Frame-Options"] == "DENY"

    status, headers, _ = await fetch("/static/admin/css/base.css")
    assert (status, headers["Content-Type"]) == (200, "text/css")
