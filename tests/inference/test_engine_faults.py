"""An engine that hangs, dies or breaks, as those see it who have asked it something."""

import asyncio
import threading
import time

import pytest

from inference.engine import remote
from inference.engine import server as engine_server
from inference.engine.client import QueueLimits
from inference.engine.thread import MAX_RESTARTS, ThreadEngine
from inference.errors import EngineFailed, EngineLost, EngineNotReady, ModelLoadError
from tests.faults import FaultyRunner
from tests.inference.engine_server import connected, served
from tests.inference.memory_runner import check_blocks, make_core, make_request, naive
from tests.inference.test_client import make_info, read, wait_until

TIMEOUT_S = 1.0  # a step of a busy machine takes less
ONCE_IT_RUNS = "wait 20"  # what goes wrong next comes before its 20th token


class Engines:
    """What loads engines for one another, with the file that says how they fail."""

    def __init__(self, file) -> None:
        self.file, self.cores, self.broken = file, [], []
        self.fails_to_load = False
        self.engine = ThreadEngine(
            self.load,
            QueueLimits(20),
            on_failure=self.broken.append,
            step_timeout_s=TIMEOUT_S,
        )
        wait_until(lambda: self.engine.status.state == "ready")

    def load(self, report):
        if self.fails_to_load:
            raise ModelLoadError("as asked")
        core = make_core(num_blocks=200, max_num_seqs=2)
        core._runner = FaultyRunner(core._runner, self.file)
        self.cores.append(core)
        return core, make_info()

    def go_wrong(self, faults: str) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(faults)
        new.replace(self.file)  # at once: the engine would run on while the file is empty


@pytest.fixture
def engines(tmp_path):
    engines = Engines(tmp_path / "faults")
    yield engines
    engines.engine.close()


@pytest.fixture(params=["thread", "socket"])
def engine(request, engines, tmp_path):
    if request.param == "thread":
        yield engines.engine
        return
    address = tmp_path / "engine"
    with served(engines.engine, address), connected(address) as client:
        wait_until(lambda: client.status.state == "ready")
        yield client


async def is_ready(engine) -> None:
    async with asyncio.timeout(10):
        while engine.status.state != "ready":
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("fault", ["hang 3", "spin 60", "die"])
async def test_what_runs_is_told_what_waits_goes_on_and_the_engine_comes_back(
    engines, engine, fault, caplog
):
    is_socket = isinstance(engine, remote.SocketEngine)  # whose thread has the same name
    prompts = [[i + 1] * 3 for i in range(4)]
    engines.go_wrong(ONCE_IT_RUNS)
    generations = [engine.generate(make_request(str(i), p, 30)) for i, p in enumerate(prompts)]
    await asyncio.gather(*map(anext, generations[:2]))  # there is room for two
    engines.go_wrong(fault)
    started = time.monotonic()
    outcomes = await asyncio.gather(*map(read, generations), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes[:2]] == [EngineLost] * 2
    assert outcomes[2:] == [naive(prompt, 30) for prompt in prompts[2:]]
    assert time.monotonic() - started < 20
    await is_ready(engine)
    assert await read(engine.generate(make_request("later", [9], 30))) == naive([9], 30)
    assert engine.stats.num_restarts == 1
    assert engine.stats.kv_cache_usage == 0
    wait_until(lambda: sum(t.name == "engine" for t in threading.enumerate()) == 1 + is_socket)
    # `hang` and `spin` are where the stacks say that the engine is
    assert ("tests/faults.py" in caplog.text and f"in {fault[:4]}" in caplog.text) or fault == "die"


async def test_a_thread_that_was_given_up_has_no_part_in_what_follows(engines):
    engines.go_wrong(ONCE_IT_RUNS)
    lost = engines.engine.generate(make_request("lost", [1], 30))
    await anext(lost)
    engines.go_wrong("hang 3")
    with pytest.raises(EngineLost):
        await read(lost)
    await is_ready(engines.engine)
    old = [thread for thread in threading.enumerate() if thread.name == "engine"]
    steps = engines.cores[0].stats().num_steps
    answers = [engines.engine.generate(make_request(str(i), [i + 2], 60)) for i in range(6)]
    while len(old) > 1:  # it awakes in the middle of these
        await asyncio.sleep(0.01)
        old = [thread for thread in old if thread.is_alive()]

    assert await asyncio.gather(*map(read, answers)) == [naive([i + 2], 60) for i in range(6)]
    assert engines.cores[0].stats().num_steps == steps
    check_blocks(engines.cores[1])


async def test_slow_steps_and_idle_hours_are_no_hanging(engines):
    for _ in range(3):
        engines.go_wrong(f"hang {TIMEOUT_S / 2}")
        assert await read(engines.engine.generate(make_request("slow", [1], 3))) == naive([1], 3)
    await asyncio.sleep(2 * TIMEOUT_S)

    assert engines.engine.stats.num_restarts == 0


async def test_who_restarts_in_vain_is_broken(engines, engine, caplog):
    for number in range(MAX_RESTARTS + 1):
        await is_ready(engine)
        engines.go_wrong(ONCE_IT_RUNS)
        generation = engine.generate(make_request(str(number), [1], 30))
        engines.go_wrong("die")
        with pytest.raises(EngineFailed):
            await read(generation)

    wait_until(lambda: engines.broken)
    assert len(engines.cores) == MAX_RESTARTS + 1
    assert [type(error) for error in engines.broken] == [EngineFailed]
    assert engines.engine.status.state == "broken"
    wait_until(lambda: engine.status.state != "ready")
    with pytest.raises(EngineNotReady):
        engine.generate(make_request("late", [1]))


async def test_an_engine_that_cannot_be_made_anew_is_broken_at_once(engines):
    engines.go_wrong(ONCE_IT_RUNS)
    waiting = [engines.engine.generate(make_request(str(i), [i + 1], 30)) for i in range(5)]
    await anext(waiting[0])
    engines.fails_to_load = True
    engines.go_wrong("die")
    for outcome in await asyncio.gather(*map(read, waiting), return_exceptions=True):
        assert isinstance(outcome, EngineFailed)
    wait_until(lambda: engines.broken)
    assert engines.engine.status.state == "broken"


async def test_what_kills_the_scheduler_while_it_waits_does_not_kill_the_next_one_too(engines):
    """Nothing was computed with it: so it is not carried over a second time."""

    def poisoned(core):
        match_prefix = core.pool.match_prefix

        def match(seq):
            if 66 in seq.token_ids:
                raise SystemError
            return match_prefix(seq)

        core.pool.match_prefix = match
        return core, make_info()

    load = engines.load
    engines.engine._load = lambda report: poisoned(load(report)[0])
    poisoned(engines.cores[0])
    assert await read(engines.engine.generate(make_request("good", [1], 3))) == naive([1], 3)
    with pytest.raises(EngineFailed):
        await read(engines.engine.generate(make_request("bad", [66], 3)))
    await is_ready(engines.engine)

    assert engines.engine.stats.num_restarts <= 2
    assert await read(engines.engine.generate(make_request("good", [1], 3))) == naive([1], 3)


async def test_an_engine_process_that_falls_silent_is_given_up(engines, tmp_path, monkeypatch):
    """Stopped, or stuck as a whole: the connection stays, and nothing comes."""
    monkeypatch.setattr(engine_server, "SIGN_INTERVAL_S", 0.1)
    monkeypatch.setattr(remote, "SILENCE_S", 0.5)
    address, release = tmp_path / "engine", threading.Event()
    with served(engines.engine, address) as server, connected(address) as client:
        wait_until(lambda: client.status.state == "ready")
        (connection,) = server.connections
        await asyncio.sleep(1)  # idle and alive
        assert list(server.connections) == [connection]
        generation = client.generate(make_request("lost", [1], 60))
        await anext(generation)
        connection._sender.get_loop().call_soon_threadsafe(release.wait, 10)
        with pytest.raises(EngineLost):
            await read(generation)
        assert "it has said nothing for 0.5 seconds" in client.status.stage
        release.set()
        await is_ready(client)
        assert await read(client.generate(make_request("again", [1], 5))) == naive([1], 5)
