"""The caller's end: an async stream of deltas, from a thread or through a socket."""

import asyncio
import threading

import pytest

from inference.engine.client import QueueLimits
from inference.engine.thread import ThreadEngine
from inference.errors import (
    EngineFailed,
    EngineNotReady,
    EngineOverloaded,
    InvalidPrompt,
    ModelLoadError,
    PromptTooLong,
)
from inference.request import ModelInfo
from tests.inference.engine_server import connected, served
from tests.inference.memory_runner import EOS, VOCAB_SIZE, make_core, make_request, naive


def make_info(max_model_len: int = 64) -> ModelInfo:
    return ModelInfo(
        name="memory",
        tokenizer=None,
        max_model_len=max_model_len,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=frozenset({EOS}),
        generation_defaults={},
        fingerprint="fp_test",
        created=0,
    )


@pytest.fixture
def gate():
    """Set it to let the model run."""
    event = threading.Event()
    event.set()
    return event


@pytest.fixture
def core(gate):
    core = make_core(num_blocks=200)
    forward = core._runner.forward

    def gated(inputs):
        assert gate.wait(10)
        return forward(inputs)

    core._runner.forward = gated
    return core


@pytest.fixture
def thread_engine(core, gate):
    engine = ThreadEngine(lambda report: (core, make_info()), QueueLimits(6))
    wait_until(lambda: engine.status.state == "ready")
    yield engine
    gate.set()
    engine.close()


@pytest.fixture(params=["thread", "socket"])
def engine(request, thread_engine, tmp_path):
    """What a caller sees of the engine: itself, or what leads to it from another process."""
    if request.param == "thread":
        yield thread_engine
        return
    address = tmp_path / "engine"
    with served(thread_engine, address), connected(address) as client:
        wait_until(lambda: client.status.state == "ready")
        yield client


def wait_until(condition, timeout_s: float = 5) -> None:
    done = threading.Event()
    for _ in range(int(timeout_s / 0.005)):
        if condition():
            return
        done.wait(0.005)
    raise AssertionError("it did not happen in time")


async def read(generation) -> list[int]:
    async with generation as deltas:
        return [token_id async for delta in deltas for token_id in delta.token_ids]


async def test_many_streams_at_once_get_their_own_answers(engine):
    prompts = [[i + 1] * (i + 2) for i in range(6)]
    generations = [engine.generate(make_request(str(i), p, 20)) for i, p in enumerate(prompts)]
    answers = await asyncio.gather(*map(read, generations))

    assert answers == [naive(prompt, 20) for prompt in prompts]
    assert engine.stats.kv_cache_usage == 0


async def test_a_slow_reader_gets_fewer_and_larger_deltas(engine):
    async with engine.generate(make_request("slow", [1, 2], 20)) as deltas:
        while engine.stats.num_generated_tokens < 20:
            await asyncio.sleep(0.01)
        received = [delta async for delta in deltas]

    assert len(received) == 1
    assert received[0].token_ids == naive([1, 2], 20)


async def test_leaving_the_block_aborts(engine, core):
    steps, forward = threading.Semaphore(3), core._runner.forward
    core._runner.forward = lambda inputs: steps.acquire() and forward(inputs)
    async with engine.generate(make_request("left", [1, 2], 60)) as deltas:
        await anext(deltas)
    steps.release(100)
    wait_until(lambda: not core.has_work)

    assert core.pool.num_free == core.pool.num_blocks - 1
    assert engine.stats.num_generated_tokens < 60


async def test_the_queue_is_bounded(engine, gate):
    gate.clear()
    generations = [engine.generate(make_request(str(i), [1, 2], 2)) for i in range(6)]
    with pytest.raises(EngineOverloaded):
        engine.admit()
    gate.set()
    await asyncio.gather(*map(read, generations))

    assert await read(engine.generate(make_request("later", [1, 2], 2))) == naive([1, 2], 2)


@pytest.mark.parametrize(
    ("prompt", "error"),
    [([], InvalidPrompt), ([97], InvalidPrompt), ([-1], InvalidPrompt), ([1] * 64, PromptTooLong)],
)
async def test_a_prompt_is_checked_before_it_is_queued(engine, prompt, error):
    with pytest.raises(error):
        engine.generate(make_request("bad", prompt))


async def test_a_failing_step_reaches_the_caller(engine, core):
    core._runner.forward = lambda inputs: 1 / 0
    with pytest.raises(EngineFailed):
        await read(engine.generate(make_request("failing", [1, 2], 2)))


async def test_closing_the_engine_ends_every_stream(engine, thread_engine, gate):
    gate.clear()
    generation = engine.generate(make_request("open", [1, 2], 60))
    wait_until(lambda: thread_engine._generations)
    thread_engine._put(None)
    gate.set()
    with pytest.raises(EngineFailed):
        await read(generation)
    with pytest.raises(EngineNotReady):
        engine.generate(make_request("late", [1, 2], 2))


def test_a_model_that_cannot_load_is_told_and_the_engine_says_why():
    told = []

    def load(report):
        report("reading the weights")
        raise ModelLoadError("There is no such model.")

    client = ThreadEngine(load, QueueLimits(1), on_failure=told.append)
    wait_until(lambda: told)

    assert isinstance(told[0], ModelLoadError)
    with pytest.raises(EngineNotReady, match="There is no such model"):
        client.check_capacity()


def test_while_loading_the_stage_is_told():
    release = threading.Event()

    def load(report):
        report("reading the weights")
        release.wait(10)
        raise ModelLoadError("enough")

    client = ThreadEngine(load, QueueLimits(1))
    wait_until(lambda: client.status.stage == "reading the weights")
    with pytest.raises(EngineNotReady, match="reading the weights"):
        client.check_capacity()
    release.set()
    client.close()
