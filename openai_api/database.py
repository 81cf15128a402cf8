"""The database's own threads.

Django gives each ASGI request a thread and a connection that live as long as its stream. Here a
state change is one function, run in one of a few threads that keep their connections.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from django.db import close_old_connections

logger = logging.getLogger(__name__)

T = TypeVar("T")

_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="database")


async def in_database(function: Callable[..., T], *args) -> T:
    """Run a function of the ORM in a database thread. Cancelling the wait does not undo it."""
    return await asyncio.shield(asyncio.wrap_future(_threads.submit(_run, function, *args)))


def write_later(function: Callable[..., object], *args) -> None:
    """The same without waiting: for clean-up in a task that is being cancelled."""
    _threads.submit(_run, function, *args).add_done_callback(_log_failure)


def _run(function: Callable[..., T], *args) -> T:
    close_old_connections()
    return function(*args)


def _log_failure(future: Future) -> None:
    if (exc := future.exception()) is not None:
        logger.error("a database write failed", exc_info=exc)
