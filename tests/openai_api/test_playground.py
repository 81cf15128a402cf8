"""The playground's door: who comes to its page, and whose requests its API answers."""

import re

import httpx2
import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Permission, User
from django.test import Client

from nanollmserve_site.handlers import http_application
from openai_api.models import RequestLog, StoredResponse
from tests.helpers import ROOT
from tests.openai_api.callers import Caller, new_caller

pytestmark = pytest.mark.usefixtures("engine", "transactional_db")

HELLO = "Hello, wörld 🎉!"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
ASK = "/playground/v1/chat/completions"
RESPOND = "/playground/v1/responses"
TOKEN = "a" * 32


class Person:
    """Somebody's browser, logged in, and a way to the API that is the server's own."""

    def __init__(self, name: str, *, permissions: str = "use_playground", **fields) -> None:
        fields = {"is_staff": True} | fields
        self.user = User.objects.create_user(name, **fields)
        codenames = permissions.split()
        self.user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        self.browser = Client()
        self.browser.force_login(self.user)
        self.browser.cookies["csrftoken"] = TOKEN
        self.headers = {"x-csrftoken": TOKEN}

    async def send(self, method: str, path: str, body=None, **headers: str) -> httpx2.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        cookies = {name: morsel.value for name, morsel in self.browser.cookies.items()}
        transport = httpx2.ASGITransport(app=http_application())
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://localhost", cookies=cookies
        ) as http:
            return await http.request(method, path, json=body, headers=self.headers | sent)


@sync_to_async
def person(name: str = "alice", **fields) -> Person:
    return Person(name, **fields)


def visit(browser: Client, path: str) -> tuple[int, str]:
    answer = browser.get(path)
    return answer.status_code, answer.headers.get("Location", "")


class TestThePage:
    def test_strangers_are_led_to_the_login_and_then_on(self):
        assert visit(Client(), "/") == (302, "/playground/")
        assert visit(Client(), "/playground/") == (302, "/admin/login/?next=/playground/")

    def test_who_may_use_it_gets_it(self):
        page = Person("alice").browser.get("/playground/")
        assert page.status_code == 200
        assert b'id="composer"' in page.content
        assert "default-src 'self';" in page["Content-Security-Policy"]

    def test_other_staff_has_the_admin_only(self):
        browser = Person("bob", permissions="").browser
        assert visit(browser, "/") == (302, "/admin/")
        assert visit(browser, "/playground/")[0] == 403

    def test_who_is_no_staff_has_to_log_in_as_somebody_else(self):
        browser = Person("carol", is_staff=False).browser
        assert visit(browser, "/playground/") == (302, "/admin/login/?next=/playground/")

    @pytest.mark.parametrize(
        ("permissions", "addresses"),
        [
            ("", ["", ""]),
            ("view_storedresponse", ["/admin/openai_api/storedresponse/ID/change/", ""]),
            ("view_requestlog", ["", "/admin/openai_api/requestlog/ID/change/"]),
        ],
    )
    def test_it_links_to_what_one_may_see(self, permissions, addresses):
        html = Person("dave", permissions=f"use_playground {permissions}").browser.get(
            "/playground/"
        )
        found = re.findall('data-(?:response|request)-url="([^"]*)"', html.content.decode())
        assert found == addresses


class TestItsRequests:
    async def test_they_are_answered_as_those_of_the_api(self):
        alice = await person()
        theirs = await Caller().send("POST", "/v1/chat/completions", CHAT)
        ours = await alice.send("POST", ASK, CHAT)
        assert ours.status_code == theirs.status_code == 200
        assert ours.json()["choices"] == theirs.json()["choices"]
        assert ours.json()["choices"][0]["message"]["content"] == HELLO
        models = await alice.send("GET", "/playground/v1/models")
        assert models.json() == (await Caller().send("GET", "/v1/models")).json()

    async def test_they_stream(self):
        answer = await (await person()).send("POST", ASK, CHAT | {"stream": True})
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.text.endswith("data: [DONE]\n\n")

    async def test_the_history_says_who_asked(self):
        await (await person()).send("POST", ASK, CHAT)
        row = await RequestLog.objects.aget()
        assert (row.user, row.key_id, row.status) == ("alice", None, 200)
        assert row.endpoint == "POST /playground/v1/chat/completions"
        assert row.num_completion_tokens

    async def test_of_the_api_it_says_no_user(self):
        await Caller().send("POST", "/v1/chat/completions", CHAT)
        assert (await RequestLog.objects.aget()).user == ""

    async def test_with_keys_a_login_still_needs_none_and_sees_nothing_of_theirs(self):
        alice, bob = await person(), await new_caller("bob")
        kept = (await bob.send("POST", "/v1/responses", {"model": "m", "input": "Hi"})).json()
        going_on = {"model": "m", "input": "And?", "previous_response_id": kept["id"]}
        answer = await alice.send("POST", RESPOND, going_on)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "previous_response_not_found"
        own = (await alice.send("POST", RESPOND, {"model": "m", "input": "Hi"})).json()
        assert (await StoredResponse.objects.aget(pk=own["id"])).key_id is None
        assert (await bob.send("GET", f"/v1/responses/{own['id']}")).status_code == 404
        going_on["previous_response_id"] = own["id"]
        assert (await alice.send("POST", RESPOND, going_on)).status_code == 200

    async def test_a_key_is_no_login(self):
        bob = await new_caller("bob")
        for path in (ASK, RESPOND):
            assert (await bob.send("POST", path, CHAT)).status_code == 403
        assert (await bob.send("GET", "/playground/v1/models")).status_code == 403

    @pytest.mark.parametrize(
        "fields",
        [{"permissions": ""}, {"is_staff": False}, {"is_active": False}],
        ids=["without the permission", "no staff", "not active"],
    )
    async def test_others_are_refused(self, fields):
        if fields == {"is_active": False}:
            somebody = await person("eve")
            somebody.user.is_active = False
            await somebody.user.asave()
        else:
            somebody = await person("eve", **fields)
        for method, path in (("POST", ASK), ("POST", RESPOND), ("GET", "/playground/v1/models")):
            answer = await somebody.send(method, path, CHAT if method == "POST" else None)
            assert answer.status_code == 403, path
            assert answer.json()["error"]["type"] == "invalid_request_error"
        assert await RequestLog.objects.acount() == 0

    async def test_a_login_has_an_end(self):
        alice = await person()
        cookies = dict(alice.browser.cookies)
        await sync_to_async(alice.browser.logout)()
        alice.browser.cookies.update(cookies)
        assert (await alice.send("POST", ASK, CHAT)).status_code == 403

    async def test_another_site_cannot_ask_with_ones_session(self):
        alice = await person()
        elsewhere = {"origin": "http://evil.example"}
        for headers, why in (({"x_csrftoken": "x" * 32}, "CSRF"), (elsewhere, "another origin")):
            answer = await alice.send("POST", ASK, CHAT, **headers)
            assert answer.status_code == 403
            assert why in answer.json()["error"]["message"]
        alice.headers = {}
        for kind in ("text/plain", "multipart/form-data; boundary=x", "application/json"):
            answer = await alice.send("POST", ASK, CHAT, content_type=kind)
            assert answer.status_code == 403, kind
        assert await RequestLog.objects.acount() == 0

    async def test_the_body_is_read_whatever_it_is_called(self):
        answer = await (await person()).send(
            "POST", ASK, CHAT, content_type="multipart/form-data; boundary=x"
        )
        assert answer.status_code == 200

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", ASK, 405),
            ("GET", f"{RESPOND}/resp_1", 404),
            ("DELETE", f"{RESPOND}/resp_1", 404),
            ("GET", "/playground/v1/conversations", 404),
            ("POST", "/playground/v1", 404),
        ],
    )
    async def test_it_can_ask_and_nothing_else(self, method, path, status):
        answer = await (await person()).send(method, path)
        assert answer.status_code == status
        assert "error" in answer.json()


def test_no_script_makes_html_of_text_or_keeps_anything():
    """What a model writes becomes text nodes; and nothing is left in the browser."""
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|parseFromString|createContextualFragment|"
        r"document\.write|srcdoc|\beval\b|new Function|Storage\b|indexedDB|document\.cookie|"
        r"setAttribute\(.style|https?://(?!\))"
    )
    scripts = [*(ROOT / "openai_api" / "static" / "console" / "playground").rglob("*.js")]
    assert {"main.js", "markdown.js"} <= {script.name for script in scripts}
    for script in scripts:
        for number, line in enumerate(script.read_text().splitlines(), 1):
            assert not forbidden.search(line), f"{script.name}:{number}: {line.strip()}"
