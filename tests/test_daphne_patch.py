"""What our patch gives daphne; that daphne still needs it is shown without it."""

import http.client
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import daphne
import pytest

from nanollmserve_site.daphne_patch import TESTED
from tests.helpers import ROOT, free_port
from tests.slow_clients import CHUNK, MAX_BODY_SIZE, NUM_CHUNKS

MIB = 2**20
UPGRADE = (
    b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Daphne:
    def __init__(self, port: int, process: subprocess.Popen) -> None:
        self.port, self.process = port, process

    def connect(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        return client

    def ask(self, request: bytes) -> socket.socket:
        client = self.connect()
        client.sendall(request)
        return client

    def counts(self) -> list[int]:
        """Bytes of this request's body, chunks that were sent, floods that were over."""
        with urlopen(f"http://127.0.0.1:{self.port}/", timeout=20) as response:
            return [int(number) for number in response.read().split()]

    @property
    def memory(self) -> int:
        """Resident, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024


@contextmanager
def serving(**environ: str) -> Iterator[Daphne]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "daphne", "-p", str(port), "tests.slow_clients:application"],
        cwd=ROOT,
        env=os.environ | environ,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    server, deadline = Daphne(port, process), time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            server.connect().close()
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    try:
        yield server
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def patched() -> Iterator[Daphne]:
    with serving(PATCHED="1") as server:
        yield server


@pytest.fixture(scope="module")
def stock() -> Iterator[Daphne]:
    with serving() as server:
        yield server


def wait_for(condition, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def read_all(client: socket.socket) -> bytes:
    with client, client.makefile("rb") as stream:
        return stream.read()


def test_the_installed_daphne_is_a_tested_one():
    assert daphne.__version__ in TESTED


# Those who do not read

FLOOD = b"GET /flood HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def test_stock_daphne_buffers_without_bound(stock):
    before = stock.memory
    client = stock.ask(FLOOD)
    assert wait_for(lambda: stock.counts()[1] == NUM_CHUNKS)
    assert stock.memory - before > NUM_CHUNKS * MIB / 2
    client.close()


@pytest.mark.parametrize("request_", [FLOOD, UPGRADE % b"/flood"], ids=["http", "websocket"])
def test_who_does_not_read_is_not_written_to_and_then_cut_off(patched, request_):
    before, (_, sent, gone) = patched.memory, patched.counts()
    client = patched.ask(request_)
    time.sleep(0.5)
    assert patched.counts()[1] - sent < NUM_CHUNKS / 4
    assert patched.memory - before < 50 * MIB
    # Twisted cuts it off; what is sent to a connection that is gone comes to nothing.
    assert wait_for(lambda: patched.counts()[2] == gone + 1)
    with client, pytest.raises(ConnectionResetError):
        while client.recv(MIB):
            pass


def test_who_reads_slowly_gets_everything(patched):
    connection = http.client.HTTPConnection("127.0.0.1", patched.port, timeout=20)
    connection.connect()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    connection.request("GET", "/flood")
    response, size = connection.getresponse(), 0
    for pause_s in (0.6, 0.6):
        size += len(response.read(40 * MIB))
        time.sleep(pause_s)
    size += len(response.read())
    assert size == NUM_CHUNKS * len(CHUNK)
    connection.request("GET", "/")  # the connection is as good as before
    assert connection.getresponse().read().startswith(b"0 ")
    connection.close()


# Those who send too much, or too slowly


def head(length: int, *headers: bytes) -> bytes:
    lines = [b"POST / HTTP/1.1", b"Host: localhost", b"Content-Length: %d" % length, *headers]
    return b"\r\n".join([*lines, b"", b""])


def test_a_body_within_the_limit_arrives(patched):
    client = patched.ask(head(MAX_BODY_SIZE, b"Connection: close") + b"x" * MAX_BODY_SIZE)
    assert b"\r\n%d " % MAX_BODY_SIZE in read_all(client)


@pytest.mark.parametrize("header", [b"Accept: */*", b"Expect: 100-continue"])
def test_a_body_that_is_announced_as_too_large_is_refused_before_it_comes(patched, header):
    with patched.ask(head(MAX_BODY_SIZE + 1, header)) as client:
        response = http.client.HTTPResponse(client)
        response.begin()
        assert (response.status, response.headers["connection"]) == (413, "close")
        assert b'"type": "invalid_request_error"' in response.read()
    assert patched.counts()[0] == 0


def test_a_body_that_grows_too_large_is_refused(patched):
    chunk = b"80000\r\n%s\r\n" % (b"x" * 0x80000)
    start = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = read_all(patched.ask(start + 8 * chunk + b"0\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_a_request_that_does_not_come_to_an_end_is_given_up(patched, stock):
    body, headers = head(1000) + b"x", b"POST / HTTP/1.1\r\nHost: loc"
    clients = [patched.ask(body), patched.ask(headers)]
    waiting = stock.ask(body)
    for client in clients:
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
    for client in clients:
        with client, pytest.raises(OSError):
            for _ in range(100):  # it trickles on, and finds nobody
                client.sendall(b"x")
                time.sleep(0.1)
    waiting.setblocking(False)
    with waiting, pytest.raises(BlockingIOError):  # unpatched it would wait for ever
        waiting.recv(1)


# WebSockets


def close_code(client: socket.socket) -> int:
    with client, client.makefile("rb") as stream:
        while stream.readline() != b"\r\n":  # headers
            pass
        kind, _, code = struct.unpack("!BBH", stream.read(4))
        assert kind == 0x88
        return code


def test_a_websocket_closes_with_the_code_it_is_told(patched, stock):
    assert close_code(patched.ask(UPGRADE % b"/")) == 1012
    assert close_code(stock.ask(UPGRADE % b"/")) == 1011
