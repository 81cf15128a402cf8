"""Many clients at once, in a process of its own that does next to nothing for each of them.

An event loop of Python takes longer to notice an answer than the server may take to give it.
"""

import heapq
import json
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECEIVED = 2**16


class Client:
    """One request on a connection of its own, from before it is opened until it is closed."""

    def __init__(self, kind: str, request: bytes) -> None:
        self.kind, self.request, self.text = kind, request, b""
        self.began_at = self.connected_at = self.answered_at = self.ended_at = 0.0

    def begin(self, port: int) -> socket.socket:
        self.began_at = time.monotonic()
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", port))
        return self.socket

    def on_event(self, now: float) -> bool:
        """Go on with what is possible now. False: it has ended."""
        try:
            if not self.connected_at:
                self.connected_at = now
                self.socket.send(self.request)
                return True
            data = self.socket.recv(RECEIVED)
        except OSError:
            data = b""
        self.answered_at = self.answered_at or now
        self.ended_at = now
        self.text += data
        return bool(data)

    def found(self) -> dict:
        head, _, body = self.text.partition(b"\r\n\r\n")
        lines = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:]]
        return {
            "kind": self.kind,
            "status": int(head.split()[1]) if head else 0,
            "headers": {name.lower(): value for name, value in lines},
            "body": body.decode(),
            "connect_s": self.connected_at - self.began_at,
            "answer_s": self.answered_at - self.began_at,
            "total_s": self.ended_at - self.began_at,
        }


def run(port: int, plan: list[tuple[float, Client]], timeout_s: float) -> float:
    """Let each begin at its second. Returns the longest time in which nobody was looked after."""
    started, longest = time.monotonic(), 0.0
    waiting = [(started + at, number) for number, (at, _) in enumerate(plan)]
    heapq.heapify(waiting)
    poll, active = select.epoll(), {}
    while (waiting or active) and time.monotonic() - started < timeout_s:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            client = plan[heapq.heappop(waiting)[1]][1]
            descriptor = client.begin(port).fileno()
            active[descriptor] = client
            poll.register(descriptor, select.EPOLLOUT)
        pause_s = max(waiting[0][0] - time.monotonic(), 0.0) if waiting else 0.1
        events = poll.poll(pause_s)
        woke = time.monotonic()
        for descriptor, _ in events:
            client = active[descriptor]
            was_connected = client.connected_at
            if not client.on_event(time.monotonic()):
                poll.unregister(descriptor)
                client.socket.close()
                del active[descriptor]
            elif not was_connected:
                poll.modify(descriptor, select.EPOLLIN)
        longest = max(longest, time.monotonic() - woke)
    return longest


def main() -> None:
    """Reads {"port", "timeout_s", "plan": [[second, kind, request], ...]}; writes what it found."""
    asked = json.load(sys.stdin)
    plan = [(at, Client(kind, request.encode())) for at, kind, request in asked["plan"]]
    own_delay_s = run(asked["port"], plan, asked["timeout_s"])
    found = {"own_delay_s": own_delay_s, "clients": [client.found() for _, client in plan]}
    json.dump(found, sys.stdout)


def crowd(port: int, plan: list[tuple[float, str, bytes]], timeout_s: float = 120) -> dict:
    """What became of a plan of (second, kind, request): see `main`."""
    asked = {"port": port, "timeout_s": timeout_s}
    asked["plan"] = [[at, kind, request.decode()] for at, kind, request in plan]
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.crowd"],
        cwd=ROOT,
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
