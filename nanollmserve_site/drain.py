"""SIGTERM: nobody new comes in, whoever is here may finish, and in the end everybody is told.

daphne cancels every request at once, and Twisted's reactor stops as soon as they have ended. But
it also waits for what others want to do before; and a request in a task of its own goes on when
that which daphne knows of is cancelled. So daphne itself stays as it is.
"""

import asyncio
import logging
import signal
from typing import Any

from twisted.internet.defer import Deferred

from inference import service
from nanollmserve_site import request_id
from nanollmserve_site.guard import Application, Message, Receive, Send, error_messages
from openai_api import background, consumers, metrics

logger = logging.getLogger("nanollmserve")

TOLD_S = 3.0  # how long it may take until everybody knows that it is over
PROBES = {"/health", "/health/ready", "/metrics"}
SERVICE_RESTART = 1012
STATUS, RETRY_AFTER_S = 503, 10
REFUSAL = error_messages(
    STATUS,
    "server_error",
    "The server is shutting down.",
    code="server_is_overloaded",
    headers=[(b"retry-after", b"%d" % RETRY_AFTER_S), (b"connection", b"close")],
)


class Drain:
    """The end of the server. `wrap` is put around its applications, so that they have one."""

    def __init__(self, grace_s: float) -> None:
        self.grace_s, self.has_begun = grace_s, False
        self._running: set[asyncio.Task[None]] = set()
        self._now = asyncio.Event()

    def wrap(self, app: Application) -> Application:
        async def drained(scope: Message, receive: Receive, send: Send) -> None:
            if self.has_begun and scope["path"] not in PROBES:
                await refuse(scope, receive, send)
                return
            task = asyncio.ensure_future(app(scope, receive, send))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if not self.has_begun:  # else it goes on, and `run` waits for it
                    task.cancel()
                    await asyncio.wait([task])
                raise

        return drained

    def install(self, reactor: Any) -> None:
        """Have `run` done by Twisted's reactor before it stops."""

        def begin() -> Deferred[None]:
            self.has_begun = True  # at once: daphne cancels all requests before or after this
            return Deferred.fromFuture(asyncio.ensure_future(self._stop(reactor)))

        reactor.addSystemEventTrigger("before", "shutdown", begin)

    async def _stop(self, reactor: Any) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._now.set)
        await self.run()
        deadline = loop.time() + TOLD_S
        while reactor.getWriters() and loop.time() < deadline:
            await asyncio.sleep(0.01)  # what was written last is on its way

    async def run(self) -> None:
        """Returns when no request is left."""
        self.has_begun = True
        request_id.current.set("")  # that of whoever was served when the signal came
        service.drain()
        consumers.drain()
        logger.info(
            "shutting down: %d requests may take %g s to end, a second signal ends them at once",
            len(self._running),
            self.grace_s,
        )
        await self._wait(self.grace_s)
        if self._running:
            logger.warning("%d requests have not ended in time, and are told", len(self._running))
        service.get_engine().dismiss()
        self._now = asyncio.Event()  # a third signal changes nothing
        await self._wait(TOLD_S)
        for task in self._running:
            task.cancel()
        await self._wait(TOLD_S)
        await background.put_off(TOLD_S)

    async def _wait(self, timeout_s: float) -> None:
        """Until all requests have ended, the time is up, or a signal asks for the end."""
        if not self._running:
            return
        ended = asyncio.ensure_future(asyncio.wait(list(self._running)))
        asked = asyncio.ensure_future(self._now.wait())
        await asyncio.wait([ended, asked], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        asked.cancel()


async def refuse(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})  # else the client would see a 403
        await send({"type": "websocket.close", "code": SERVICE_RESTART})
    else:
        metrics.rejected.labels("server_is_overloaded").inc()
        for message in REFUSAL:
            await send(message)
