"""What daphne refuses by itself, before any application: in JSON, as all other refusals.

Its own pages are HTML. And it lets any client say, by a header, under which path the site lives,
which is for the operator to say; a strange value makes it fail without an answer.
"""

from typing import Any

from daphne.http_protocol import WebRequest

from nanollmserve_site.guard import error_messages

ROOT_PATH = b"daphne-root-path"

_process = WebRequest.process


def apply() -> None:
    WebRequest.process = process
    WebRequest.basic_error = basic_error


def process(request: WebRequest) -> Any:
    """Called when the request is whole."""
    request.requestHeaders.removeHeader(ROOT_PATH)
    return _process(request)


def basic_error(request: WebRequest, status: int, reason: bytes, message: str) -> None:
    type_ = "server_error" if status >= 500 else "invalid_request_error"
    start, body = error_messages(status, type_, f"{message}.".replace("..", "."))
    request.handle_reply(start)
    request.handle_reply(body)
