"""Whether the event loop is free: how late a task wakes up, and what held the loop up meanwhile.

The task measures; it cannot tell who was in its way, as that is over when it runs again. So a
thread looks at the task's last sign of life, and logs what the loop's thread is doing.
"""

import asyncio
import logging
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType

from nanollmserve_site.guard import Application, Message, Receive, Send
from openai_api import metrics

INTERVAL_S = 0.05
LONG_S = 0.2
MAX_FRAMES = 20

logger = logging.getLogger("nanollmserve")


class LoopWatch:
    """Begins with the first request, in whichever loop that runs."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._awake_at = time.monotonic()

    def __call__(self, app: Application) -> Application:
        async def watched(scope: Message, receive: Receive, send: Send) -> None:
            if self._task is None:
                self._begin()
            await app(scope, receive, send)

        return watched

    def _begin(self) -> None:
        self._awake_at = time.monotonic()
        self._task = asyncio.create_task(self._measure())
        thread = threading.Thread(
            target=self._look, args=(threading.get_ident(),), name="loop-watch", daemon=True
        )
        thread.start()

    async def _measure(self) -> None:
        worst = 0.0
        while True:
            await asyncio.sleep(INTERVAL_S)
            now = time.monotonic()
            late_s = max(now - self._awake_at - INTERVAL_S, 0.0)
            self._awake_at = now
            metrics.loop_stall_s.observe(late_s)
            if late_s > worst:
                worst = late_s
                metrics.worst_loop_stall_s.set(worst)

    def _look(self, loop_thread: int) -> None:
        """Tell of a stall when it is long, and again each time it has become twice as long."""
        stalled_at, told_s, lost_s = 0.0, LONG_S, 0.0
        while self._task is not None and not self._task.done():
            began = Times()
            time.sleep(LONG_S / 2)
            now, awake_at = Times(), self._awake_at
            if awake_at != stalled_at:
                stalled_at, told_s, lost_s = awake_at, LONG_S, 0.0
            # Late itself: what was not computed in then, nobody had. Else Python's lock was held.
            lost_s += max(now.wall_s - began.wall_s - LONG_S / 2 - (now.cpu_s - began.cpu_s), 0.0)
            late_s = now.wall_s - awake_at - INTERVAL_S - lost_s
            frame = sys._current_frames().get(loop_thread)
            if late_s > told_s and frame and frame.f_code.co_name != "select":
                told_s = 2 * late_s
                logger.warning("the event loop is %.1f s late, in %s", late_s, stack_of(frame))


class Times:
    def __init__(self) -> None:
        self.wall_s, self.cpu_s = time.monotonic(), time.process_time()


def stack_of(frame: FrameType) -> str:
    """Where a thread is, innermost first, in one line and without values."""
    calls = reversed(traceback.extract_stack(frame)[-MAX_FRAMES:])
    return " < ".join(f"{call.name} ({Path(call.filename).name}:{call.lineno})" for call in calls)
