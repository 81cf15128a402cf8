"""Every request has an id: in the scope, in the answer's headers, and in each line of the log."""

import logging
from contextvars import ContextVar

from nanollmserve_site.guard import Application, Message, Receive, Send
from openai_api import metrics
from openai_api.protocol.ids import new_request_id

VISIBLE = {code: repr(chr(code))[1:-1] for code in [*range(32), *range(127, 160)]}
current = ContextVar("request_id", default="")


def with_request_id(app: Application) -> Application:
    async def identified(scope: Message, receive: Receive, send: Send) -> None:
        scope["request_id"] = new_request_id()
        current.set(scope["request_id"])
        header = (b"x-request-id", scope["request_id"].encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                metrics.http_responses.labels(message["status"]).inc()
                message = message | {"headers": [*message["headers"], header]}
            await send(message)

        await app(scope, receive, send_with_id)

    return identified


class AddRequestId(logging.Filter):
    """Gives log records a `request_id`, and a `request` to print: the id in brackets, or nothing.

    Control characters become visible: a caller's text must not look like a line of its own.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = record.getMessage().translate(VISIBLE), ()
        record.request_id = request_id = current.get()
        record.request = f" [{request_id}]" if request_id else ""
        return True
