"""`manage.py chat`: talk to a model in the terminal."""

import contextlib
import os
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.management import BaseCommand, CommandError
from django.core.management.base import DjangoHelpFormatter

from nanollmserve_site import api_client
from nanollmserve_site.api_client import ApiFailure, Server
from nanollmserve_site.request_id import VISIBLE

HELP = """\
  /reset          forget what has been said
  /system TEXT    begin anew with this system prompt; without a text, with none
  /help           this list
  /quit           leave, as does Ctrl-D

A line that ends with a backslash goes on in the next one. Between two lines of \"\"\" there is
room for any text. Ctrl-C stops an answer; what has come of it is remembered."""
QUOTES = '"""'
DIM, NORMAL = "\x1b[2m", "\x1b[0m"
SHOWN = {code: text for code, text in VISIBLE.items() if chr(code) not in "\n\t"}


class AsWritten(RawDescriptionHelpFormatter, DjangoHelpFormatter):
    """Our own flags first, and the lines of the description as they are."""


class Command(BaseCommand):
    help = (
        "Talk to a model of this server, which must be running, or of any OpenAI-compatible one.\n"
        "\nIn the conversation:\n" + HELP
    )

    def create_parser(self, *args: Any, **options: Any) -> ArgumentParser:
        return super().create_parser(*args, formatter_class=AsWritten, **options)

    def add_arguments(self, parser: ArgumentParser) -> None:
        api_client.add_arguments(parser, settings.SERVER)
        add = parser.add_argument
        add("--system", default="", metavar="TEXT", help="System prompt.")
        add("--temperature", type=float, metavar="T", help="Default: the model's.")
        add("--max-tokens", type=int, metavar="N", help="Longest answer. Default: what fits.")
        add(
            "--responses",
            action="store_true",
            help="Converse by the Responses API: the server keeps what was said, and the admin "
            "shows it.",
        )

    def handle(self, *, url: str, api_key: str, model: str | None, **options: Any) -> None:
        server = Server(url, api_key)
        try:
            model = model or server.first_model()
        except ApiFailure as error:
            raise CommandError(
                f"{error} Start one with `python manage.py serve`, or name another with --url."
                if not error.status
                else str(error)
            ) from None
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() then knows the arrow keys
        kind = Responses if options["responses"] else Chat
        Terminal(kind(server, model, **chosen(options))).run()


def chosen(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("system", "temperature", "max_tokens")}


class Chat:
    """A conversation that is sent whole, again and again, to /v1/chat/completions."""

    def __init__(
        self,
        server: Server,
        model: str,
        system: str,
        temperature: float | None,
        max_tokens: int | None,
    ) -> None:
        self.server, self.model, self.system = server, model, system
        given = {"temperature": temperature, self.limit_name: max_tokens}
        self.body = {"model": model, "stream": True}
        self.body |= {name: value for name, value in given.items() if value is not None}
        self.num_tokens = 0  # of the last answer
        self.reset()

    limit_name = "max_tokens"

    def reset(self) -> None:
        self._messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str) -> Iterator[tuple[str, str]]:
        """Pieces of the answer with their kind: thought or text. Raises ApiFailure."""
        self.num_tokens, answer = 0, ""
        messages = [*self._messages, {"role": "user", "content": text}]
        body = self.body | {"messages": messages, "stream_options": {"include_usage": True}}
        try:
            for event in self.server.events("/v1/chat/completions", body):
                if usage := event.get("usage"):
                    self.num_tokens = usage["completion_tokens"]
                for choice in event["choices"]:
                    delta = choice["delta"]
                    thought = delta.get("reasoning_content") or delta.get("reasoning")
                    answer += delta.get("content") or ""
                    yield "thought", thought or ""
                    yield "text", delta.get("content") or ""
        finally:  # also where it was stopped
            if answer:
                self._messages = [*messages, {"role": "assistant", "content": answer}]


class Responses(Chat):
    """A conversation that the server keeps: each response continues the one before."""

    limit_name = "max_output_tokens"

    def reset(self) -> None:
        self._previous_id: str | None = None

    def ask(self, text: str) -> Iterator[tuple[str, str]]:
        self.num_tokens = 0
        body = self.body | {"input": text, "previous_response_id": self._previous_id}
        if self.system:
            body["instructions"] = self.system
        for event in self.server.events("/v1/responses", body):
            kind = event["type"]
            if kind == "response.output_text.delta":
                yield "text", event["delta"]
            elif kind == "response.reasoning_text.delta":
                yield "thought", event["delta"]
            elif kind in ("response.completed", "response.incomplete"):
                self._previous_id = event["response"]["id"]
                self.num_tokens = event["response"]["usage"]["output_tokens"]


class Terminal:
    """Reads what is asked, and writes what is answered."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.is_dialogue = sys.stdin.isatty() and sys.stdout.isatty()
        self.has_styles = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def run(self) -> None:
        if self.is_dialogue:
            self.say(f"{self.chat.model} at {self.chat.server.url}; /help tells what else there is")
        while (text := self.read()) is not None:
            command, _, argument = text.strip().partition(" ")
            if command in ("/quit", "/exit"):
                return
            if command.startswith("/"):
                self.obey(command, argument.strip())
            elif text.strip():
                self.answer(text)

    def obey(self, command: str, argument: str) -> None:
        if command == "/help":
            self.say(HELP)
        elif command == "/reset":
            self.chat.reset()
            self.say("forgotten")
        elif command == "/system":
            self.chat.system = argument
            self.chat.reset()
            self.say("a new conversation" + (f", as: {argument}" if argument else ""))
        else:
            self.say(f"there is no {command}; /help lists what there is")

    def read(self) -> str | None:
        """What is asked next, of one line or several; None at the end."""
        try:
            line = self.line("> ")
            if line.strip() == QUOTES:
                lines = list(iter(lambda: self.line(""), QUOTES))
                return "\n".join(lines)
            while line.endswith("\\"):
                line = line[:-1] + "\n" + self.line("  ")
            return line
        except EOFError:
            if self.is_dialogue:
                self.write("\n")
            return None
        except KeyboardInterrupt:
            self.write("\n")
            self.say("Ctrl-D or /quit leaves")
            return ""

    def line(self, prompt: str) -> str:
        return input(prompt if self.is_dialogue else "")

    def answer(self, text: str) -> None:
        began, first, shown = time.monotonic(), None, "text"
        try:
            with contextlib.closing(self.chat.ask(text)) as pieces:
                for kind, piece in pieces:
                    if not piece:
                        continue
                    first = first or time.monotonic()
                    if kind != shown:
                        self.style(kind)
                        shown = kind
                    self.write(piece.translate(SHOWN))  # a model's text commands no terminal
        except ApiFailure as error:
            self.write(f"Error: {error}")
        except KeyboardInterrupt:
            self.write(" ... stopped")
        finally:
            if shown != "text" and self.has_styles:
                self.write(NORMAL)
        self.write("\n")
        if self.is_dialogue and first and self.chat.num_tokens:
            self.tell_speed(first - began, time.monotonic() - first)

    def tell_speed(self, first_s: float, rest_s: float) -> None:
        num_tokens = self.chat.num_tokens
        speed = (num_tokens - 1) / max(rest_s, 1e-6)
        self.say(f"{num_tokens} tokens, the first after {first_s:.2f} s, then {speed:.1f} a second")

    def style(self, kind: str) -> None:
        """Thoughts are dimmed, and stand apart from what follows."""
        if kind == "text":
            self.write(f"{NORMAL}\n\n" if self.has_styles else "\n\n")
        elif self.has_styles:
            self.write(DIM)

    def say(self, text: str) -> None:
        self.write(f"{DIM}{text}{NORMAL}\n" if self.has_styles else f"{text}\n")

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
