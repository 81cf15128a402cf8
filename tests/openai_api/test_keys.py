"""API keys: who is let in, by which door, and what is said to the others."""

import hmac
import re
from dataclasses import replace
from datetime import timedelta
from io import StringIO

import pytest
from asgiref.sync import sync_to_async
from django.core.management import CommandError, call_command
from django.db.backends.utils import CursorWrapper
from django.urls import get_resolver
from django.utils.timezone import now

from nanollmserve_site import handlers
from openai_api import keys
from openai_api.database import write
from openai_api.models import ApiKey, RequestLog
from openai_api.urls import urlpatterns
from tests.openai_api.callers import Caller, new_caller

pytestmark = pytest.mark.usefixtures("engine", "transactional_db")

OPEN = {"health", "health/ready", "docs/", "v1/openapi.json"}  # all that needs no key
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


def example(route: str) -> str:
    """A path that the route leads to."""
    if route.startswith("^"):
        assert route == "^v1(/.*)?$"
        return "v1/anything/else"
    return re.sub("<[^>]+>", "some_id", route)


ROUTES = [str(pattern.pattern) for pattern in urlpatterns]
GUARDED = [(route, example(route)) for route in ROUTES if route not in OPEN]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(keys, "clock", clock)
    return clock


@pytest.fixture
async def alice() -> Caller:
    return await new_caller("alice")


async def strangers() -> dict[str, Caller]:
    """Everybody who must not get in."""
    revoked, expired = await new_caller("revoked"), await new_caller("expired")
    await write(revoked.key.revoke)
    expired.key.expires_at = now() - timedelta(seconds=1)
    await write(expired.key.save)
    return {
        "nobody": Caller(),
        "unknown": Caller(secret="sk-" + "x" * 43),
        "almost": Caller(secret=(await new_caller("other")).secret[:-1] + "!"),
        "revoked": revoked,
        "expired": expired,
    }


def refusal_of(caller: Caller) -> dict:
    if not caller.secret:
        return {
            "message": keys.MISSING,
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
    return {
        "message": keys.INCORRECT.format(keys.masked(caller.secret)),
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }


class TestTheWalk:
    @pytest.mark.parametrize("name", ["nobody", "unknown", "almost", "revoked", "expired"])
    async def test_every_route_refuses_every_stranger(self, name):
        stranger = (await strangers())[name]
        assert len(GUARDED) > 15
        for route, path in GUARDED:
            for method in ("GET", "POST", "DELETE", "PUT", "OPTIONS"):
                answer = await stranger.send(method, f"/{path}", CHAT)
                where = f"{method} {route}"
                assert answer.status_code == 401, where
                assert answer.json() == {"error": refusal_of(stranger)}, where
                assert answer.headers["www-authenticate"] == "Bearer", where
                assert not any(header.startswith("x-ratelimit") for header in answer.headers)

    @pytest.mark.parametrize("header", ["api-key", "x-api-key"])
    async def test_no_header_is_a_side_door(self, header):
        for stranger in (await strangers()).values():
            if not stranger.secret:
                continue
            secret, stranger.headers = stranger.secret, {}
            for _, path in GUARDED:
                answer = await stranger.send("POST", f"/{path}", CHAT, **{header: secret})
                assert (answer.status_code, answer.json()["error"]) == (401, refusal_of(stranger))

    async def test_the_socket_refuses_every_stranger(self):
        for stranger in (await strangers()).values():
            async with stranger.socket() as socket:
                event = await socket.event()
                assert (event["type"], event["status"]) == ("error", 401)
                headers = event["error"].pop("headers")
                assert event["error"] == refusal_of(stranger)
                assert headers == {"www-authenticate": "Bearer"}
                closed = await socket.frame()
                assert (closed["type"], closed["code"]) == ("websocket.close", 1008)

    async def test_strangers_leave_no_rows(self):
        for stranger in (await strangers()).values():
            await stranger.send("POST", "/v1/chat/completions", CHAT)
            async with stranger.socket() as socket:
                await socket.event()
        assert await RequestLog.objects.acount() == 0

    @pytest.mark.parametrize("path", sorted(OPEN))
    async def test_health_needs_no_key(self, alice, path):
        assert (await Caller().send("GET", f"/{path}")).status_code == 200

    def test_every_other_route_of_the_site_has_a_door_of_its_own(self):
        """Whoever adds one decides about its door, here."""
        routes = [str(pattern.pattern) for pattern in get_resolver().url_patterns]
        assert routes == ["", "playground/", "admin/", ""]
        first_parts = {re.split("[/(]", route.lstrip("^"))[0] for route in ROUTES}
        assert first_parts - {"docs"} <= handlers.API  # that is for browsers, with a policy

    async def test_the_admin_has_its_own_login_and_takes_no_key(self, alice):
        answer = await alice.send("GET", "/admin/")
        assert (answer.status_code, answer.headers["location"]) == (
            302,
            "/admin/login/?next=/admin/",
        )


class TestWhoMayComeIn:
    @pytest.mark.parametrize("header", ["authorization", "api-key", "x-api-key"])
    async def test_a_key_in_any_of_its_headers(self, alice, header):
        secret = f"bearer  {alice.secret} " if header == "authorization" else alice.secret
        answer = await Caller().send("GET", "/v1/models", **{header: secret})
        assert answer.status_code == 200

    async def test_the_bearer_counts_before_the_others(self, alice):
        answer = await Caller(secret="wrong").send("GET", "/v1/models", api_key=alice.secret)
        assert answer.status_code == 401

    async def test_the_official_client(self, alice):
        chat = await alice.client.chat.completions.create(**CHAT)
        assert chat.choices[0].message.content
        row = await RequestLog.objects.select_related("key").aget()
        assert (row.key, row.status) == (alice.key, 200)

    async def test_over_a_socket(self, alice):
        async with alice.socket() as socket:
            assert (await socket.ask("Hi"))["type"] == "response.completed"
        assert (await RequestLog.objects.aget()).key_id == alice.key.pk

    async def test_without_keys_everybody_whatever_they_show(self):
        for caller in (Caller(), Caller(secret="anything")):
            assert (await caller.send("GET", "/v1/models")).status_code == 200
            async with caller.socket() as socket:
                assert (await socket.ask("Hi"))["type"] == "response.completed"

    async def test_a_door_that_was_closed_stays_closed(self, alice):
        """The last key's end must not let everybody in."""
        await write(alice.key.revoke)
        for caller in (alice, Caller()):
            assert (await caller.send("GET", "/v1/models")).status_code == 401

    async def test_a_key_expires_at_its_time(self, monkeypatch):
        caller = await new_caller("guest", expires_at=now() + timedelta(hours=1))
        assert (await caller.send("GET", "/v1/models")).status_code == 200
        later = now() + timedelta(hours=1, seconds=1)
        monkeypatch.setattr("openai_api.models.now", lambda: later)
        assert (await caller.send("GET", "/v1/models")).status_code == 401

    async def test_digests_are_compared_in_constant_time(self, alice, monkeypatch):
        compared = []

        def compare(a, b):
            compared.append((a, b))
            return hmac_compare(a, b)

        hmac_compare = hmac.compare_digest
        monkeypatch.setattr(hmac, "compare_digest", compare)
        almost = Caller(secret=alice.secret[:-1] + "!")
        assert (await alice.send("GET", "/v1/models")).status_code == 200
        assert (await almost.send("GET", "/v1/models")).status_code == 401
        assert [b for _, b in compared] == [alice.key.digest] * 2

    async def test_the_secret_is_kept_nowhere(self, alice):
        await alice.send("POST", "/v1/responses", {"model": "m", "input": "Hi"})
        values = [vars(await model.objects.aget()) for model in (ApiKey, RequestLog)]
        assert alice.secret not in str(values)

    async def test_the_log_tells_the_name_and_not_the_secret(self, alice, caplog):
        caplog.set_level("INFO")
        await alice.client.chat.completions.create(**CHAT)
        await Caller(secret=alice.secret[:-1] + "!").send("GET", "/v1/models")
        assert "POST /v1/chat/completions by alice 200 succeeded" in caplog.text
        assert alice.secret[9:-4] not in caplog.text

    async def test_a_refusal_shows_little_of_a_secret(self):
        assert keys.masked("sk-" + "a" * 43) == "sk-aa***aa"
        assert keys.masked("my password") == "***"
        assert keys.masked("Bearer sk-aaaaaaaaaaaaaaaaaaaaa") == "***"

    async def test_two_keys_that_begin_alike(self, alice):
        twin = await new_caller("a twin")
        twin.key.prefix = alice.key.prefix
        await write(twin.key.save)
        assert (await alice.send("GET", "/v1/models")).status_code == 200


class TestRevoking:
    async def test_this_process_knows_at_once(self, alice, clock):
        assert (await alice.send("GET", "/v1/models")).status_code == 200
        await write(alice.key.revoke)
        assert (await alice.send("GET", "/v1/models")).status_code == 401

    async def test_another_process_knows_within_seconds(self, alice, clock):
        await alice.send("GET", "/v1/models")
        await ApiKey.objects.aupdate(revoked_at=now())  # tells nobody
        assert (await alice.send("GET", "/v1/models")).status_code == 200
        clock.now += keys.MAX_AGE_S
        assert (await alice.send("GET", "/v1/models")).status_code == 401

    async def test_a_change_while_the_keys_are_being_loaded_is_not_lost(self, alice, monkeypatch):
        rows, queries = ApiKey.objects.all(), []

        def all_and_a_change():
            found = list(rows.all())
            if not queries:
                ApiKey.objects.get().revoke()
            queries.append(1)
            return found

        keys.outdate()
        monkeypatch.setattr(ApiKey.objects, "all", all_and_a_change)
        assert (await alice.send("GET", "/v1/models")).status_code == 401
        assert len(queries) == 2

    async def test_an_open_socket_is_told_at_its_next_response(self, alice):
        async with alice.socket() as socket:
            assert (await socket.ask("Hi"))["type"] == "response.completed"
            await write(alice.key.revoke)
            error = await socket.ask("Hi")
            assert (error["status"], error["error"]["code"]) == (401, "invalid_api_key")
            closed = await socket.frame()
            assert (closed["type"], closed["code"]) == ("websocket.close", 1008)

    async def test_last_used(self, alice, clock):
        await alice.send("GET", "/v1/models")
        first = (await ApiKey.objects.aget()).last_used_at
        await alice.send("GET", "/v1/models")
        assert now() - first < timedelta(seconds=30)
        assert (await ApiKey.objects.aget()).last_used_at == first

        await ApiKey.objects.aupdate(last_used_at=first - timedelta(minutes=2))
        clock.now += keys.MAX_AGE_S
        await alice.send("GET", "/v1/models")
        assert (await ApiKey.objects.aget()).last_used_at >= first


class TestModels:
    @pytest.fixture(autouse=True)
    def names(self, settings):
        settings.API = replace(settings.API, served_model_name=("large", "small"))

    @pytest.fixture
    async def guest(self) -> Caller:
        return await new_caller("guest", allowed_models=" small, gone")

    async def test_the_list_has_only_those_that_are_allowed(self, alice, guest):
        names = [model.id async for model in guest.client.models.list()]
        assert names == ["small"]
        assert [model.id async for model in alice.client.models.list()] == ["large", "small"]
        body = (await guest.send("GET", "/v1/models")).json()
        assert [entry["slug"] for entry in body["models"]] == ["small"]

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
            ("completions", {"prompt": "Hi"}),
            ("responses", {"input": "Hi"}),
            ("responses", {"input": "Hi", "background": True}),
            ("responses/compact", {"input": "Hi"}),
            ("responses/input_tokens", {"input": "Hi"}),
            ("../tokenize", {"prompt": "Hi"}),
            ("../detokenize", {"tokens": [1]}),
        ],
    )
    async def test_what_makes_a_model_work(self, guest, path, body):
        answers = [
            await guest.send("POST", f"/v1/{path}".replace("/v1/..", ""), {"model": name} | body)
            for name in ("small", "large", "none")
        ]
        assert [answer.status_code for answer in answers] == [200, 403, 404], answers[0].text
        assert answers[1].json()["error"] == {
            "message": "Your API key may not use the model `large`.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_allowed",
        }

    @pytest.mark.parametrize(("name", "status"), [("small", 200), ("large", 403), ("none", 404)])
    async def test_one_model(self, guest, name, status):
        assert (await guest.send("GET", f"/v1/models/{name}")).status_code == status

    async def test_over_a_socket(self, guest):
        async with guest.socket() as socket:
            error = await socket.ask("Hi", model="large")
            assert (error["status"], error["error"]["code"]) == (403, "model_not_allowed")
            assert (await socket.ask("Hi", model="small"))["type"] == "response.completed"

    async def test_where_no_model_has_to_be_named(self, guest):
        none = await new_caller("none", allowed_models="gone")
        for path, body in (("tokenize", {"prompt": "Hi"}), ("detokenize", {"tokens": [1]})):
            assert (await guest.send("POST", f"/{path}", body)).status_code == 200
            assert (await none.send("POST", f"/{path}", body)).status_code == 403
        path, body = "/v1/responses/input_tokens", {"input": "Hi"}
        assert (await guest.send("POST", path, body)).status_code == 200
        assert (await none.send("POST", path, body)).status_code == 403


class TestTheCostOfAKey:
    @pytest.fixture
    def script(self):
        return lambda prompt: "word " * 100

    @pytest.fixture
    def queries(self, monkeypatch):
        """The statements of all connections of all threads."""
        statements, execute = [], CursorWrapper.execute

        def counted(self, sql, params=None):
            statements.append(sql)
            return execute(self, sql, params)

        monkeypatch.setattr(CursorWrapper, "execute", counted)
        return statements

    @staticmethod
    async def stream(caller: Caller, num_tokens: int) -> int:
        body = CHAT | {"stream": True, "max_tokens": num_tokens}
        answer = await caller.send("POST", "/v1/chat/completions", body)
        return answer.text.count("data: ")

    async def test_a_token_costs_no_query(self, alice, queries):
        numbers = []
        for num_tokens in (4, 4, 400):
            queries.clear()
            assert await self.stream(alice, num_tokens) > num_tokens / 10  # some come together
            numbers.append(len(queries))
        assert numbers[1] == numbers[2] <= numbers[0]
        assert not any("apikey" in sql for sql in queries)

    async def test_wrong_secrets_cost_no_query(self, alice, queries):
        await alice.send("GET", "/v1/models")
        queries.clear()
        for number in range(20):
            await Caller(secret=f"sk-{number}").send("GET", "/v1/models")
        assert queries == []


def apikey(*arguments: str) -> str:
    output = StringIO()
    call_command("apikey", *arguments, stdout=output, stderr=StringIO())
    return output.getvalue()


class TestTheCommand:
    async def test_create_prints_a_secret_that_works(self):
        printed = await sync_to_async(apikey)("create", "bot 1")
        assert re.fullmatch(r"sk-[\w-]{43}\n", printed)
        assert (await Caller(secret=printed.strip()).send("GET", "/v1/models")).status_code == 200
        assert (await Caller().send("GET", "/v1/models")).status_code == 401

    def test_what_a_key_can_be_given(self):
        apikey(
            "create", "bot", "--expires-days", "2", "--models", "a,b", "--rpm", "1", "--tpm", "2",
            "--concurrent", "3", "--tokens-per-day", "4",
        )  # fmt: skip
        key = ApiKey.objects.get()
        limits = (
            key.requests_per_minute,
            key.tokens_per_minute,
            key.concurrent_requests,
            key.tokens_per_day,
        )
        assert limits == (1, 2, 3, 4)
        assert [key.allows(name) for name in "abc"] == [True, True, False]
        assert timedelta(days=1.99) < key.expires_at - now() < timedelta(days=2)

    def test_the_list_shows_no_secret(self):
        secret = apikey("create", "bot", "--rpm", "5").strip()
        apikey("create", "gone")
        apikey("revoke", "gone")
        header, bot, gone = apikey("list").splitlines()
        assert header.split()[:3] == ["name", "key", "state"]
        assert bot.split()[:3] == ["bot", f"{secret[:8]}…{secret[-4:]}", "active"]
        assert re.search(r"never +never +all +rpm=5$", bot)
        assert gone.split()[2] == "revoked"
        assert secret not in bot

    def test_revoke(self):
        apikey("create", "bot")
        assert 'The key "bot" is revoked' in apikey("revoke", "bot")
        assert ApiKey.objects.get().state == "revoked"
        with pytest.raises(CommandError, match="was revoked 20"):
            apikey("revoke", "bot")
        with pytest.raises(CommandError, match='no key "other"'):
            apikey("revoke", "other")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["bot"], "NAME: API key with this Name already exists."),
            (["=cmd()"], "NAME: Enter a valid value."),
            (["a\n"], "NAME: Enter a valid value."),
            (["x" * 65], "NAME: .*at most 64"),
            (["b", "--expires-days", "0"], "--expires-days is 0"),
            (["b", "--expires-days", "1000000"], "--expires-days is 1000000"),
            (["b", "--rpm", "0"], "--rpm: .*greater than or equal to 1"),
            (["b", "--tokens-per-day", "-4"], "--tokens-per-day: .*greater than or equal to 1"),
            (["b", "--tpm", str(2**64)], "--tpm: .*less than or equal to"),
        ],
    )
    def test_what_cannot_be_made_is_refused_by_its_flag(self, arguments, message):
        apikey("create", "bot")
        with pytest.raises(CommandError, match=message):
            apikey("create", *arguments)
        assert ApiKey.objects.count() == 1
