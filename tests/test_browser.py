"""What the server says to browsers, and what it lets them do: CSP, logins, cookies."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.urls import reverse

from nanollmserve_site import browser
from openai_api.models import ApiKey
from tests.openai_api.test_admin import make_request, make_response, url_of

pytestmark = pytest.mark.django_db

LOGIN = "/admin/login/"
WRONG = {"username": "alice", "password": "wrong"}
RIGHT = {"username": "alice", "password": "right horse"}


@pytest.fixture(autouse=True)
def fast_and_forgetful(settings):
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    browser.attempts.clear()
    User.objects.create(
        username="alice",
        password=make_password(RIGHT["password"]),
        is_staff=True,
        is_superuser=True,
    )


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(browser, "clock", lambda: now[0])
    return now


def log_in(fields: dict, address: str = "10.0.0.1"):
    return Client(REMOTE_ADDR=address).post(LOGIN, fields)


class TestLogins:
    def test_after_ten_wrong_ones_a_user_has_to_wait_wherever_he_is(self, clock):
        answers = [log_in(WRONG, f"10.0.0.{i}") for i in range(browser.MAX_PER_USER)]
        assert {answer.status_code for answer in answers} == {200}
        names = (" ALICE", "ａlice")  # Django takes the latter for alice, too
        for fields in (WRONG, RIGHT, *(RIGHT | {"username": name} for name in names)):
            answer = log_in(fields, "10.0.1.1")
            assert answer.status_code == 429
            assert int(answer["Retry-After"]) == browser.WINDOW_S
        clock[0] += browser.WINDOW_S
        assert log_in(RIGHT).status_code == 302

    def test_many_at_once_are_no_way_around_it(self, monkeypatch):
        monkeypatch.setattr(browser, "clock", lambda: time.sleep(0.001) or time.monotonic())
        throttled = browser.login_throttle(lambda request: HttpResponse())
        requests = [RequestFactory().post(LOGIN, WRONG) for _ in range(40)]
        with ThreadPoolExecutor(40) as threads:
            statuses = [answer.status_code for answer in threads.map(throttled, requests)]
        assert statuses.count(200) == browser.MAX_PER_USER

    def test_an_address_has_to_wait_whoever_it_says_it_is(self, clock):
        for i in range(browser.MAX_PER_ADDRESS):
            clock[0] += 1
            assert log_in(WRONG | {"username": f"user{i}"}).status_code == 200
        answer = log_in(RIGHT)
        assert answer.status_code == 429
        assert int(answer["Retry-After"]) == browser.WINDOW_S - browser.MAX_PER_ADDRESS + 1
        assert log_in(RIGHT, "10.0.0.2").status_code == 302

    def test_behind_a_proxy_it_is_the_address_that_the_proxy_tells(self, settings, monkeypatch):
        monkeypatch.setattr(browser, "MAX_PER_ADDRESS", 1)
        for tls, statuses in ((False, [200, 429]), (True, [200, 200])):
            browser.attempts.clear()
            settings.SERVER = replace(settings.SERVER, tls=tls)
            clients = [Client(HTTP_X_FORWARDED_FOR=f"6.6.6.6, 10.0.0.{i}") for i in (1, 2)]
            answers = [client.post(LOGIN, WRONG | {"username": "x"}) for client in clients]
            assert [answer.status_code for answer in answers] == statuses

    def test_a_success_takes_the_failures_back(self):
        for _ in range(3):
            for _ in range(browser.MAX_PER_USER - 1):
                assert log_in(WRONG).status_code == 200
            assert log_in(RIGHT).status_code == 302

    def test_only_attempts_count(self):
        for _ in range(browser.MAX_PER_ADDRESS + 1):
            assert Client().get(LOGIN).status_code == 200
        assert log_in(RIGHT).status_code == 302

    def test_strangers_do_not_fill_the_memory(self, monkeypatch):
        monkeypatch.setattr(browser, "MAX_REMEMBERED", 5)
        for i in range(20):
            browser.attempts.add(("user", str(i)))
        assert len(browser.attempts._times) == 5
        assert browser.attempts.wait_s(("user", "19"), 1) > 0


class Inline(HTMLParser):
    """Collects what a policy without 'unsafe-inline' would not let run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list) -> None:
        given = dict(attrs)
        data = given.get("type") in ("application/json", "text/template")
        if tag == "style" or (tag == "script" and "src" not in given and not data):
            self.found.append(self.get_starttag_text())
        for name, value in attrs:
            if name == "style" or name.startswith("on") or (value or "").startswith("javascript:"):
                self.found.append(self.get_starttag_text())
            if name in ("src", "href") and re.match("(https?:)?//", value or ""):
                self.found.append(self.get_starttag_text())


def pages() -> list[str]:
    """Every list, form and detail of the admin."""
    rows = [make_response(), make_request()]
    ApiKey.objects.create(name="bob", prefix="sk-12345", digest="x", suffix="abcd")
    found = [reverse("admin:index"), reverse("admin:password_change"), reverse("playground")]
    names = ("storedresponse", "requestlog", "apikey", "usage", "conversation")
    found += [f"/admin/openai_api/{name}/" for name in (*names, "storedchatcompletion")]
    found += [url_of(row) for row in rows]
    found += [reverse("admin:live"), url_of(rows[0], "replay")]
    found += [f"/admin/openai_api/apikey/{ApiKey.objects.get().pk}/change/"]
    found += ["/admin/openai_api/apikey/add/", "/admin/auth/user/add/"]
    return [*found, f"/admin/auth/user/{User.objects.get().pk}/change/"]


def test_no_page_needs_what_its_policy_forbids():
    operator = Client()
    operator.force_login(User.objects.get())
    for client, paths in ((Client(), [LOGIN]), (operator, pages())):
        for path in paths:
            page = client.get(path)
            assert page.status_code == 200, path
            assert "default-src 'self';" in page["Content-Security-Policy"], path
            assert "unsafe" not in page["Content-Security-Policy"]
            inline = Inline()
            inline.feed(page.content.decode())
            assert inline.found == [], path


def test_another_host_gets_no_page():
    for path in (LOGIN, "/", "/admin/"):
        answer = Client(HTTP_HOST="evil.example").get(path)
        assert answer.status_code == 400
        assert answer["Content-Type"] == "application/json"


def test_a_post_from_another_site_is_refused():
    client = Client(enforce_csrf_checks=True)
    client.get(LOGIN)
    fields = RIGHT | {"csrfmiddlewaretoken": client.cookies["csrftoken"].value}
    for origin, status in (("http://evil.example", 403), ("http://testserver", 302)):
        assert client.post(LOGIN, fields, HTTP_ORIGIN=origin).status_code == status
