"""The Unix socket of an engine process: where it may lie, and who may have it."""

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class AddressRefused(Exception):
    """The socket cannot be used; the message tells the operator why."""


def check_folder(address: Path) -> None:
    """Raises AddressRefused unless nobody but this user, or root, can put a socket there.

    Whoever could would read all prompts, and say what the answers are.
    """
    facts = address.parent.stat()
    if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o022:
        raise AddressRefused(f"others can write to {address.parent}: choose a folder of your own")


@contextmanager
def listening(address: Path) -> Iterator[socket.socket]:
    """The socket, which goes away at the end. Raises AddressRefused.

    A file that a dead process left is taken over. The lock keeps two from doing so at once, and
    its file stays: a lock on a file that was deleted keeps nobody out.
    """
    try:
        address.parent.mkdir(mode=0o700, exist_ok=True)
        check_folder(address)
    except OSError as error:
        raise AddressRefused(f"{address.parent}: {error.strerror}") from error
    with _lock(address), socket.socket(socket.AF_UNIX) as sock:
        _remove_stale(address)
        try:
            sock.bind(str(address))
        except OSError as error:
            raise AddressRefused(f"{address}: {error}") from error
        address.chmod(0o600)  # in time: nobody can connect before it listens
        try:
            sock.listen()
            yield sock
        finally:
            address.unlink(missing_ok=True)


@contextmanager
def _lock(address: Path) -> Iterator[None]:
    path = address.with_name(address.name + ".lock")
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AddressRefused(f"another engine process has {address}") from error
        yield
    finally:
        os.close(fd)


def _remove_stale(address: Path) -> None:
    if not address.exists():
        return
    if not stat.S_ISSOCK(address.stat().st_mode):
        raise AddressRefused(f"{address} is no socket: remove it, or choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(address))
        except ConnectionRefusedError:
            address.unlink()
            return
        except OSError as error:
            raise AddressRefused(f"{address}: {error}") from error
    raise AddressRefused(f"somebody answers at {address} already")
