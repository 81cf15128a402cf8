"""The outermost HTTP wrapper: whatever the application does, the client's answer ends.

daphne, told of an exception after the response has started, raises itself: the client would wait
for ever, and daphne's reaper of finished connections would never run again.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

logger = logging.getLogger("nanollmserve")


def error_messages(
    status: int,
    type_: str,
    message: str,
    *,
    code: str | None = None,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> list[Message]:
    """A whole answer in OpenAI's shape, for where Django cannot give it."""
    error = {"message": message, "type": type_, "param": None, "code": code}
    body = json.dumps({"error": error}).encode()
    all_headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        *headers,
    ]
    return [
        {"type": "http.response.start", "status": status, "headers": all_headers},
        {"type": "http.response.body", "body": body, "more_body": False},
    ]


FAILURE = error_messages(500, "server_error", "The server failed to answer.")
STOPPED = error_messages(503, "server_error", "The server has stopped before it could answer.")
END: Message = {"type": "http.response.body", "body": b"", "more_body": False}


def guard(app: Application) -> Application:
    async def guarded(scope: Message, receive: Receive, send: Send) -> None:
        missing = FAILURE  # what the answer still needs to be whole

        async def watched(message: Message) -> None:
            nonlocal missing
            ended = message["type"] == "http.response.body" and not message.get("more_body")
            missing = [] if ended else [END]
            await send(message)

        try:
            await app(scope, receive, watched)
        except asyncio.CancelledError:
            if missing is FAILURE:  # else the client sees that the answer is not whole
                for message in STOPPED:
                    await send(message)
            raise
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            for message in missing:
                await send(message)

    return guarded
