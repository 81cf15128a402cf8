"""The database's own threads.

Django gives each ASGI request a thread and a connection that live as long as its stream. Here a
read or a state change is one function, run in one of a few threads that keep their connections.
All writes go through one of them, in the order in which they were asked for: a row that is
inserted and finished is never finished first, whoever was cancelled in between.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from django.db import connection

logger = logging.getLogger(__name__)

T = TypeVar("T")

_readers = ThreadPoolExecutor(max_workers=4, thread_name_prefix="database-read")
_writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database-write")


async def read(function: Callable[..., T], *args) -> T:
    """Run a function that only reads."""
    return await _wait(_readers.submit(_run, function, *args))


async def write(function: Callable[..., T], *args) -> T:
    """Run a function that writes. Cancelling the wait does not undo it."""
    return await _wait(_writer.submit(_run, function, *args))


def write_later(function: Callable[..., object], *args) -> None:
    """The same without waiting: for clean-up in a task that is being cancelled."""
    try:
        _writer.submit(_run, function, *args).add_done_callback(_log_failure)
    except RuntimeError:  # the process ends: the next start finds the row as it is
        logger.info("the server ends: %s was not done", function.__name__)


async def _wait(submitted: Future[T]) -> T:
    future = asyncio.wrap_future(submitted)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_log_failure)  # nobody else will ask how it went
        raise


def _run(function: Callable[..., T], *args) -> T:
    connection.close_at = None  # Django would close it after each function
    connection.close_if_unusable_or_obsolete()
    return function(*args)


def _log_failure(future: Future | asyncio.Future) -> None:
    if not future.cancelled() and (exc := future.exception()) is not None:
        logger.error("a database access failed", exc_info=exc)
