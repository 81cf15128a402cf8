"""What our own commands ask a server with: any OpenAI-compatible one, standard library only."""

import json
import os
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from nanollmserve_site.config import ServerConfig
from nanollmserve_site.door import is_loopback


class ApiFailure(Exception):
    """The server cannot be reached (`status` 0), or has answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Server:
    """A server by its address, with or without /v1. Everything raises ApiFailure."""

    url: str
    api_key: str = ""
    timeout_s: float = 300.0  # of silence

    def open(self, method: str, path: str, body: object = None) -> HTTPResponse:
        root = self.url.rstrip("/").removesuffix("/v1")
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        content = None if body is None else json.dumps(body).encode()
        # What is on this machine is not asked for through a proxy
        is_here = is_loopback(urlsplit(root).hostname or "")
        opener = build_opener(ProxyHandler({})) if is_here else build_opener()
        try:
            request = Request(root + path, data=content, headers=headers, method=method)
            return opener.open(request, timeout=self.timeout_s)
        except HTTPError as error:
            with error:
                raise ApiFailure(error.code, message_in(error.read(), error.reason)) from None
        except URLError as error:
            raise ApiFailure(0, f"No server answers at {root} ({error.reason}).") from None
        except (OSError, HTTPException, ValueError) as error:
            raise ApiFailure(0, f"{root} cannot be asked: {error}.") from None

    def read(self, method: str, path: str, body: object = None) -> bytes:
        with closing(self.open(method, path, body)) as response:
            try:
                return response.read()
            except (OSError, HTTPException) as error:
                raise ApiFailure(0, f"The answer broke off: {error}.") from None

    def json(self, method: str, path: str, body: object = None) -> Any:
        return json.loads(self.read(method, path, body) or "null")

    def events(self, path: str, body: object) -> Iterator[dict]:
        """The answer to a POST as it is streamed; closing this hangs up."""
        with closing(self.open("POST", path, body)) as response:
            try:
                for line in response:
                    content = line.removeprefix(b"data:").strip()
                    if line.startswith(b"data:") and content != b"[DONE]":
                        yield checked(json.loads(content))
            except (OSError, HTTPException) as error:
                raise ApiFailure(0, f"The answer broke off: {error}.") from None

    def first_model(self) -> str:
        return self.json("GET", "/v1/models")["data"][0]["id"]


def checked(event: dict) -> dict:
    """What fails after the stream has begun comes as an event."""
    response = event.get("response") or {}
    if error := event.get("error") or response.get("error"):
        raise ApiFailure(200, error.get("message") or "The answer failed.")
    return event


def message_in(content: bytes, otherwise: str) -> str:
    """What an error in OpenAI's shape says."""
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return otherwise


def add_arguments(parser: ArgumentParser, config: ServerConfig) -> None:
    """Flags of a command that asks a server: which one, and with which key."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    if host in ("0.0.0.0", "[::]"):
        host = "127.0.0.1"
    parser.add_argument(
        "--url",
        default=f"http://{host}:{config.port}",
        help="Address of the server. Default: the one that `serve` uses, %(default)s.",
    )
    parser.add_argument(
        "--api-key",
        default=os.environ.get("OPENAI_API_KEY", ""),
        help="If the server asks for one. Default: the variable OPENAI_API_KEY.",
    )
    parser.add_argument("--model", metavar="NAME", help="Default: the first that it serves.")
