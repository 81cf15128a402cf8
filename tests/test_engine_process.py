"""The engine in a process of its own, as its operator sees it."""

import asyncio
import signal
from pathlib import Path

import httpx2
import openai
import pytest

from inference import service
from inference.config import EngineConfig
from inference.engine.client import QueueLimits
from inference.engine.thread import ThreadEngine
from tests.helpers import free_port, in_process_client
from tests.test_serve import MANAGE, SMALL, Process, needs_demo_model, running

CHAT = {
    "model": "nanollmserve-demo",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 60,
}

SPEECH = {
    "model": "nanollmserve-demo",
    "input": "Hi",
    "temperature": 0,
    "max_output_tokens": 500,
    "extra_body": {"ignore_eos": True},
}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Name a socket with --engine-address (NANOLLM_ENGINE_ADDRESS)."),
        (["--engine-address", "/tmp/engine"], "others can write to /tmp"),
        (["--engine-address", "{folder}/engine", "{folder}/gone"], "There is no folder {folder}/g"),
    ],
)
def test_a_start_that_cannot_succeed_says_why(
    tmp_path: Path, flags: list[str], message: str
) -> None:
    flags = [flag.format(folder=tmp_path) for flag in flags]
    process = Process([*MANAGE, "engine", *flags], tmp_path)

    assert process.wait() == 1
    assert message.format(folder=tmp_path) in process.output
    assert "Traceback" not in process.output


@pytest.fixture
def address(tmp_path: Path) -> Path:
    return tmp_path / "run" / "engine"


def start_engine(tmp_path: Path, address: Path):
    return running([*MANAGE, "engine", "--engine-address", str(address)], tmp_path, **SMALL)


def answered(client: openai.OpenAI, url: str) -> str:
    """An answer, which /metrics knows of: what the engine has counted, and how long it took."""
    answer = client.chat.completions.create(**CHAT).choices[0].message.content
    text = httpx2.get(f"{url}/metrics").text
    labels = '{engine="0",model_name="nanollmserve-demo"}'
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert float(found[f"vllm:generation_tokens_total{labels}"]) > 1
    assert float(found[f"vllm:iteration_tokens_total_count{labels}"]) > 1
    assert 0 < float(found[f"vllm:request_queue_time_seconds_sum{labels}"]) < 5
    assert float(found[f"vllm:request_prefill_time_seconds_sum{labels}"]) > 0
    assert 'num_gpu_blocks="' in text
    return answer


@needs_demo_model
def test_a_server_outlives_its_engine(
    tmp_path: Path, address: Path, transactional_db: None
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [*MANAGE, "serve", "--port", str(port), "--engine-address", str(address)]
    with (
        running(command, tmp_path) as server,
        openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
    ):
        server.wait_for(f"{url}/health")
        assert "waiting for the engine process" in httpx2.get(f"{url}/health/ready").text

        with start_engine(tmp_path, address) as first:
            server.wait_for(f"{url}/health/ready")
            assert address.stat().st_mode & 0o777 == 0o600
            answer = answered(client, url)
            spoken, begun = (client.responses.create(**SPEECH, background=b) for b in (False, True))
            with pytest.raises(openai.APIError):
                kill_in_the_middle(first, client)
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(**CHAT)
            assert caught.value.status_code == 503

        with start_engine(tmp_path, address) as second:  # over the socket of the dead one
            server.wait_for(f"{url}/health/ready")
            assert client.chat.completions.create(**CHAT).choices[0].message.content == answer
            *_, last = client.responses.retrieve(begun.id, stream=True)
            assert last.response.output_text == spoken.output_text
            second.popen.send_signal(signal.SIGTERM)
            assert second.wait() == 0
        assert not address.exists()
        server.wait_for(f"{url}/health/ready", status=503)
        server.popen.send_signal(signal.SIGINT)
        server.wait()

    assert answer == asyncio.run(in_process_answer())
    assert "Loading" not in server.output  # no weights here
    assert "Traceback" not in first.output + second.output + server.output


def kill_in_the_middle(engine: Process, client: openai.OpenAI) -> None:
    for number, _ in enumerate(endless_stream(client)):
        if number == 3:
            engine.popen.send_signal(signal.SIGKILL)


async def in_process_answer() -> str:
    """What the same model says without any process or socket between."""
    config = EngineConfig(kv_cache_memory=2**24, max_model_len=1024)
    engine = ThreadEngine(service.reloadable(config), QueueLimits(1))
    service.install(engine)
    try:
        while engine.status.state == "loading":
            await asyncio.sleep(0.05)
        answer = await in_process_client().chat.completions.create(**CHAT)
        return answer.choices[0].message.content
    finally:
        service.install(None)
        engine.close()


def endless_stream(client: openai.OpenAI):
    return client.completions.create(
        model=CHAT["model"],
        prompt="Once",
        max_tokens=900,
        stream=True,
        extra_body={"ignore_eos": True},
    )
