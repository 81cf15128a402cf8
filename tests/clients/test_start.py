"""What a client sees of a server that has just been started."""

import os
import subprocess
import sys
import time

import httpx2

from tests.helpers import ROOT, free_port
from tests.postgres import variables


def test_a_health_check_that_comes_early_is_answered_and_does_no_harm(tmp_path):
    port, statuses = free_port(), set()
    command = [sys.executable, "-m", "daphne", "-b", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(
        [*command, "nanollmserve_site.asgi:application"],
        cwd=ROOT,
        env=os.environ
        | {"NANOLLM_DATA_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
        | variables(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 90
    try:
        while process.poll() is None and 200 not in statuses and time.monotonic() < deadline:
            try:
                url = f"http://127.0.0.1:{port}/health/ready"
                statuses.add(httpx2.get(url, timeout=30).status_code)
            except httpx2.TransportError:  # the port is not open yet
                time.sleep(0.02)
        ended = process.poll()
    finally:
        process.terminate()
        process.wait(20)

    assert ended is None
    assert statuses <= {200, 503} and 200 in statuses
