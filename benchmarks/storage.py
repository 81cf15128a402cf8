"""What keeping Responses costs: streams with `store: true` against `store: false`, in turn.

    python -m benchmarks.storage [--model DIR] [--streams 8] [--tokens 256] [--rounds 9]

Starts a server with an empty database, and prints the tokens per second of both and their ratio,
round by round, and the median ratio: by the clock, and by the processor time of the server.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextmanager
def server(model: str) -> Iterator[tuple[int, int]]:
    """Port and process id of a server with an empty database."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as data_dir:
        command = [sys.executable, "manage.py", "serve", "--port", str(port)]
        command += ["--data-dir", data_dir, "--served-model-name", "m"]
        command += ["--model", model] if model else []
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, cwd=ROOT, **silent)
        try:
            yield port, process.pid
        finally:
            process.terminate()
            process.wait(30)


async def stream(port: int, index: int, num_tokens: int, store: bool) -> None:
    """One Response, read to its end."""
    body = json.dumps(
        {
            "model": "m",
            "input": f"Tell me about the number {index}.",
            "max_output_tokens": num_tokens,
            "ignore_eos": True,
            "seed": index,
            "store": store,
            "stream": True,
        }
    ).encode()
    head = (
        f"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    writer.write(head.encode() + body)
    answer = await reader.read(-1)
    writer.close()
    if b'"max_output_tokens"}' not in answer:
        raise RuntimeError(answer[-500:].decode())


async def wait_until_ready(port: int) -> None:
    for _ in range(600):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health/ready HTTP/1.0\r\nHost: localhost\r\n\r\n")
            if b" 200 " in await reader.readline():
                return
        except OSError:
            pass
        await asyncio.sleep(0.1)
    raise RuntimeError("the server did not get ready")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(port: int, pid: int, args: argparse.Namespace, store: bool) -> list[float]:
    """Tokens per second, and per second of processor time."""
    began, cpu_began = time.perf_counter(), cpu_seconds(pid)
    streams = (stream(port, index, args.tokens, store) for index in range(args.streams))
    await asyncio.gather(*streams)
    seconds = time.perf_counter() - began, cpu_seconds(pid) - cpu_began
    return [args.streams * args.tokens / value for value in seconds]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    ratios: list[list[float]] = []
    with server(args.model) as (port, pid):
        await wait_until_ready(port)
        for number in range(args.rounds + 1):
            speed = {}
            for store in (True, False) if number % 2 else (False, True):
                speed[store] = await measure(port, pid, args, store)
            if number:  # the first round warms up
                ratios.append([a / b for a, b in zip(speed[True], speed[False], strict=True)])
                print(f"{speed[True][0]:8.1f} kept {speed[False][0]:8.1f} not {ratios[-1][0]:.3f}")
    for name, values in zip(("clock", "processor"), zip(*ratios, strict=True), strict=True):
        middle = statistics.median(values)
        print(f"median ratio by {name} {middle:.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    asyncio.run(main())
