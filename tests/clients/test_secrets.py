"""A key, a prompt and a password are in no log, and in the database only where they belong."""

import re
import sqlite3
from contextlib import closing

import httpx2
import pytest
from django.core.management import call_command

from tests.helpers import LiveServer, live_server

PROMPT = "xylophonists whisper about zebras"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with live_server(tmp_path_factory.mktemp("secrets"), NANOLLM_LOG_LEVEL="DEBUG") as server:
        yield server


def dumped(server: LiveServer) -> str:
    """Everything in the database, as SQL."""
    with closing(sqlite3.connect(server.data_dir / "db.sqlite3")) as database:
        return "\n".join(database.iterdump())


def make_key(server: LiveServer) -> str:
    """Through the admin, as an operator does."""
    with httpx2.Client(base_url=server.url, follow_redirects=True) as browser:
        browser.get("/admin/login/")
        form = {"csrfmiddlewaretoken": browser.cookies["csrftoken"], "next": "/admin/"}
        login = form | {"username": "admin", "password": server.password}
        assert browser.post("/admin/login/", data=login).url.path == "/admin/"
        form["csrfmiddlewaretoken"] = browser.cookies["csrftoken"]
        page = browser.post("/admin/openai_api/apikey/add/", data=form | {"name": "alice"})
        return re.search(r"sk-[\w-]{40,}", page.text)[0]


def test_what_must_not_be_told_is_not_told(server):
    password, key = server.password, make_key(server)
    bodies = {
        "chat/completions": {"messages": [{"role": "user", "content": PROMPT}]},
        "completions": {"prompt": PROMPT, "temperature": "wrong"},
        "responses": {"input": PROMPT, "store": False},
    }
    for secret, right in ((key, True), (key[:-1] + "!", False)):
        headers = (
            {"Authorization": f"Bearer {secret}"},
            {"api-key": secret},
            {"Authorization": f"Basic {secret}", "X-Api-Key": secret},
        )
        for header in headers:
            for path, body in bodies.items():
                answer = httpx2.post(
                    f"{server.url}/v1/{path}",
                    json={"model": "nanollmserve-demo", "max_tokens": 2, "api_key": secret} | body,
                    headers=header,
                )
                assert (answer.status_code == 401) is not right
                assert secret not in answer.text

    log, database = server.log.read_text(), dumped(server)
    assert log.count("by alice") == 9  # so the requests are in it
    assert "alice" in database
    for text in (log, database):
        assert key[9:-4] not in text
        assert PROMPT not in text
    assert log.count(password) == 1  # at the first start, on the terminal
    assert password not in database


def test_the_checks_of_a_deployment_find_nothing(settings, capsys):
    """With TLS, as a process of its own, in tests/test_serve.py."""
    call_command("check", deploy=True, fail_level="INFO")
    assert settings.SESSION_COOKIE_HTTPONLY
    assert settings.SESSION_COOKIE_SAMESITE == "Lax"
