"""What keeping Responses costs: streams with `store: true` against `store: false`, in turn.

    python -m benchmarks.storage [--model DIR_OR_SHAPE] [--streams 8] [--tokens 256] [--rounds 9]

Starts a server with an empty database, and prints the tokens per second of both and their ratio,
round by round, and the median ratio: by the clock, and by the processor time of the server.
"""

import argparse
import asyncio
import json
import time
from urllib.parse import urlsplit

from benchmarks.figures import spread
from benchmarks.machine import cpu_seconds
from benchmarks.server import MODEL_NAME, Server, checkpoint, running


async def stream(port: int, index: int, num_tokens: int, store: bool) -> None:
    """One Response, read to its end."""
    body = json.dumps(
        {
            "model": MODEL_NAME,
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


async def measure(server: Server, args: argparse.Namespace, store: bool) -> list[float]:
    """Tokens per second, and per second of processor time."""
    began, cpu_began = time.perf_counter(), cpu_seconds(server.pid)
    port = urlsplit(server.url).port
    streams = (stream(port, index, args.tokens, store) for index in range(args.streams))
    await asyncio.gather(*streams)
    seconds = time.perf_counter() - began, cpu_seconds(server.pid) - cpu_began
    return [args.streams * args.tokens / value for value in seconds]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    ratios: list[list[float]] = []
    with running(checkpoint(args.model)) as server:
        for number in range(args.rounds + 1):
            speed = {}
            for store in (True, False) if number % 2 else (False, True):
                speed[store] = await measure(server, args, store)
            if number:  # the first round warms up
                ratios.append([a / b for a, b in zip(speed[True], speed[False], strict=True)])
                print(f"{speed[True][0]:8.1f} kept {speed[False][0]:8.1f} not {ratios[-1][0]:.3f}")
    for name, values in zip(("clock", "processor"), zip(*ratios, strict=True), strict=True):
        print(f"median ratio by {name} {spread(values).text(3)}")


if __name__ == "__main__":
    asyncio.run(main())
