"""The dashboard's socket: the moving part of the page, again and again, as HTML."""

import asyncio
import time
from contextlib import suppress

from autobahn.exception import Disconnected
from channels.generic.websocket import AsyncWebsocketConsumer

from openai_api.console import dashboard
from openai_api.console.samples import INTERVAL_S, sampler
from openai_api.database import FAILURES, read

MAX_AGE_S = 60.0  # who reconnects must still be somebody who may look
SERVICE_RESTART, TRY_AGAIN = 1012, 1013


class LiveConsumer(AsyncWebsocketConsumer):
    """For staff, by the session of their browser. What they may see is found out once."""

    async def connect(self) -> None:
        self._task: asyncio.Task[None] | None = None
        user = self.scope["user"]
        if not (user.is_active and user.is_staff):
            await self.close()
            return
        await self.accept()
        self._task = asyncio.create_task(self._push(await read(dashboard.sight_of, user)))

    async def disconnect(self, code: int) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Nothing is to be said to it."""

    async def _push(self, sight: dashboard.Sight) -> None:
        end = time.monotonic() + MAX_AGE_S
        with suppress(Disconnected):
            while time.monotonic() < end and not self._is_draining:
                with suppress(*FAILURES):  # the database is away: what was shown stays
                    await self.send(await read(dashboard.fragment, sight))
                await asyncio.sleep(INTERVAL_S)
            await self.close(SERVICE_RESTART if self._is_draining else TRY_AGAIN)

    @property
    def _is_draining(self) -> bool:
        return sampler.engine is not None and sampler.engine.is_draining
