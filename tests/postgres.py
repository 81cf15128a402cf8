"""A PostgreSQL for tests: a cluster in a temporary folder, reached by a Unix socket alone.

`python -m tests.postgres [file ...]` runs the tests on one, a file at a time.
"""

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "TEST_POSTGRES"  # the cluster's folder, where the tests run on one
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "60",
    "shared_buffers": "32MB",
}


def binaries() -> Path | None:
    """The folder of `initdb` and `pg_ctl`; Debian has them in no PATH."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"

    @classmethod
    def create(cls, folder: Path) -> "Cluster":
        cluster = cls(folder)
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            user = _other_user()
            os.chown(folder, user.pw_uid, user.pw_gid)
        cluster._run("initdb", "--auth=trust", "--username=tests", "--encoding=UTF8", "--no-sync")
        with (cluster.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in SETTINGS.items())
            file.write(f"unix_socket_directories = '{folder}'\n")
        return cluster

    def start(self) -> None:
        self._run("pg_ctl", "start", "-w", "-l", str(self.folder / "log"))

    def stop(self) -> None:
        """At once, with all connections: as if it had crashed."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate")

    def _run(self, program: str, *args: str) -> None:
        command = [str(binaries() / program), "-D", str(self.data), *args]
        if os.geteuid() == 0:
            command = ["runuser", "-u", _other_user().pw_name, "--", *command]
        done = subprocess.run(
            command, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout.decode()}")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://tests@/{database}?host={self.folder}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple]:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def database(self, name: str) -> str:
        """The URL of a database, made on first use."""
        if not self.execute(f"SELECT 1 FROM pg_database WHERE datname = '{name}'"):
            self.execute(f"CREATE DATABASE {name}")
        return self.url(name)


def _other_user() -> pwd.struct_passwd:
    names = {user.pw_name: user for user in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A running one, in a folder that goes away."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # faster than most disks
    with tempfile.TemporaryDirectory(
        prefix="pg-", dir=memory, ignore_cleanup_errors=True
    ) as folder:
        started = Cluster.create(Path(folder))
        started.start()
        try:
            yield started
        finally:
            started.stop()


def variables(data_dir: Path | str) -> dict[str, str]:
    """What a server with this data folder has to be told, where the tests run on PostgreSQL."""
    if not (folder := os.environ.get(VARIABLE)):
        return {}
    name = "of_" + hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]
    return {"NANOLLM_DATABASE_URL": Cluster(Path(folder)).database(name)}


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    if binaries() is None:
        say("skipped: there is no PostgreSQL here (Debian: apt-get install postgresql)")
        return 0
    given = sys.argv[1:]
    paths = given or sorted(map(str, Path("tests").rglob("test_*.py")))
    failed = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the cluster has to be stopped
    with cluster() as started:
        environ = os.environ | {VARIABLE: str(started.folder)}
        for path in paths:
            say(path)
            command = [sys.executable, "-m", "pytest", "-q", "--no-header", *path.split()]
            if subprocess.run(command, env=environ).returncode not in (0, 5):
                failed.append(path)
    say("failed: " + ", ".join(failed) if failed else "all passed on PostgreSQL")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
