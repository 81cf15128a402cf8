"""A server on PostgreSQL: few connections, restarts of the database, and what only it refuses."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import openai
import pytest

from tests import postgres
from tests.helpers import ROOT, LiveServer, live_server

pytestmark = pytest.mark.skipif(
    postgres.binaries() is None, reason="no PostgreSQL here (Debian: apt-get install postgresql)"
)

MODEL = "nanollmserve-demo"
NUM_CONNECTIONS = 2
ENDLESS = {"ignore_eos": True}


@pytest.fixture(scope="module")
def cluster():
    with postgres.cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def variables(cluster) -> dict[str, str]:
    return {"NANOLLM_DATABASE_URL": cluster.database("served")}


@pytest.fixture(scope="module")
def server(variables, tmp_path_factory):
    settings = variables | {"NANOLLM_DATABASE_CONNECTIONS": str(NUM_CONNECTIONS)}
    with live_server(tmp_path_factory.mktemp("live"), **settings) as server:
        yield server


def ask(server: LiveServer, **fields) -> openai.types.responses.Response:
    return server.client.responses.create(
        **{"model": MODEL, "input": "Hi", "max_output_tokens": 4} | fields
    )


async def test_open_streams_hold_no_connection(server, cluster):
    """Thirty streams on two connections, and pages of the API and the admin beside them."""
    known = ask(server)
    begun: list[str] = []

    async def stream(client: openai.AsyncOpenAI) -> str:
        options = {"max_output_tokens": 60, "extra_body": ENDLESS, "stream": True}
        async for event in await client.responses.create(model=MODEL, input="Hi", **options):
            if event.type == "response.created":
                begun.append(event.response.id)
        return event.response.status

    async with server.async_client() as client, httpx2.AsyncClient(timeout=30) as browser:
        streams = [asyncio.create_task(stream(client)) for _ in range(30)]
        most, num_served = 0, 0
        while not all(task.done() for task in streams):
            most = max(most, len(begun) - sum(task.done() for task in streams))
            assert (await browser.get(f"{server.url}/admin/login/")).status_code == 200
            assert (await client.responses.retrieve(known.id)).id == known.id
            num_served += 1
        statuses = await asyncio.gather(*streams)

    assert statuses == ["incomplete"] * 30  # at their limit of tokens
    assert most > 3 * NUM_CONNECTIONS
    assert num_served > 3
    statement = "SELECT id FROM openai_api_storedresponse WHERE status = 'incomplete'"
    assert {(response_id,) for response_id in begun} <= set(cluster.execute(statement, "served"))
    [(num_connections,)] = cluster.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = 'served'"
    )
    assert num_connections <= NUM_CONNECTIONS + 1  # and the one that tells of the server


def test_a_restart_of_the_database_is_survived(server, cluster):
    begun = [ask(server, background=True, max_output_tokens=400, extra_body=ENDLESS)]
    cluster.stop()
    try:
        began = time.monotonic()
        with pytest.raises(openai.InternalServerError) as caught:
            ask(server)
        refused_after_s = time.monotonic() - began
    finally:
        cluster.start()
    began = time.monotonic()
    begun.append(ask(server))
    recovered_after_s = time.monotonic() - began

    assert caught.value.status_code == 503
    assert caught.value.body["type"] == "server_error"
    assert refused_after_s < 8
    assert recovered_after_s < 5
    for response in begun:
        events = list(server.client.responses.retrieve(response.id, stream=True))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert events[-1].type == "response.incomplete"  # at its limit of tokens, and stored
        assert server.client.responses.retrieve(response.id).status == "incomplete"


NUL = 'a\0b \\u0000 \\\0 "\0"'


def test_text_with_nul_comes_back(server):
    response = ask(server, input=NUL, metadata={"zeta\0": NUL, "alpha": "1"})
    [item] = server.client.responses.input_items.list(response.id)
    assert item.content[0].text == NUL
    found = server.client.responses.retrieve(response.id)
    assert list(found.metadata.items()) == [("zeta\0", NUL), ("alpha", "1")]  # in this order

    messages = [{"role": "user", "content": NUL}]
    options = {"store": True, "metadata": {"key": NUL}, "max_completion_tokens": 4}
    chat = server.client.chat.completions.create(model=MODEL, messages=messages, **options)
    listed = server.client.chat.completions.list(metadata={"key": NUL})
    assert [completion.id for completion in listed] == [chat.id]
    assert list(server.client.chat.completions.list(metadata={"key": "a"})) == []


@pytest.mark.parametrize("path", ["/v1/responses/a%00b", "/v1/conversations/%00/items"])
def test_an_id_with_nul_is_unknown(server, path):
    assert httpx2.get(server.url + path).status_code == 404


def test_a_model_or_a_previous_response_with_nul_is_unknown(server):
    for fields in ({"model": "a\0"}, {"previous_response_id": "resp_\0"}, {"input": [{"\0": 1}]}):
        with pytest.raises(openai.APIStatusError) as caught:
            ask(server, **fields)
        assert caught.value.status_code in (400, 404)


def test_a_schema_keeps_its_order(server):
    properties = {name: {"type": "boolean"} for name in ("zeta", "alpha", "mid")}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    schema |= {"additionalProperties": False}
    text = {"format": {"type": "json_schema", "name": "s", "schema": schema}}
    response = ask(server, text=text, max_output_tokens=100)
    found = server.client.responses.retrieve(response.id).to_dict()
    assert json.dumps(found["text"]["format"]["schema"]) == json.dumps(schema)


def test_a_second_server_elsewhere_is_not_the_only_one(server, variables, tmp_path):
    """Else it would close what the first one is generating."""
    code = (
        "import django; django.setup(); from nanollmserve_site import first_start as f\n"
        "with f.locked(): print(f.only_server())"
    )
    assert run(code, tmp_path, variables).strip() == "False"


def test_the_first_server_is_the_only_one(cluster, tmp_path):
    code = (
        "import django; django.setup(); from nanollmserve_site import first_start as f\n"
        "with f.locked(): print(f.only_server(), f.only_server())"
    )
    variables = {"NANOLLM_DATABASE_URL": cluster.database("empty")}
    assert run(code, tmp_path, variables).strip() == "True False"


def test_a_database_that_is_not_there_stops_the_start(cluster, tmp_path):
    variables = {"NANOLLM_DATABASE_URL": cluster.url("nowhere")}
    shown = run("import nanollmserve_site.asgi", tmp_path, variables, status=1)
    assert "Error: NANOLLM_DATABASE_URL" in shown
    assert 'database "nowhere" does not exist' in shown
    assert "Traceback" not in shown


def run(code: str, data_dir: Path, variables: dict[str, str], status: int = 0) -> str:
    settings = {"DJANGO_SETTINGS_MODULE": "nanollmserve_site.settings"}
    settings |= {"NANOLLM_DATA_DIR": str(data_dir)} | variables
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | settings,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == status, done.stdout
    return done.stdout
