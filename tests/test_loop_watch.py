"""A stall of the event loop is measured, and named while it lasts."""

import asyncio
import time

from nanollmserve_site.loop_watch import LONG_S, LoopWatch
from openai_api import metrics

STALL_S = 4 * LONG_S


def hold_everybody_up() -> None:
    time.sleep(STALL_S)


async def test_who_holds_the_loop_up_is_in_the_log(caplog):
    async def app(scope, receive, send) -> None:
        await asyncio.sleep(0.1)
        hold_everybody_up()
        await asyncio.sleep(0.1)

    before = metrics.loop_stall_s._sum.get()
    watch = LoopWatch()
    await watch(app)({}, None, None)
    watch._task.cancel()

    [first, *_] = [r.getMessage() for r in caplog.records if "the event loop is" in r.getMessage()]
    assert "hold_everybody_up (test_loop_watch.py:" in first
    assert metrics.loop_stall_s._sum.get() - before > STALL_S / 2
    assert metrics.worst_loop_stall_s._value.get() > STALL_S / 2


async def test_a_free_loop_is_not_news(caplog):
    async def app(scope, receive, send) -> None:
        await asyncio.sleep(3 * LONG_S)

    watch = LoopWatch()
    await watch(app)({}, None, None)
    watch._task.cancel()
    assert "event loop" not in caplog.text
