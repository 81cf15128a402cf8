"""Work that no client waits for: background responses, those of a killed server, tidying up.

It has an event loop in a thread of its own, so that it begins with the server and not with the
first request, and ends with neither.
"""

import asyncio
import logging
import threading
import time
from contextlib import aclosing, suppress

from django.conf import settings

from inference.errors import EngineNotReady, EngineOverloaded, ShuttingDown
from inference.service import check_ready, get_engine
from openai_api import response_rows as rows
from openai_api import retention
from openai_api.database import read, write
from openai_api.errors import as_api_error
from openai_api.history import charge
from openai_api.limits import Lease
from openai_api.prompts import owned
from openai_api.response_requests import Prepared, prepare
from openai_api.runs import Run, failure
from openai_api.serializers.fields import validated
from openai_api.serializers.responses import ResponseSerializer

logger = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 3600

_loop: asyncio.AbstractEventLoop | None = None
_lock = threading.Lock()
_tasks: dict[str, asyncio.Task] = {}


def loop() -> asyncio.AbstractEventLoop:
    """The background's event loop, started on first use."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="background", daemon=True).start()
        return _loop


def start() -> None:
    """Go on with what an earlier process left unfinished, as soon as the model is there.

    What is too old is deleted at once, and then every hour.
    """
    asyncio.run_coroutine_threadsafe(_recover(), loop())
    if (days := settings.API.retention_days) is not None:
        asyncio.run_coroutine_threadsafe(sweep_hourly(days), loop())


async def put_off(patience_s: float) -> None:
    """When the engine has dismissed everything: the rows of what the next server goes on with."""
    deadline = time.monotonic() + patience_s
    while _tasks and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    if num_rows := await write(rows.put_off):
        logger.info("%d background responses are left to the next start", num_rows)


async def sweep_hourly(days: int) -> None:
    while True:
        try:
            deleted = await retention.sweep(days)
            if deleted:
                logger.info("older than %d days, deleted: %s", days, retention.told(deleted))
        except Exception:
            logger.exception("what is too old could not be deleted")
        await asyncio.sleep(SWEEP_INTERVAL_S)


async def begin(prepared: Prepared) -> Run:
    """Begin a background response; its row exists when this returns. Raises InvalidRequest."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_begin(prepared), loop()))


async def _begin(prepared: Prepared) -> Run:
    run = Run(prepared.row, prepared.answer(get_engine()), **prepared.run_options)
    prepared.lease.answers = [run.answer]
    events = run.drive()
    await anext(events)  # the row has been created
    _keep(run, events, prepared.lease)
    return run


def _keep(run: Run, events, lease: Lease) -> None:
    def ended(_: asyncio.Task) -> None:
        charge(run.row.key_id, run.answer, lease)
        _tasks.pop(run.row.pk, None)

    task = asyncio.create_task(_drain(events))
    _tasks[run.row.pk] = task
    task.add_done_callback(ended)


async def _drain(events) -> None:
    with suppress(ShuttingDown):  # `put_off` does the rest
        async with aclosing(events):
            async for _ in events:
                pass


async def _recover() -> None:
    found = await write(rows.abandoned)
    if found:
        logger.warning("going on with %d background responses", len(found))
    while found and get_engine().status.state == "loading":
        await asyncio.sleep(0.1)
    for response_id, owner in found:
        try:
            await _resume(response_id, owner)
        except ShuttingDown:
            return
        except Exception as exc:
            error = failure(as_api_error(exc))["error"]
            row = await read(rows.find, response_id, owner)
            await write(rows.fail, row, error)


async def _resume(response_id: str, owner: int | None) -> None:
    """Go on after the last event that was kept."""
    row = await read(rows.find, response_id, owner)
    past, token_ids = await read(rows.past_of, response_id)
    body = owned(validated(ResponseSerializer, row.body), owner) | {"input": row.input}
    context = await read(rows.context_of, row)
    prepared = await prepare(check_ready(), body, owner, context, Lease())
    while True:
        check_ready()
        try:
            get_engine().check_capacity(owner=body["owner"])
            answer = prepared.answer(get_engine(), token_ids)
            break
        except (EngineOverloaded, EngineNotReady):
            await asyncio.sleep(1)
    run = Run(row, answer, **prepared.run_options, past=past)
    _keep(run, run.drive(), prepared.lease)
