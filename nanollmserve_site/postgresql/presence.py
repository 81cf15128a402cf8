"""Who else uses this database: servers may stand on different machines, so that no file tells.

Every server holds an advisory lock, which ends with its connection. If PostgreSQL was restarted,
the lock is taken again within a second.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from psycopg import Connection, OperationalError

PREPARING, PRESENT = 0x6E616E6F01, 0x6E616E6F02  # any numbers, if they are always the same
CHECK_INTERVAL_S = 1.0


@contextmanager
def locked() -> Iterator[None]:
    """One process at a time, for what is done once on first start.

    Raises ImproperlyConfigured if there is no way to the database.
    """
    try:
        link = connect()
    except OperationalError as error:
        named = "NANOLLM_DATABASE_URL (--database-url)"
        raise ImproperlyConfigured(f"{named}: {' '.join(str(error).split())}") from None
    with link:  # closing it ends the lock
        link.execute("SELECT pg_advisory_lock(%s)", [PREPARING])
        yield


def only_server() -> bool:
    """Whether no other server uses the database. Until it ends, this process counts as one.

    To be called while `locked`.
    """
    link = connect()
    [alone] = link.execute("SELECT pg_try_advisory_lock(%s)", [PRESENT]).fetchone()
    stay(link)
    if alone:
        link.execute("SELECT pg_advisory_unlock(%s)", [PRESENT])
    thread = threading.Thread(target=_remain, args=[link], name="presence", daemon=True)
    thread.start()
    return alone


def connect() -> Connection:
    params = connection.get_connection_params() | {"options": ""}  # waits as long as it takes
    return Connection.connect(**params, autocommit=True)


def stay(link: Connection) -> None:
    link.execute("SELECT pg_advisory_lock_shared(%s)", [PRESENT])


def _remain(link: Connection) -> None:
    while True:
        time.sleep(CHECK_INTERVAL_S)
        try:
            if link.closed:
                link = connect()
                stay(link)
            link.execute("")
        except OperationalError:
            link.close()
