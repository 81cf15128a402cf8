"""The outermost HTTP wrapper: whatever the application does, the client's answer ends.

daphne, told of an exception after the response has started, raises itself: the client would wait
for ever, and daphne's reaper of finished connections would never run again.
"""

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

logger = logging.getLogger("nanollmserve")

ERROR = {"message": "The server failed to answer.", "type": "server_error"}
ERROR_BODY = json.dumps({"error": ERROR | {"param": None, "code": None}}).encode()
ERROR_START: Message = {
    "type": "http.response.start",
    "status": 500,
    "headers": [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(ERROR_BODY)).encode()),
    ],
}


def guard(app: Application) -> Application:
    async def guarded(scope: Message, receive: Receive, send: Send) -> None:
        sent: list[Message] = []  # the last message

        async def remember(message: Message) -> None:
            sent[:] = [message]
            await send(message)

        try:
            await app(scope, receive, remember)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await end(sent, send)

    return guarded


async def end(sent: list[Message], send: Send) -> None:
    """Send what is missing of an answer of which `sent` holds the last message, if any."""
    if not sent:
        await send(ERROR_START)
        await send({"type": "http.response.body", "body": ERROR_BODY, "more_body": False})
    elif sent[-1]["type"] == "http.response.start" or sent[-1].get("more_body"):
        await send({"type": "http.response.body", "body": b"", "more_body": False})
