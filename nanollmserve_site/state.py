"""What the server keeps on disk: one folder with the database and the secret key."""

import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured


def secret_key(data_dir: Path) -> str:
    """Django's secret key, made on first use and readable by its owner only."""
    path = data_dir / "secret_key"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            make_secret(path)
        return path.read_text()
    except OSError as error:
        raise ImproperlyConfigured(
            f"NANOLLM_DATA_DIR (--data-dir): {data_dir} must be a folder that can be read and "
            f"written: {error.strerror}."
        ) from None


def make_secret(path: Path) -> None:
    """A link shows the whole file or nothing; of two processes the first one's key stays."""
    fd, draft = tempfile.mkstemp(dir=path.parent)  # mode 0600
    try:
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_urlsafe(50))
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        Path(draft).unlink()


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """One process at a time, for what is done once on first start."""
    with (data_dir / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def only_server(data_dir: Path) -> bool:
    """Whether no other server uses the folder. Until it ends, this process counts as one."""
    fd = os.open(data_dir / "in_use", os.O_CREAT | os.O_RDWR, 0o600)  # left open on purpose
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        fcntl.flock(fd, fcntl.LOCK_SH)
    return True
