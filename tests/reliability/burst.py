"""Many clients connect in the same moment."""

import select
import socket
import time
from contextlib import suppress

from tests.helpers import LiveServer
from tests.reliability.programme import Check, a_server, head, percentile, result

MAX_CONNECT_S = 0.15
REQUEST = head("/health/ready", 0, "GET")


def run(
    connections: int = 400, rounds: int = 5, serve: bool = True, server: LiveServer | None = None
) -> dict:
    with a_server(server, serve=serve) as live:
        connects, answers, num_answered = [], [], 0
        for _ in range(rounds):
            clients = [socket.socket() for _ in range(connections)]
            connects += connected(live, clients)
            found = answered(clients)
            answers += [seconds for seconds, _ in found]
            num_answered += sum(is_whole for _, is_whole in found)
    figures = {
        "connections": connections,
        "rounds": rounds,
        "connect_p99_s": round(percentile(connects, 99), 3),
        "connect_max_s": round(max(connects), 3),
        "answer_p99_s": round(percentile(answers, 99), 3),
    }
    return result(
        "burst",
        figures,
        {
            "connected in time": Check(figures["connect_p99_s"], MAX_CONNECT_S),
            "all answered": num_answered == rounds * connections,
        },
    )


def connected(server: LiveServer, clients: list[socket.socket]) -> list[float]:
    """Seconds that each took to connect: above one, the system has tried it twice."""
    began, took = {}, []
    waiting = select.poll()
    for client in clients:
        client.setblocking(False)
        began[client.fileno()] = time.monotonic()
        client.connect_ex(("127.0.0.1", server.port))
        waiting.register(client, select.POLLOUT)
    while began:
        for descriptor, _ in waiting.poll():
            waiting.unregister(descriptor)
            took.append(time.monotonic() - began.pop(descriptor))
    return took


def answered(clients: list[socket.socket]) -> list[tuple[float, bool]]:
    """Seconds until each was answered, and whether it was well."""
    started, found = time.monotonic(), []
    for client in clients:
        client.settimeout(30)
        client.sendall(REQUEST)
    for client in clients:
        text = b""
        with client, suppress(OSError):  # a queue that is full resets it
            text = client.recv(4096)
        found.append((time.monotonic() - started, text.startswith(b"HTTP/1.1 200 ")))
    return found
