"""A server of this project, started for a measurement with an empty database."""

import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL_NAME = "m"


@dataclass(frozen=True)
class Server:
    url: str
    pid: int
    start_s: float


@contextmanager
def running(model: str = "", flags: Sequence[str] = (), timeout_s: float = 300) -> Iterator[Server]:
    """A server that answers as model `m`: the demo model's weights if none is named."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "manage.py", "serve", "--port", str(port)]
        command += ["--data-dir", folder, "--served-model-name", MODEL_NAME, *flags]
        command += ["--model", model] if model else []
        log = Path(folder) / "log"
        began = time.perf_counter()
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url, process, log, timeout_s)
            yield Server(url, process.pid, time.perf_counter() - began)
        finally:
            stop(process)


def wait_until_ready(url: str, process: subprocess.Popen, log: Path, timeout_s: float) -> None:
    """Raises RuntimeError with the server's last words if it does not get ready."""
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"the server did not get ready:\n{log.read_text()[-2000:]}")


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def checkpoint(model: str) -> str:
    """What to serve: a shape of `make_model` by its name, which is made first, or what is named."""
    if not model or "/" in model or Path(model).exists():
        return model
    from benchmarks.make_model import find_or_make  # torch, which nothing else here needs

    return str(find_or_make(model))
