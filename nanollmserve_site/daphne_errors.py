"""What daphne and those below refuse by themselves, before any application: as all others.

Twisted and Autobahn say nothing but the status, daphne writes a page of HTML. And daphne lets any
client say, by a header, under which path the site lives, which is for the operator to say; a
strange value makes it fail without an answer.
"""

from typing import Any

from daphne.http_protocol import WebRequest
from daphne.ws_protocol import WebSocketProtocol
from twisted.web.http import HTTPChannel

from nanollmserve_site.guard import error_messages

ROOT_PATH = b"daphne-root-path"

_process = WebRequest.process


def apply() -> None:
    WebRequest.process = process
    WebRequest.basic_error = basic_error
    HTTPChannel._respondToBadRequestAndDisconnect = refuse
    WebSocketProtocol.sendHttpErrorResponse = refuse_socket


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
    channel.transport.write(refusal(400, "Bad Request", "Your request is not valid HTTP."))
    channel.loseConnection()


def refuse_socket(
    protocol: WebSocketProtocol,
    code: int,
    reason: str,
    headers: list[tuple[str, str]] | None = None,
) -> None:
    """Answer what wants to be a WebSocket and is none; whoever calls this hangs up."""
    protocol.sendData(refusal(code, "Refused", f"{reason}."))


def refusal(status: int, reason: str, message: str) -> bytes:
    type_ = "server_error" if status >= 500 else "invalid_request_error"
    start, body = error_messages(status, type_, message)
    headers = [*start["headers"], (b"connection", b"close")]
    lines = [f"HTTP/1.1 {status} {reason}".encode(), *(b"%s: %s" % header for header in headers)]
    return b"\r\n".join([*lines, b"", body["body"]])
