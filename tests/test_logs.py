"""What is in the log: the engine's statistics while it is busy, and lines as JSON."""

import json
import logging
import os
import re
import subprocess
import sys

import pytest

from inference import service
from nanollmserve_site import request_id
from nanollmserve_site.log_format import JsonFormatter
from nanollmserve_site.request_id import AddRequestId
from nanollmserve_site.stats_log import StatsLog
from openai_api.database import write
from tests.helpers import ROOT, in_process_client, scripted_engine

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def engine():
    engine = scripted_engine(lambda prompt: "abcdefgh")
    service.install(engine)
    yield engine
    service.install(None)
    engine.close()


@pytest.mark.django_db(transaction=True)
async def test_a_busy_engine_says_what_it_does_and_an_idle_one_nothing(engine, caplog):
    caplog.set_level(logging.INFO, "nanollmserve.stats")
    log = StatsLog(engine)
    log._at -= 10.0  # it has been ten seconds
    async with in_process_client() as client:
        await client.chat.completions.create(**CHAT)
    log.tell()
    log.tell()  # all is done
    log.tell()
    log.tell()

    first, second = [r.getMessage() for r in caplog.records if r.name == "nanollmserve.stats"]
    prompt, generated = map(float, re.findall(r"throughput: ([\d.]+) tokens/s", first))
    assert 0 < generated <= 0.9 and 0 < prompt <= 2.1  # 9 and 21 tokens in ten seconds or more
    assert first.endswith(
        "Running: 0 reqs, Waiting: 0 reqs, KV cache usage: 0.0%, Prefix cache hit rate: 0.0%"
    )
    assert "throughput: 0.0 tokens/s, Avg generation throughput: 0.0 " in second


@pytest.mark.django_db(transaction=True)
async def test_a_request_is_a_json_object_with_its_id(engine, caplog):
    request_id.current.set("req_1")
    caplog.handler.addFilter(AddRequestId())
    caplog.handler.setFormatter(JsonFormatter())
    async with in_process_client() as client:
        await client.chat.completions.create(**CHAT)
    await write(int)  # whatever else is written about it

    [line] = [json.loads(line) for line in caplog.text.splitlines() if "/chat/" in line]
    assert (line["level"], line["logger"]) == ("INFO", "openai_api.request")
    assert (line["endpoint"], line["status"]) == ("POST /v1/chat/completions", 200)
    assert (line["num_completion_tokens"], line["key"]) == (9, None)
    assert 0 < line["time_to_first_token_s"] < line["duration_s"]
    assert line["message"].startswith("POST /v1/chat/completions 200 succeeded in")
    assert line["request_id"].startswith("req_")


def test_the_setting_makes_every_line_json():
    code = (
        "import django, logging; django.setup(); log = logging.getLogger('nanollmserve')\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: log.exception('it\\nfailed')"
    )
    environ = os.environ | {"NANOLLM_LOG_FORMAT": "json"}
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True
    )
    [line] = shown.stderr.splitlines()
    found = json.loads(line)

    assert found["message"] == "it\\nfailed" and found["level"] == "ERROR"
    assert found["exception"].endswith("ZeroDivisionError: division by zero")
    assert "request_id" not in found
