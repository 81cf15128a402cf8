"""The programmes in short: what they check, on less of everything."""

import pytest

from tests.helpers import live_server
from tests.reliability import (
    burst,
    db,
    disconnect,
    kill9,
    mixed,
    overload,
    preempt,
    report,
    sigterm,
    slow_upload,
)

UPLOAD_TIMEOUT_S = 2


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    settings = {"NANOLLM_MAX_NUM_SEQS": "8", "NANOLLM_MAX_NUM_QUEUED_REQS": "100"}
    settings["NANOLLM_UPLOAD_TIMEOUT_S"] = str(UPLOAD_TIMEOUT_S)
    with live_server(tmp_path_factory.mktemp("live"), serve=True, **settings) as server:
        yield server


def check(result, *but_for):
    """Times are for a machine that has nothing else to do."""
    assert not set(result["missed"]) - set(but_for), result


def test_burst(server):
    check(burst.run(connections=200, rounds=1, server=server), "connected in time")


def test_overload(server):
    result = overload.run(clients=180, rounds=1, num_tokens=5, watch_s=0.5, server=server)
    check(result, "seconds to a 429, p99", "seconds to /health, p99", "memory grows by MiB")


async def test_mixed(server):
    check(await mixed.run(clients=9, seconds=1, server=server), "the engine is idle after seconds")


async def test_disconnect(server):
    result = await disconnect.run(n=60, single=3, server=server)
    # Threads of a server that was just busy for another test end when they have been idle for long
    check(
        result,
        "one alone within a step and 100 ms",
        "idle within 1 s of the last",
        "no threads left",
    )
    assert result["figures"]["freed_s"] < 20


async def test_slow_upload(server):
    result = await slow_upload.run(n=20, upload_timeout_s=UPLOAD_TIMEOUT_S, server=server)
    check(result, "others are not slower")


async def test_sigterm():
    check(await sigterm.run(streams=16, half_uploads=3, grace_s=1.5), "in time")


@pytest.mark.slow
async def test_preempt():
    check(await preempt.run(clients=8, num_tokens=120))


@pytest.mark.slow
async def test_db():
    check(await db.run(clients=4, seconds=1), "seconds until the next is stored")


def test_the_page_is_what_is_kept():
    assert report.PAGE.read_text() == report.page(), "run `python -m tests.reliability --report`"


@pytest.mark.slow
async def test_kill9():
    check(await kill9.run(cycles=1, clients=8, alive_s=1.5))
