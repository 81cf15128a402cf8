"""The admin of keys and of their usage."""

import csv
import re
from datetime import date, timedelta
from io import StringIO

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils.timezone import now

from openai_api.models import ApiKey, RequestLog, StoredResponse, Usage
from tests.openai_api.callers import make_key

pytestmark = pytest.mark.django_db

KEYS = "/admin/openai_api/apikey/"
USAGE = "/admin/openai_api/usage/"
HISTORY = "/admin/openai_api/requestlog/"
NO_LIMITS = {
    "requests_per_minute": "",
    "tokens_per_minute": "",
    "concurrent_requests": "",
    "tokens_per_day": "",
}
SECRET = re.compile(r"sk-[\w-]{43}")


@pytest.fixture
def operator(db) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("alice"))
    return client


def staff(*permissions: str) -> Client:
    user = User.objects.create_user("bob", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def page_of(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200, response.headers
    return response.content.decode()


def add(client: Client, **fields) -> str:
    """The page that one sees after saving."""
    form = {"name": "bot", "allowed_models": "", **NO_LIMITS, **fields}
    response = client.post(f"{KEYS}add/", form, follow=True)
    assert response.status_code == 200
    return response.content.decode()


class TestMaking:
    def test_the_secret_is_shown_once(self, operator):
        shown = SECRET.findall(add(operator))
        key = ApiKey.objects.get()

        assert len(shown) == 1
        assert key.is_of(shown[0])
        for url in (KEYS, f"{KEYS}{key.pk}/change/", f"{KEYS}{key.pk}/history/", "/admin/"):
            assert not SECRET.search(page_of(operator, url))

    def test_it_is_kept_nowhere(self, operator):
        (secret,) = SECRET.findall(add(operator))
        kept = [*ApiKey.objects.values(), *LogEntry.objects.values()]
        sessions = [session.get_decoded() for session in Session.objects.all()]
        assert secret not in str(kept) + str(sessions)

    def test_what_a_key_can_be_given(self, operator):
        add(
            operator,
            expires_at_0="2030-01-02",
            expires_at_1="03:04:05",
            allowed_models="a",
            requests_per_minute="7",
        )
        key = ApiKey.objects.get()
        assert (key.requests_per_minute, key.tokens_per_day, key.allows("b")) == (7, None, False)
        assert f"{key.expires_at:%Y-%m-%d %H:%M:%S}" == "2030-01-02 03:04:05"

    @pytest.mark.parametrize(
        "fields", [{"name": "=1+1"}, {"name": ""}, {"requests_per_minute": "0"}, {"name": "taken"}]
    )
    def test_what_cannot_be_made(self, operator, fields):
        make_key("taken")
        page = add(operator, **fields)
        assert "errorlist" in page
        assert not SECRET.search(page)
        assert ApiKey.objects.count() == 1


class TestChanging:
    def test_a_change_keeps_the_secret(self, operator):
        key, secret = make_key("bot")
        form = {"name": "robot", "allowed_models": "", **NO_LIMITS, "tokens_per_day": "5"}
        response = operator.post(f"{KEYS}{key.pk}/change/", form, follow=True)

        assert not SECRET.search(response.content.decode())
        key.refresh_from_db()
        assert (key.name, key.tokens_per_day, key.is_of(secret)) == ("robot", 5, True)

    def test_revoking(self, operator):
        keys = [make_key(name)[0] for name in ("a", "b", "c")]
        chosen = {"action": "revoke", "_selected_action": [keys[0].pk, keys[1].pk]}
        response = operator.post(KEYS, chosen, follow=True)

        assert "Revoked: a, b." in response.content.decode()
        assert [key.state for key in ApiKey.objects.all()] == ["revoked", "revoked", "active"]

    def test_nobody_deletes_a_key(self, operator):
        key, _ = make_key("bot")
        assert operator.post(f"{KEYS}{key.pk}/delete/", {"post": "yes"}).status_code == 403
        assert "delete_selected" not in page_of(operator, KEYS)

    def test_who_may_only_look_neither_makes_nor_revokes(self):
        key, _ = make_key("bot")
        client = staff("view_apikey")
        assert "bot" in page_of(client, KEYS)
        assert client.post(f"{KEYS}add/", {"name": "x", **NO_LIMITS}).status_code == 403
        client.post(KEYS, {"action": "revoke", "_selected_action": [key.pk]})
        assert [key.state for key in ApiKey.objects.all()] == ["active"]

    def test_the_list_tells_the_state(self, operator):
        make_key("a")
        make_key("b", expires_at=now() - timedelta(days=1))
        make_key("c")[0].revoke()
        states = re.findall(r"badge-(\w+)", page_of(operator, KEYS))
        assert states == ["active", "expired", "revoked"]


class TestUsage:
    @pytest.fixture(autouse=True)
    def rows(self):
        for name in ("a", "b"):
            key, _ = make_key(name)
            for day in (1, 2):
                Usage.objects.create(
                    key=key,
                    day=date(2026, 11, day),
                    num_requests=day,
                    num_prompt_tokens=10 * day,
                    num_cached_tokens=day,
                    num_completion_tokens=100 * day,
                )

    @staticmethod
    def table(client: Client, query: str = "") -> list[list[str]]:
        response = client.get(f"{USAGE}csv/{query}")
        assert response.status_code == 200
        assert response["Content-Type"] == "text/csv; charset=utf-8"
        assert response["Content-Disposition"] == 'attachment; filename="usage.csv"'
        return list(csv.reader(StringIO(response.content.decode())))

    def test_the_csv(self, operator):
        assert self.table(operator) == [
            ["day", "key", "requests", "prompt_tokens", "cached_tokens", "completion_tokens"],
            ["2026-11-02", "a", "2", "20", "2", "200"],
            ["2026-11-02", "b", "2", "20", "2", "200"],
            ["2026-11-01", "a", "1", "10", "1", "100"],
            ["2026-11-01", "b", "1", "10", "1", "100"],
        ]

    def test_it_has_what_the_list_was_filtered_to(self, operator):
        key = ApiKey.objects.get(name="a")
        query = f"?key__id__exact={key.pk}&day__gte=2026-11-02"
        html = page_of(operator, USAGE + query)
        (link,) = re.findall(rf'href="{USAGE}csv/([^"]*)"', html)

        rows = self.table(operator, link.replace("&amp;", "&"))
        assert [row[:2] for row in rows[1:]] == [["2026-11-02", "a"]]
        assert len(re.findall(r'class="field-day', html)) == 1

    def test_it_is_not_cut_into_pages(self, operator):
        key = ApiKey.objects.get(name="a")
        Usage.objects.bulk_create(
            Usage(key=key, day=date(2025, 1, 1) + timedelta(days=day)) for day in range(120)
        )
        assert len(self.table(operator)) == 1 + 4 + 120

    def test_a_filter_that_is_none_leads_back_to_the_list(self, operator):
        assert operator.get(f"{USAGE}csv/?nonsense=1").url == USAGE

    def test_who_may_not_look_gets_no_csv(self):
        assert staff("view_apikey").get(f"{USAGE}csv/").status_code == 403
        assert Client().get(f"{USAGE}csv/").status_code == 302

    def test_nobody_writes_it(self, operator):
        row = Usage.objects.first()
        assert operator.get(f"{USAGE}add/").status_code == 403
        assert operator.post(f"{USAGE}{row.pk}/delete/", {"post": "yes"}).status_code == 403
        page_of(operator, f"{USAGE}{row.pk}/change/")


class TestWhereAKeyIsShown:
    def test_in_the_history(self, operator):
        a, b = make_key("alpha")[0], make_key("beta")[0]
        for key in (a, b, None):
            RequestLog.objects.create(endpoint="GET /v1/models", status=200, key=key)
        html = page_of(operator, HISTORY)
        assert "alpha" in html
        assert len(re.findall(r'class="field-caller', html)) == 3
        only = page_of(operator, f"{HISTORY}?key__id__exact={a.pk}")
        assert len(re.findall(r'class="field-caller', only)) == 1
        row = RequestLog.objects.get(key=b)
        assert "beta" in page_of(operator, f"{HISTORY}{row.pk.replace('_', '_5F')}/change/")

    def test_beside_a_transcript(self, operator):
        row = StoredResponse.objects.create(
            key=make_key("alpha")[0], model="toy", request={"instructions": None}
        )
        url = f"/admin/openai_api/storedresponse/{row.pk.replace('_', '_5F')}/change/"
        assert "<dt>API key</dt><dd>alpha</dd>" in page_of(operator, url)


class TestUsageCharts:
    @staticmethod
    def use(name: str | None, day: date, num_requests: int, num_tokens: int) -> None:
        key = None
        if name is not None:
            key = ApiKey.objects.filter(name=name).first() or make_key(name)[0]
        Usage.objects.create(
            key=key, day=day, num_requests=num_requests, num_prompt_tokens=num_tokens
        )

    def test_days_are_stacked_by_key(self, operator):
        last = date(2026, 11, 30)
        self.use("big", last, 2, 600)
        self.use(None, last, 1, 400)
        self.use("big", last - timedelta(days=29), 1, 50)
        self.use("big", last - timedelta(days=30), 7, 7000)  # before the first day that is shown

        html = page_of(operator, USAGE)

        assert "2026-11-30: 1,000 tokens\nbig: 600\nno key: 400</title>" in html
        assert "2026-11-01: 50 tokens" in html
        assert "By key, 2026-11-01 to 2026-11-30" in html
        assert "Tokens a day <b>1,050</b>" in html
        assert "7,000" not in html
        rects = re.findall(r'class="part-(\d)" x="[\d.]+" y="([\d.]+)" .*?height="([\d.]+)"', html)
        assert ("0", "64.0", "96.0") in rects  # 600 of 1,000, in 160 units from below
        assert ("1", "0.0", "64.0") in rects

    def test_many_keys_share_a_colour(self, operator):
        for i in range(8):
            self.use(f"key{i}", date(2026, 11, 1), 1, 100 - i)
        html = page_of(operator, USAGE)
        assert "3 others" in html
        assert "key4: 96\n3 others: 282" in html

    def test_they_show_what_the_list_is_filtered_to(self, operator):
        self.use("a", date(2026, 11, 1), 1, 10)
        self.use("b", date(2026, 11, 1), 1, 2000)
        key = ApiKey.objects.get(name="a")
        html = page_of(operator, f"{USAGE}?key__id__exact={key.pk}")
        assert "Tokens a day <b>10</b>" in html

    def test_without_usage_there_is_none(self, operator):
        assert "<figure>" not in page_of(operator, USAGE)
