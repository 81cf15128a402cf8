"""Connections that threads share: borrowed for a unit of work, then given back.

psycopg's own pool connects in the background, with growing pauses, and looks at one broken
connection a second: a restart of PostgreSQL would be felt for long after it is over. Here whoever
needs a connection makes it, and for a few seconds does not take no for an answer.
"""

import select
import threading
import time
from collections.abc import Callable

from psycopg import Connection, OperationalError
from psycopg.pq import TransactionStatus

RETRY_S = 0.2


class Pool:
    """At most `size` connections; none of them is waited for longer than `patience_s`."""

    def __init__(self, connect: Callable[[], Connection], size: int, patience_s: float = 5) -> None:
        self._connect, self._patience_s = connect, patience_s
        self._places = threading.BoundedSemaphore(size)
        self._idle: list[Connection] = []
        self._is_closed = False

    def open(self) -> None:
        """Nothing is prepared: the first who asks makes the first connection."""

    def getconn(self) -> Connection:
        """Raises OperationalError."""
        deadline = time.monotonic() + self._patience_s
        if not self._places.acquire(timeout=self._patience_s):
            raise OperationalError("all connections to PostgreSQL are in use")
        try:
            found = self._usable() or self._new(deadline)
        except BaseException:
            self._places.release()
            raise
        found._pool = self  # Django gives it back there
        return found

    def putconn(self, connection: Connection) -> None:
        is_idle = connection.pgconn.transaction_status == TransactionStatus.IDLE
        if is_idle and not self._is_closed:
            self._idle.append(connection)
        else:
            connection.close()
        self._places.release()

    def close(self) -> None:
        """What is borrowed is closed when it comes back."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()

    def _usable(self) -> Connection | None:
        """The one that was used last; those that PostgreSQL has closed are thrown away."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if is_quiet(connection):
                return connection
            connection.close()

    def _new(self, deadline: float) -> Connection:
        while True:
            try:
                return self._connect()
            except OperationalError:
                if time.monotonic() + RETRY_S > deadline:
                    raise
            time.sleep(RETRY_S)


def is_quiet(connection: Connection) -> bool:
    """Whether nothing is to be read: to an idle connection there comes only its end."""
    if connection.closed:
        return False
    watch = select.poll()
    watch.register(connection.fileno(), select.POLLIN)
    return not watch.poll(0)
