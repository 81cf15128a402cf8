"""The benchmarks measure what they say they do."""

import asyncio
import contextlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import client, figures, prompts, serve
from benchmarks.client import Answer, Exchange, Target, read_answer
from benchmarks.make_model import NUM_MUTE, SHAPES, make_model, parameters
from benchmarks.server import MODEL_NAME, running
from tests.helpers import ROOT


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model("tiny", folder)
    return folder


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Statistics


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 50, 2.5),
        (list(range(101)), 99, 99),
        ([0.0, 10.0], 99, 9.9),
        ([7.0], 99, 7.0),
        ([], 50, None),
    ],
)
def test_percentiles(values, percent, expected):
    assert figures.percentile(values, percent) == expected


def test_spreads_and_ratios_within_rounds():
    assert figures.spread([3, 1, 10]) == (3, 1, 10)
    assert figures.spread([1234.56, 1000, 2000]).text() == "1,234.6 (1,000.0-2,000.0)"
    assert figures.spread([2]).text(3) == "2.000"
    assert figures.ratio({0: 2.0, 1: 9.0, 2: 4.0}, {0: 1.0, 1: 3.0, 3: 5.0}) == (2.5, 2.0, 3.0)
    assert figures.ratio({0: 2.0}, {1: 1.0}) is None


def test_a_table_is_markdown():
    assert figures.table(["", "ms"], [["one", "2"], ["three", "10"]]) == (
        "|       | ms |\n| ----- | -: |\n| one   |  2 |\n| three | 10 |"
    )


def test_the_times_of_an_answer():
    answer = Answer(began=10.0, times=[11.0, 11.5, 13.0], num_tokens=5)

    assert answer.first_s == 1.0
    assert answer.gaps_s == [0.5, 1.5]
    assert answer.per_token_s == 0.5


def test_a_record_adds_up():
    plan = prompts.scenario("S", 3, 2, 10, 5)
    answers = [
        Answer(began=0.0, times=[1.0, 2.0, 3.0], num_tokens=5, num_prompt_tokens=10),
        Answer(began=0.0, times=[2.0, 6.0], num_tokens=3, num_prompt_tokens=10),
        Answer(began=0.0, error="500 no"),
    ]
    found = serve.record(Target(label="a", url=""), plan, answers, {"seconds": 4.0})

    assert (found["failures"], found["short"], found["errors"]) == (1, 1, ["500 no"])
    assert (found["measured_output_tokens"], found["output_tok_s"]) == (8, 2.0)
    assert (found["ttft_p50_ms"], found["itl_p50_ms"]) == (1500.0, 1000.0)
    assert (found["tpot_p50_ms"], found["stream_tok_s"]) == (1250.0, 0.8)
    assert found["prompt_tok_s"] == 7.5  # of 10 and 5


# Reading streams


def received(body: bytes, pieces: int, chunked: bool = True) -> list[tuple[float, bytes]]:
    """An HTTP answer, torn apart anywhere; the time of each piece is its number."""
    if chunked:
        parts = [part + b"\n\n" for part in body.split(b"\n\n") if part]
        framed = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
        body = framed + b"0\r\n\r\n"
    else:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    size = -(-len(head + body) // pieces)
    whole = head + body
    return [(float(number), whole[number * size : (number + 1) * size]) for number in range(pieces)]


def answer_to(content: list[tuple[float, bytes]]) -> Answer:
    exchange = Exchange.__new__(Exchange)
    exchange.began, exchange.received = 0.0, content
    return read_answer(exchange)


def sse(*events: dict) -> bytes:
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join([": a comment\n\n", *lines, "data: [DONE]\n\n"]).encode()


COMPLETION = sse(
    {"choices": [{"text": "a"}]},
    {"choices": [{"text": "", "finish_reason": None}]},
    {"choices": [{"text": "b", "finish_reason": "length"}]},
    {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}},
)
CHAT = sse(
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"reasoning_content": "a"}}]},
    {"choices": [{"delta": {"content": "b"}}]},
    {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}},
)
RESPONSE = sse(
    {"type": "response.created", "response": {"usage": None, "error": None}},
    {"type": "response.output_text.delta", "delta": "a"},
    {"type": "response.output_text.delta", "delta": "b"},
    {"type": "response.output_text.done", "text": "ab"},
    {
        "type": "response.incomplete",
        "response": {"usage": {"input_tokens": 7, "output_tokens": 2}},
    },
)


@pytest.mark.parametrize("stream", [COMPLETION, CHAT, RESPONSE])
@pytest.mark.parametrize("pieces", [1, 7, 50])
@pytest.mark.parametrize("chunked", [True, False])
def test_streams_are_read_however_they_arrive(stream, pieces, chunked):
    answer = answer_to(received(stream, pieces, chunked))

    assert answer.error is None
    assert (answer.text, len(answer.times), answer.finished) == ("ab", 2, True)
    assert (answer.num_tokens, answer.num_prompt_tokens) == (2, 7)
    assert 0 <= answer.times[0] <= answer.times[1] < pieces


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "ValueError: no HTTP answer"),
        (b"HTTP/1.1 422 No\r\n\r\nwrong field", "422 wrong field"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + COMPLETION[:60], "the stream ended before the answer"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + sse({"error": {"message": "x"}}), '{"message": "x"}'),
        (
            b"HTTP/1.1 200 OK\r\n\r\n"
            + sse({"type": "response.failed", "response": {"error": {"code": "y"}}}),
            '{"code": "y"}',
        ),
    ],
)
def test_failures_are_told_from_answers(content, error):
    assert answer_to([(0.0, content)]).error.startswith(error)


# Prompts


def test_prompts_differ_and_are_as_long_as_asked_for(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    plan = prompts.SCENARIOS["X"]
    made = prompts.make_prompts(plan, prompts.Words(tiny), "0")
    ids = [tokenizer(prompt).input_ids for prompt in made]

    assert [len(each) for each in ids] == [1532] * 16
    assert len({tuple(each[:1500]) for each in ids}) == 1
    assert len({tuple(each) for each in ids}) == 16
    assert made == prompts.make_prompts(plan, prompts.Words(tiny), "0")
    assert made != prompts.make_prompts(plan, prompts.Words(tiny), "1")


def test_prompts_of_token_ids():
    made = prompts.make_prompts(prompts.SCENARIOS["S8"], prompts.TokenIds(5, 50), "0")

    assert [len(prompt) for prompt in made] == [128] * 8
    assert {token for prompt in made for token in prompt} == set(range(5, 50))


# The model


def test_every_token_that_greedy_can_choose_is_visible(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    words = [tokenizer.decode([index]) for index in range(NUM_MUTE, SHAPES["tiny"].vocab_size)]
    prompt = [random.Random(0).choices(range(NUM_MUTE, len(tokenizer)), k=20)]
    output = model.generate(torch.tensor(prompt), max_new_tokens=24, do_sample=False)[0, 20:]

    assert len(tokenizer) == model.config.vocab_size == 8448
    assert all(word.strip().isalpha() and word.isascii() for word in words)
    assert tokenizer.decode(tokenizer("Grüß dich!").input_ids) == "Grüß dich!"
    assert len(output) == 24
    assert output.min() >= NUM_MUTE
    assert len(set(output.tolist())) > 8  # no easy guess


def test_weights_depend_on_the_seed_alone(tiny, tmp_path):
    for seed in (0, 1):
        make_model("tiny", tmp_path / str(seed), seed)
    name = "model-00002-of-00006.safetensors"
    files = [(folder / name).read_bytes() for folder in (tiny, tmp_path / "0", tmp_path / "1")]

    assert files[0] == files[1] != files[2]
    with safe_open(tiny / name, "pt") as file:
        assert file.get_tensor("model.layers.0.mlp.up_proj.weight").dtype == torch.bfloat16


def test_a_folder_that_is_there_is_kept(tiny):
    with pytest.raises(FileExistsError):
        make_model("tiny", tiny)


@pytest.mark.parametrize(
    ("shape", "expected"), [("qwen3-0.6b", 596_049_920), ("qwen3-8b", 8_190_735_360)]
)
def test_shapes_have_the_size_of_their_models(shape, expected):
    sizes = [torch.Size(size) for part in parameters(SHAPES[shape]) for size in part.values()]
    assert sum(size.numel() for size in sizes) == expected


# Over HTTP


async def test_load_on_a_live_server(tiny, tmp_path, capsys):
    flags = ["--max-model-len", "256", "--kv-cache-memory", "64MiB"]
    with running(str(tiny), flags) as server:
        records = []
        for api in ([], ["--chat"], ["--responses", "--extra", '{"store": false}']):
            args = serve.parse(
                ["--requests", "3", "--concurrency", "2", "--prompt-tokens", "20"]
                + ["--output-tokens", "8", "--rounds", "2", "--out", str(tmp_path / "out.jsonl")]
                + (["--tokenizer", str(tiny), *api] if api else [])
            )
            target = Target(label="a", url=server.url, model=MODEL_NAME, pid=server.pid)
            records += await serve.measure(args, [target])

    assert json_lines(tmp_path / "out.jsonl") == records
    for found in records:
        assert (found["failures"], found["short"], found["errors"]) == (0, 0, [])
        assert found["measured_output_tokens"] == 24
        assert 0 < found["ttft_p50_ms"] <= found["ttft_p99_ms"] < 1000 * found["seconds"]
        assert found["output_tok_s"] == pytest.approx(24 / found["seconds"])
        assert found["server_cpu_s"] > 0
        assert found["server_pss_mib"] > 50
    assert [found["measured_prompt_tokens"] for found in records[:2]] == [20, 20]
    assert [found["api"] for found in records] == ["completions"] * 2 + ["chat"] * 2 + (
        ["responses"] * 2
    )
    shown = serve.report(records[:2], "a")
    assert "custom: 3 requests, 2 at a time, 20 tokens in, 8 out" in shown
    assert "1.000" in shown


async def test_what_does_not_answer_is_a_failure():
    left = asyncio.Event()

    async def silent(reader, writer):
        with contextlib.suppress(ConnectionError):
            await reader.read()
            writer.close()
            await writer.wait_closed()
        left.set()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener:
        late = await client.ask(Target(label="a", url=url), "chat", {}, 0.05)
        await left.wait()
    gone = await client.ask(Target(label="a", url=url), "chat", {}, 5)

    assert late.error == "no end within 0.05 s"
    assert gone.error.startswith("ConnectionRefusedError")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://[::1]:8000", True),
        ("http://localhost", True),
        ("http://10.0.0.1:8000", False),
        ("https://api.example.org", False),
    ],
)
def test_only_this_machine_is_loaded(url, expected):
    assert serve.is_loopback(url) is expected


def test_values_by_label():
    assert serve.by_label(["a=1", "b=2"], {"a": "", "b": ""}) == {"a": "1", "b": "2"}
    assert serve.by_label(["m", "b=x"], {"a": "", "b": ""}) == {"a": "m", "b": "x"}


# Without HTTP


def test_the_engine_is_measured_without_django(tiny, tmp_path):
    program = (
        "import runpy, sys; sys.modules['django'] = None; "
        "runpy.run_module('benchmarks.engine', run_name='__main__')"
    )
    flags = ["--model", str(tiny), "--batch", "1,3", "--context", "40", "--steps", "4"]
    flags += ["--prompt", "64", "--prompts", "1", "--set", "block_size=16"]
    flags += ["--set", "kv_cache_memory=33554432", "--out", str(tmp_path / "out.jsonl")]
    subprocess.run(
        [sys.executable, "-c", program, *flags], cwd=ROOT, check=True, capture_output=True
    )
    one, three, prompt = json_lines(tmp_path / "out.jsonl")

    assert [(one["batch"], one["runs"]), (three["batch"], three["runs"])] == [(1, 4), (3, 4)]
    assert abs(one["context"] - 40) <= 16
    assert one["context"] == three["context"]
    weights = sum(torch.Size(s).numel() for p in parameters(SHAPES["tiny"]) for s in p.values())
    cache = 4 * 2 * 2 * 64 * one["context"]  # layers, keys and values, heads, their size
    for found in (one, three):
        # as bfloat16, or float32 where that is slow, and what is packed is padded
        size = {"bfloat16": 2, "float32": 4}[found["dtype"]]
        expected = size * (weights + found["batch"] * cache) / 1e9
        assert found["gb"] == pytest.approx(expected, rel=0.05)
        assert found["gb_s"] == pytest.approx(1000 * found["gb"] / found["ms"])
        assert found["tok_s"] == pytest.approx(1000 * found["batch"] / found["ms"])
        assert found["model_ms"] < found["ms"]
    assert (prompt["kind"], prompt["context"], prompt["runs"]) == ("prefill", 64, 1)
    assert prompt["share"] == pytest.approx(prompt["gflop_s"] / prompt["limit"])
