"""`manage.py chat`: in a terminal with a server that answers what the test says, and a live one."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from django.core.management import CommandError, call_command

from tests.helpers import ROOT

CHAT = [sys.executable, "manage.py", "chat"]


class Scripted(BaseHTTPRequestHandler):
    """Says in chunks what stands beside the last message; after "..." nothing more comes."""

    answers = {
        "Hi": [{"content": "Hel"}, {"content": "lo\x1b[31m"}],
        "two\nlines": [{"reasoning_content": "hm"}, {"content": "Yes"}],
        "first\n\nlast": [{"content": "I see"}],
        "Tell me all": [{"content": "To begin with"}, "..."],
        "And?": [{"content": "That was it"}],
    }

    def do_GET(self) -> None:
        self._start()
        self.wfile.write(json.dumps({"data": [{"id": "scripted"}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self._start()
        for delta in self.answers[body["messages"][-1]["content"]]:
            if delta == "...":
                self.server.is_over.wait(60)
                return
            self._say({"choices": [{"delta": delta}]})
        self._say({"choices": [], "usage": {"completion_tokens": 7}})

    def _start(self) -> None:
        self.send_response(200)
        self.end_headers()

    def _say(self, event: dict) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        server.bodies, server.is_over = [], threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.is_over.set()
        server.shutdown()


class Dialogue:
    """A terminal in which `chat` runs."""

    def __init__(self, *flags: str) -> None:
        self._shown = ""
        self._terminal, inside = pty.openpty()
        self._process = subprocess.Popen(
            [*CHAT, *flags], cwd=ROOT, preexec_fn=lambda: os.login_tty(inside)
        )
        os.close(inside)

    def type(self, text: str) -> None:
        self._shown = ""
        os.write(self._terminal, text.encode())

    def until(self, pattern: str, timeout_s: float = 30) -> str:
        """What has been shown since something was typed."""
        os.set_blocking(self._terminal, False)
        deadline = time.monotonic() + timeout_s
        while not re.search(pattern, self._shown, re.DOTALL):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self._shown!r}"
            with suppress(BlockingIOError):
                self._shown += os.read(self._terminal, 65536).decode(errors="replace")
            time.sleep(0.01)
        return self._shown

    def leave(self) -> int:
        self.type("\x04")
        return self._process.wait(20)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)


@pytest.fixture
def dialogue(scripted) -> Iterator[Dialogue]:
    dialogue = Dialogue("--url", f"http://127.0.0.1:{scripted.server_port}", "--system", "Be good")
    try:
        dialogue.until("scripted at http.*> ")
        yield dialogue
    finally:
        dialogue.kill()


def said(body: dict) -> list[str]:
    return [message["content"] for message in body["messages"]]


def test_a_dialogue_in_a_terminal(dialogue: Dialogue, scripted: ThreadingHTTPServer) -> None:
    dialogue.type("Hi\n")
    shown = dialogue.until(r"7 tokens, the first after .* a second.*> $")
    assert r"Hello\x1b[31m" in shown, "what a model says must not command the terminal"

    dialogue.type("two\\\nlines\n")
    assert "\x1b[2mhm\x1b[0m\r\n\r\nYes" in dialogue.until("Yes.*a second.*> $")
    dialogue.type('"""\nfirst\n\nlast\n"""\n')
    dialogue.until("I see.*a second.*> $")
    hello = ["Be good", "Hi", "Hello\x1b[31m"]
    assert said(scripted.bodies[-1]) == [*hello, "two\nlines", "Yes", "first\n\nlast"]

    dialogue.type("Tell me all\n")
    dialogue.until("To begin with")
    dialogue.type("\x03")
    dialogue.until(r"\.\.\. stopped.*> $")
    dialogue.type("\x03")
    dialogue.until("/quit leaves.*> $")
    dialogue.type("And?\n")
    dialogue.until("That was it.*> $")
    assert said(scripted.bodies[-1])[-3:] == ["Tell me all", "To begin with", "And?"]

    dialogue.type("/reset\n")
    dialogue.until("forgotten.*> $")
    dialogue.type("/system Be quick\n")
    dialogue.until("a new conversation, as: Be quick.*> $")
    dialogue.type("Hi\n")
    dialogue.until("a second.*> $")
    assert said(scripted.bodies[-1]) == ["Be quick", "Hi"]
    assert dialogue.leave() == 0


@pytest.fixture
def piped(monkeypatch, capsys):
    """What `chat` writes for these lines of a pipe."""

    def run(text: str, *flags: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        call_command("chat", *flags)
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize("flags", [[], ["--responses"]])
def test_a_pipe_to_a_live_server(server, piped, flags: list[str]) -> None:
    asked = "Count from 1 to 3.\n/nothing\nCount from 1 to 5.\n"
    first, refused, second = piped(asked, "--url", f"{server.url}/v1", "--temperature", "0", *flags)

    assert (first, second) == ("1, 2, 3", "1, 2, 3, 4, 5")
    assert "there is no /nothing" in refused


def test_no_server_and_no_such_model(server, piped) -> None:
    with pytest.raises(CommandError, match=r"No server answers at http://127.0.0.1:9 .*manage.py"):
        piped("Hi\n", "--url", "http://127.0.0.1:9")
    [wrong] = piped("Hi\n", "--url", server.url, "--model", "gpt-x")
    assert wrong.startswith("Error: The model") and "gpt-x" in wrong
