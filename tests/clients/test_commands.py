"""`manage.py selftest` and `bench` against a live server."""

import asyncio
import json
import re

import pytest
from django.core.management import CommandError, call_command
from django.urls import URLPattern

from benchmarks import load
from benchmarks.client import Answer
from nanollmserve_site.management.commands.selftest import STEPS
from openai_api.urls import urlpatterns


def test_selftest_asks_every_endpoint(server, capsys):
    stored = list(server.client.chat.completions.list())
    call_command("selftest", "--url", server.url)
    out = capsys.readouterr().out

    assert f"{len(STEPS)} of {len(STEPS)} succeeded" in out
    assert out.count("\nok ") == len(STEPS)
    assert "events" in out
    assert list(server.client.chat.completions.list()) == stored  # it leaves nothing


def test_selftest_forgets_no_path():
    def shape(path: str) -> str:
        return re.sub(r"<.*?>|\{.*?\}", "*", path.strip("/"))

    routes = {shape(str(p.pattern)) for p in urlpatterns if isinstance(p, URLPattern)}
    assert routes - {shape(step.path) for step in STEPS} == {"^v1(/.*)?$"}  # what does not exist


def test_selftest_shows_what_failed(server, capsys):
    with pytest.raises(CommandError, match="requests failed"):
        call_command("selftest", "--url", server.url, "--model", "gpt-x")
    lines = capsys.readouterr().out.splitlines()

    assert any(
        re.match(r"FAILED .* POST /v1/chat/completions .* 404 .*gpt-x", line) for line in lines
    )
    assert any(re.match(r"FAILED .*/\{response\} .*needs 'response'", line) for line in lines)
    assert any(line.startswith("ok ") and "GET /health " in line for line in lines)


HEADINGS = """
Successful requests:
Failed requests:
Benchmark duration (s):
Total input tokens:
Total generated tokens:
Request throughput (req/s):
Request goodput (req/s):
Output token throughput (tok/s):
Total Token throughput (tok/s):
Mean TTFT (ms):
Median TTFT (ms):
P99 TTFT (ms):
Mean TPOT (ms):
Median TPOT (ms):
P99 TPOT (ms):
Mean ITL (ms):
Median ITL (ms):
P99 ITL (ms):
Mean E2EL (ms):
Median E2EL (ms):
P99 E2EL (ms):
"""


def test_bench_reports_as_vllm_does(server, capsys, tmp_path):
    flags = ["--num-prompts", "6", "--random-input-len", "16", "--random-output-len", "8"]
    flags += ["--max-concurrency", "2", "--request-rate", "200", "--goodput", "e2el:60000"]
    file = tmp_path / "f.json"
    call_command("bench", "--url", f"{server.url}/v1", *flags, "--save-result", str(file))
    lines = capsys.readouterr().out.splitlines()
    saved = json.loads(file.read_text())

    shown = [line.rpartition(":")[0] + ":" for line in lines if line[0] not in "=-"]
    assert shown == HEADINGS.split("\n")[1:-1]
    assert (saved["completed"], saved["failed"], saved["model_id"]) == (6, 0, "nanollmserve-demo")
    assert (saved["total_input_tokens"], saved["total_output_tokens"]) == (6 * 16, 6 * 8)
    assert saved["request_goodput"] == saved["request_throughput"]
    assert 0 < saved["median_ttft_ms"] < saved["mean_e2el_ms"]


def test_bench_tells_of_failures(server, capsys):
    with pytest.raises(CommandError, match="2 requests failed: 404 .*gpt-x"):
        call_command("bench", "--url", server.url, "--num-prompts", "2", "--model", "gpt-x")
    assert "Failed requests:                         2\n" in capsys.readouterr().out


def test_figures_of_a_benchmark():
    plan = load.Plan(num_prompts=3, input_len=10, output_len=4, goodput={"ttft": 1500, "tpot": 600})
    answers = [
        Answer(began=0.0, times=[1.0, 1.5, 2.0, 2.5], num_tokens=4, num_prompt_tokens=10),
        Answer(began=1.0, times=[3.0, 4.0], num_tokens=2, num_prompt_tokens=10),
        Answer(began=0.0, error="500 no"),
    ]
    found = load.figures(plan, answers, seconds=4.0)

    assert (found["completed"], found["failed"], found["errors"]) == (2, 1, ["500 no"])
    assert (found["total_output_tokens"], found["output_throughput"]) == (6, 1.5)
    assert found["request_goodput"] == 0.25  # the second one's first token came too late
    assert (found["mean_ttft_ms"], found["mean_tpot_ms"]) == (1500, 750)
    assert (found["mean_itl_ms"], found["mean_e2el_ms"]) == (625, 2750)


async def test_requests_begin_at_their_rate_and_within_the_limit():
    running, most, begun = 0, 0, []

    async def answer(reader, writer) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        begun.append(asyncio.get_running_loop().time())
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.05)
        running -= 1
        event = {"choices": [{"text": "x", "finish_reason": "stop"}]}
        writer.write(f"HTTP/1.1 200 OK\r\n\r\ndata: {json.dumps(event)}\n\n".encode())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        target = load.Target(label="a", url=f"http://127.0.0.1:{port}", model="m")
        sizes = {"num_prompts": 12, "input_len": 2, "output_len": 1, "goodput": {}}
        _, seconds = await load.run(target, load.Plan(**sizes, max_concurrency=3))
        assert most == 3 and seconds > 12 / 3 * 0.05
        begun.clear()
        answers, seconds = await load.run(target, load.Plan(**sizes, request_rate=40.0, seed=3))
        assert [a.error for a in answers] == [None] * 12
        assert begun[-1] - begun[0] > 0.1
