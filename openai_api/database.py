"""The database's own threads.

Django gives each ASGI request a thread and a connection that live as long as its stream. Here a
read or a state change is one function, run in one of a few threads. SQLite's connection stays with
its thread; one of a pool goes back when the function has ended, so that a pool of two is enough.
All writes go through one of the threads, in the order in which they were asked for: a row that is
inserted and finished is never finished first, whoever was cancelled in between.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from django.db import InterfaceError, OperationalError, connection
from prometheus_client import Histogram

from openai_api import metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The database is away, locked, full or read-only: what fails so today may succeed tomorrow.
FAILURES = (OperationalError, InterfaceError)
LONG_S = 1.0  # who fails after that has waited for the database, and those behind with it
RETRY_S = 1.0

_readers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="database-read")
_writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database-write")
metrics.num_waiting_writes.set_function(_writer._work_queue.qsize)
_gave_up_at = 0.0


async def read(function: Callable[..., T], *args) -> T:
    """Run a function that only reads."""
    return await _wait(_submit(_readers, function, *args))


async def write(function: Callable[..., T], *args) -> T:
    """Run a function that writes. Cancelling the wait does not undo it."""
    return await _wait(_submit(_writer, function, *args))


def write_later(function: Callable[..., object], *args) -> None:
    """The same without waiting: for clean-up in a task that is being cancelled."""
    try:
        _submit(_writer, function, *args).add_done_callback(_log_failure)
    except RuntimeError:  # the process ends: the next start finds the row as it is
        logger.info("the server ends: %s was not done", function.__name__)


def write_until_done(function: Callable[..., object], *args) -> Future[None]:
    """Write what must not be missing: again and again, as long as the database fails.

    The function may be run once more after it has succeeded: its commit's answer can be lost.
    """
    done: Future[None] = Future()

    def attempt() -> None:
        try:
            _submit(_writer, function, *args).add_done_callback(attempted)
        except RuntimeError:
            logger.info("the server ends: %s was not done", function.__name__)
            done.cancel()

    def attempted(future: Future) -> None:
        exc = future.exception()
        if isinstance(exc, FAILURES):
            timer = threading.Timer(RETRY_S, attempt)
            timer.daemon = True
            timer.start()
        elif exc is not None:
            _log_failure(future)
            done.set_exception(exc)
        else:
            done.set_result(None)

    attempt()
    return done


def _submit(executor: ThreadPoolExecutor, function: Callable[..., T], *args) -> Future[T]:
    observed = metrics.database_s.labels("write" if executor is _writer else "read")
    return executor.submit(_run, observed, time.monotonic(), function, *args)


async def _wait(submitted: Future[T]) -> T:
    future = asyncio.wrap_future(submitted)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_log_failure)  # nobody else will ask how it went
        raise


def _run(observed: Histogram, asked_at: float, function: Callable[..., T], *args) -> T:
    """Raises OperationalError also for what stood in the queue while another one waited in vain.

    Were each to wait in turn, the last of a hundred would learn of it after minutes.
    """
    global _gave_up_at
    if asked_at < _gave_up_at:
        raise OperationalError("the database could not be used for some time")
    connection.close_at = None  # Django would close it after each function
    connection.close_if_unusable_or_obsolete()
    began = time.monotonic()
    try:
        return function(*args)
    except FAILURES:
        if time.monotonic() - began > LONG_S:
            _gave_up_at = time.monotonic()
        raise
    finally:
        observed.observe(time.monotonic() - began)
        if getattr(connection, "pool", None):
            connection.close()


def _log_failure(future: Future | asyncio.Future) -> None:
    if not future.cancelled() and (exc := future.exception()) is not None:
        logger.error("a database access failed", exc_info=exc)
