"""What daphne does not do, and nothing outside of it can: limits for those who send and receive.

- It calls the application when a body is whole. So a body that is too large, or never becomes
  whole, is refused here.
- It writes whatever the application sends into a buffer without bound. Here `send` waits while the
  client does not read, and a client that takes nothing for too long is cut off.
- Its WebSockets refuse to close with a code below 3000 other than 1000.

Only for versions of daphne that the tests were run with; others serve without these.
"""

import asyncio
import logging
import time
from typing import Any

import daphne
from daphne import http_protocol, ws_protocol
from daphne.server import Server

from nanollmserve_site.config import ServerConfig
from nanollmserve_site.guard import error_messages

logger = logging.getLogger("nanollmserve")

TESTED = ("4.2.3",)
LINGER_S = 2.0  # to read the rest of what is refused: closed at once, its sender sees no answer
TOO_LARGE = error_messages(413, "invalid_request_error", "The body of your request is too large.")
TOO_SLOW = error_messages(408, "invalid_request_error", "Your request did not arrive in time.")
REASONS = {413: b"Request Entity Too Large", 408: b"Request Timeout"}

_send = Server.handle_reply


class Limits:
    """Those of all connections; set by `apply`."""

    max_body_size = 0
    upload_timeout_s = send_timeout_s = float("inf")


def apply(max_body_size: int, config: ServerConfig) -> None:
    """Patch daphne, if it is one of the tested versions."""
    if daphne.__version__ not in TESTED:
        logger.warning(
            "daphne %s is not one that was tested (%s): slow clients have no time limit, and their "
            "answers no bound in memory",
            daphne.__version__,
            ", ".join(TESTED),
        )
        return
    Limits.max_body_size = max_body_size
    Limits.upload_timeout_s = config.upload_timeout_s
    Limits.send_timeout_s = config.send_timeout_s
    http_protocol.WebRequest = Request
    ws_protocol.WebSocketFactory.protocol = Socket
    Server.handle_reply = send


async def send(server: Server, protocol: Any, message: dict[str, Any]) -> None:
    """ASGI's `send`: returns when there is room for more."""
    await _send(server, protocol, message)
    await protocol.gate.opened.wait()


class Gate:
    """A producer, as Twisted's transports know them: told to pause when their buffer is full."""

    def __init__(self) -> None:
        self.opened, self._closed_at = asyncio.Event(), 0.0
        self.opened.set()

    def pauseProducing(self) -> None:  # again and again while it is paused
        if self.opened.is_set():
            self._closed_at = time.monotonic()
            self.opened.clear()

    def resumeProducing(self) -> None:
        self.opened.set()

    stopProducing = resumeProducing  # nobody is there any more: whoever waits finds out

    @property
    def is_stuck(self) -> bool:
        waited_s = time.monotonic() - self._closed_at
        return not self.opened.is_set() and waited_s > Limits.send_timeout_s


class Request(http_protocol.WebRequest):
    """An HTTP request, from its first line on. daphne calls `check_timeouts` every two seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gate = Gate()
        self._due_at: float | None = time.monotonic() + Limits.upload_timeout_s
        self._is_refused = False

    def gotLength(self, length: int | None) -> None:
        """All headers are there."""
        super().gotLength(length)
        if length is not None and length > Limits.max_body_size:
            self.requestHeaders.removeHeader(b"expect")  # no 100 Continue after our 413
            self._refuse(TOO_LARGE)

    def handleContentChunk(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self.content.tell() + len(data) > Limits.max_body_size:
            self._refuse(TOO_LARGE)
        else:
            super().handleContentChunk(data)

    def process(self) -> Any:
        """The request is whole."""
        if self._is_refused:
            return self.channel.loseConnection()
        self._due_at, transport = None, self.channel.transport
        self.registerProducer(self.gate, True)
        processed = super().process()
        if isinstance(transport.protocol, Socket):  # it is a WebSocket now
            transport.protocol.gate = self.gate
        return processed

    def finish(self) -> None:
        if self.producer:
            self.unregisterProducer()
        self.gate.resumeProducing()
        super().finish()

    def check_timeouts(self) -> None:
        if self.finished or self.channel is None:
            return
        is_late = self._due_at is not None and time.monotonic() > self._due_at
        if self.gate.is_stuck or (is_late and self._is_refused):
            self.channel.transport.abortConnection()
        elif is_late:
            self._refuse(TOO_SLOW)
        else:
            super().check_timeouts()

    def _refuse(self, messages: list[dict[str, Any]]) -> None:
        """Answer what has not arrived yet; what still comes is thrown away for a while."""
        self._is_refused, self._due_at = True, time.monotonic() + LINGER_S
        start, body = messages
        status = start["status"]
        logger.info("%s: refused with %d", self.client, status)
        headers = [*start["headers"], (b"connection", b"close")]
        lines = [b"HTTP/1.1 %d %s" % (status, REASONS[status])]
        lines += [b"%s: %s" % header for header in headers]
        self.channel.transport.write(b"\r\n".join([*lines, b"", body["body"]]))


class Socket(ws_protocol.WebSocketProtocol):
    """A WebSocket; its gate is that of the request that it was."""

    gate: Gate

    def serverClose(self, code: int | None = None) -> None:
        """daphne's calls what is for clients, who may not use the codes of servers."""
        self.sendCloseFrame(code=1000 if code is None else code)

    def check_timeouts(self) -> None:
        if self.gate.is_stuck:
            self.transport.abortConnection()
        else:
            super().check_timeouts()
