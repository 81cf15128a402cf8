"""What daphne and Twisted refuse by themselves, before any application: as all other refusals.

Twisted says nothing but the status, daphne writes a page of HTML. And daphne lets any client say,
by a header, under which path the site lives, which is for the operator to say; a strange value
makes it fail without an answer.
"""

from typing import Any

from daphne.http_protocol import WebRequest
from twisted.web.http import HTTPChannel

from nanollmserve_site.guard import error_messages

ROOT_PATH = b"daphne-root-path"

_process = WebRequest.process


def apply() -> None:
    WebRequest.process = process
    WebRequest.basic_error = basic_error
    HTTPChannel._respondToBadRequestAndDisconnect = refuse


def process(request: WebRequest) -> Any:
    """Called when the request is whole."""
    request.requestHeaders.removeHeader(ROOT_PATH)
    return _process(request)


def basic_error(request: WebRequest, status: int, reason: bytes, message: str) -> None:
    type_ = "server_error" if status >= 500 else "invalid_request_error"
    start, body = error_messages(status, type_, f"{message}.".replace("..", "."))
    request.handle_reply(start)
    request.handle_reply(body)


def refuse(channel: HTTPChannel) -> None:
    """Answer what is no HTTP, and hang up."""
    start, body = error_messages(400, "invalid_request_error", "Your request is not valid HTTP.")
    headers = [*start["headers"], (b"connection", b"close")]
    lines = [b"HTTP/1.1 400 Bad Request", *(b"%s: %s" % header for header in headers)]
    channel.transport.write(b"\r\n".join([*lines, b"", body["body"]]))
    channel.loseConnection()
