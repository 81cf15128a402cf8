"""What a key may use, what it is told when that is used up, and what is written down of it."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import openai
import pytest
from django.db.backends.utils import CursorWrapper

from openai_api import limits, usage
from openai_api.database import read, write
from openai_api.limits import Meter, duration
from openai_api.models import RequestLog, Usage
from tests.openai_api.callers import Caller, new_caller

pytestmark = pytest.mark.usefixtures("engine", "transactional_db")

HI = {"model": "m", "input": "Hi"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TRIGGER = {"type": "compaction_trigger"}
PROMPT = 21  # tokens that "Hi" becomes in the template: one for each byte
ANSWER = 11  # tokens of "ten tokens" and its end


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Model:
    """It waits before each answer until its gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, prompt: str) -> str:
        self.gate.wait(10)
        return "ten tokens"


@pytest.fixture
def script():
    model = Model()
    yield model
    model.gate.set()


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits, "clock", clock)
    return clock


async def chat(caller: Caller, **fields):
    return await caller.send("POST", "/v1/chat/completions", CHAT | fields)


def limits_in(answer) -> dict[str, str]:
    prefix = "x-ratelimit-"
    headers = answer.headers.items()
    return {name.removeprefix(prefix): value for name, value in headers if prefix in name}


async def until(condition) -> None:
    for _ in range(1000):
        if await condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


class TestAMeter:
    def test_what_is_used_is_free_again_after_a_minute(self, clock):
        meter = Meter()
        meter.add(60, 60)
        assert (meter.wait_s(60, 0), meter.wait_s(60, 1), meter.wait_s(60, 60)) == (0, 1, 60)
        clock.now += 59
        assert (meter.used(60), meter.wait_s(60, 60)) == (1, 1)
        clock.now += 1
        assert meter.wait_s(60, 60) == 0

    def test_a_debt_is_waited_for(self, clock):
        meter = Meter()
        meter.add(60, 180)
        assert meter.wait_s(60, 0) == 120
        clock.now += 120
        assert meter.wait_s(60, 0) == 0

    def test_what_is_given_back_never_becomes_a_credit(self, clock):
        meter = Meter()
        meter.add(60, 50)
        clock.now += 40
        meter.add(60, -50)
        assert meter.used(60) == 0
        assert meter.wait_s(60, 60) == 0

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0, "0s"), (0.1201, "121ms"), (1, "1s"), (20.2, "21s"), (60, "1m0s"), (360, "6m0s")],
    )
    def test_durations(self, seconds, text):
        assert duration(seconds) == text


class TestRequestsPerMinute:
    @pytest.fixture
    async def alice(self) -> Caller:
        return await new_caller("alice", requests_per_minute=3)

    async def test_the_fourth_waits(self, alice, clock):
        for _ in range(3):
            assert (await chat(alice)).status_code == 200
        refused = await chat(alice)
        assert refused.status_code == 429
        assert refused.json()["error"] == {
            "message": "Rate limit reached for key 'alice' on requests per min (RPM): Limit 3, "
            "Used 3, Requested 1. Please try again in 20s.",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        }
        assert refused.headers["retry-after"] == "20"
        assert "x-should-retry" not in refused.headers

        clock.now += 19.9
        refused = await chat(alice)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        clock.now += 0.1
        assert (await chat(alice)).status_code == 200

    async def test_the_headers_of_every_answer(self, alice, clock):
        answers = [await chat(alice) for _ in range(4)]
        told = [limits_in(answer) for answer in answers]
        assert [entry["limit-requests"] for entry in told] == ["3"] * 4
        assert [entry["remaining-requests"] for entry in told] == ["2", "1", "0", "0"]
        assert [entry["reset-requests"] for entry in told] == ["20s", "40s", "1m0s", "1m0s"]
        assert not any("tokens" in name for entry in told for name in entry)
        for method, path in (("GET", "models"), ("GET", "nothing"), ("POST", "responses")):
            answer = await alice.send(method, f"/v1/{path}")
            assert limits_in(answer)["remaining-requests"] == "0", path

    async def test_a_stream_has_them_too(self, alice):
        answer = await chat(alice, stream=True)
        assert limits_in(answer)["remaining-requests"] == "2"

    async def test_what_counts_is_what_makes_the_model_or_the_tokenizer_work(self, alice):
        for _ in range(5):
            assert (await alice.send("GET", "/v1/models")).status_code == 200
            await alice.send("POST", "/v1/conversations", {})
        for path, body in (
            ("v1/completions", {"model": "m", "prompt": "Hi"}),
            ("tokenize", {"prompt": "Hi"}),
            ("v1/responses/input_tokens", HI),
        ):
            assert (await alice.send("POST", f"/{path}", body)).status_code == 200
        for path, body in (
            ("v1/responses", HI),
            ("v1/responses", HI | {"background": True}),
            ("v1/responses/compact", HI),
            ("v1/chat/completions", CHAT),
            ("detokenize", {"tokens": [1]}),
        ):
            answer = await alice.send("POST", f"/{path}", body)
            assert answer.status_code == 429, path

    async def test_over_a_socket(self, alice):
        async with alice.socket() as socket:
            events = [await socket.ask("Hi") for _ in range(4)]
            assert [event["type"] for event in events] == ["response.completed"] * 3 + ["error"]
            assert (events[3]["status"], events[3]["error"]["type"]) == (429, "requests")
            assert events[3]["error"]["headers"] == {"retry-after": "20"}

    async def test_each_key_has_its_own(self, alice):
        bob = await new_caller("bob", requests_per_minute=1)
        for _ in range(4):
            last = await chat(alice)
        assert last.status_code == 429
        assert (await chat(bob)).status_code == 200

    async def test_a_request_that_is_repeated_by_its_idempotency_key_counts_once(self, alice):
        for _ in range(5):
            answer = await alice.send("POST", "/v1/responses", HI, Idempotency_Key="a")
            assert answer.status_code == 200
        assert limits_in(answer)["remaining-requests"] == "2"

    async def test_a_changed_limit_holds_at_once(self, alice):
        for _ in range(3):
            await chat(alice)
        alice.key.requests_per_minute = 6
        await write(alice.key.save)
        answer = await chat(alice)
        assert (answer.status_code, limits_in(answer)["remaining-requests"]) == (200, "2")

    async def test_a_key_without_limits_is_told_none(self):
        answer = await chat(await new_caller("free"))
        assert limits_in(answer) == {}

    async def test_the_official_client_waits_as_it_is_told(self, alice, monkeypatch):
        for _ in range(3):
            await chat(alice)
        with pytest.raises(openai.RateLimitError) as caught:
            await alice.client.chat.completions.create(**CHAT)
        assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")


class TestTokensPerMinute:
    @pytest.fixture
    async def alice(self) -> Caller:
        return await new_caller("alice", tokens_per_minute=600)

    async def test_what_was_reserved_too_much_is_given_back_at_the_end(self, alice):
        answer = await chat(alice, max_tokens=100)
        used = answer.json()["usage"]
        assert (used["prompt_tokens"], used["completion_tokens"]) == (PROMPT, ANSWER)
        assert limits_in(answer)["remaining-tokens"] == str(600 - PROMPT - 100)
        after = await alice.send("GET", "/v1/models")
        assert limits_in(after) == {
            "limit-tokens": "600",
            "remaining-tokens": str(600 - PROMPT - ANSWER),
            "reset-tokens": "4s",
        }

    async def test_while_it_is_answered_its_tokens_are_reserved(self, alice, script, clock):
        script.gate.clear()
        first = asyncio.create_task(chat(alice, max_tokens=400))

        async def is_reserved() -> bool:
            answer = await alice.send("GET", "/v1/models")
            return limits_in(answer)["remaining-tokens"] == str(600 - PROMPT - 400)

        await until(is_reserved)
        refused = await chat(alice, max_tokens=200)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "tokens"
        assert refused.json()["error"]["message"] == (
            "Rate limit reached for key 'alice' on tokens per min (TPM): Limit 600, "
            f"Used {PROMPT + 400}, Requested {PROMPT + 200}. Please try again in 5s."
        )
        assert refused.headers["retry-after"] == "5"
        script.gate.set()
        assert (await first).status_code == 200
        assert (await chat(alice, max_tokens=200)).status_code == 200

    async def test_an_answer_without_a_limit_may_leave_a_debt(self, alice, monkeypatch, clock):
        monkeypatch.setattr(limits, "USUAL_ANSWER", 1)
        for _ in range(20):
            answer = await chat(alice)
            if answer.status_code != 200:
                break
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        for _ in range(2):  # for the debt, then for the next prompt
            clock.now += int(answer.headers["retry-after"])
            if (answer := await chat(alice)).status_code == 200:
                break
        assert answer.status_code == 200

    async def test_a_request_beyond_the_limit_is_not_to_be_sent_again(self, alice):
        answer = await chat(alice, max_tokens=600)
        assert answer.status_code == 429
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
        assert f"Limit 600, Requested {PROMPT + 600}." in error["message"]
        after = await alice.send("GET", "/v1/models")
        assert limits_in(after)["remaining-tokens"] == "600"

    @pytest.mark.parametrize(
        ("path", "body", "num_tokens"),
        [
            ("chat/completions", CHAT | {"max_tokens": 50, "n": 3}, PROMPT + 150),
            ("completions", {"model": "m", "prompt": ["a", "bc"], "max_tokens": 9}, 21),
            ("completions", {"model": "m", "prompt": "a", "max_tokens": 10**6}, None),
            ("responses", HI | {"max_output_tokens": 50}, PROMPT + 50),
            ("responses", HI, PROMPT + limits.USUAL_ANSWER),
        ],
    )
    async def test_what_is_reserved(self, alice, path, body, num_tokens):
        alice.key.tokens_per_minute = 10**6
        await write(alice.key.save)
        answer = await alice.send("POST", f"/v1/{path}", body)
        assert answer.status_code == 200
        if path == "responses":  # its end is written before its answer
            return
        left = int(limits_in(answer)["remaining-tokens"])
        assert 10**6 - left == (num_tokens or 2048)  # never more than the context holds

    @pytest.mark.parametrize("path", ["responses", "responses/compact"])
    async def test_a_summary_is_reserved_too(self, alice, engine, path):
        body = HI | {"input": [{"role": "user", "content": "Hi"}, TRIGGER]}
        answer = await alice.send("POST", f"/v1/{path}", body)
        assert answer.status_code == 429
        assert "Request too large" in answer.json()["error"]["message"]

    async def test_the_tokens_of_a_background_response_are_corrected_at_its_end(self, alice):
        body = HI | {"background": True, "max_output_tokens": 500}
        answer = await alice.send("POST", "/v1/responses", body)
        assert answer.status_code == 200

        async def is_corrected() -> bool:
            after = await alice.send("GET", "/v1/models")
            return limits_in(after)["remaining-tokens"] == str(600 - PROMPT - ANSWER)

        await until(is_corrected)

    async def test_a_request_that_fails_gives_all_back(self, alice):
        await alice.send("POST", "/v1/responses", HI | {"request_id": "taken"})
        used = 600 - PROMPT - ANSWER
        for background in (True, False):
            body = HI | {"request_id": "taken", "background": background, "max_output_tokens": 9}
            answer = await alice.send("POST", "/v1/responses", body)
            assert answer.status_code == 400
        after = await alice.send("GET", "/v1/models")
        # The foreground one's prompt may have been read before its row was refused.
        assert used - PROMPT * 2 <= int(limits_in(after)["remaining-tokens"]) <= used
        assert limits._accounts[alice.key.pk].leases == set()


class TestConcurrentRequests:
    @pytest.fixture
    async def alice(self) -> Caller:
        return await new_caller("alice", concurrent_requests=2)

    async def start(self, caller: Caller, script, make) -> list[asyncio.Task]:
        """Two requests that are being answered."""
        script.gate.clear()
        tasks = [asyncio.create_task(make()) for _ in range(2)]

        async def both_run() -> bool:
            return limits._accounts[caller.key.pk].num_active == 2

        await until(both_run)
        return tasks

    @pytest.mark.parametrize(
        "fields",
        [{}, {"stream": True}, {"background": True}],
        ids=["whole", "stream", "background"],
    )
    async def test_the_third_is_refused_until_one_has_ended(self, alice, script, fields):
        async def ask():
            return await alice.send("POST", "/v1/responses", HI | fields)

        tasks = await self.start(alice, script, ask)
        refused = await chat(alice)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["message"] == (
            "Rate limit reached for key 'alice' on concurrent requests: Limit 2, Used 2, "
            "Requested 1. Please try again in 1s."
        )
        assert (await alice.send("GET", "/v1/models")).status_code == 200
        script.gate.set()
        assert [(await task).status_code for task in tasks] == [200, 200]

        async def is_free() -> bool:
            return limits._accounts[alice.key.pk].num_active == 0

        await until(is_free)
        assert (await chat(alice)).status_code == 200

    async def test_who_reads_the_last_event_may_ask_again(self):
        """And is not told that the last request is still being written down."""
        alice = await new_caller("one", concurrent_requests=1)
        for _ in range(20):
            async for event in await alice.client.responses.create(**HI, stream=True):
                if event.type == "response.completed":
                    break
            await alice.client.chat.completions.create(**CHAT)

    async def test_a_client_that_leaves_makes_room(self, alice, script):
        tasks = await self.start(alice, script, lambda: chat(alice))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        async def is_free() -> bool:
            return not limits._accounts[alice.key.pk].leases

        script.gate.set()
        await until(is_free)
        assert (await chat(alice)).status_code == 200

    async def test_over_a_socket(self, alice, script):
        await self.start(alice, script, lambda: chat(alice))
        async with alice.socket() as socket:
            error = await socket.ask("Hi")
            assert (error["status"], error["error"]["code"]) == (429, "rate_limit_exceeded")
            script.gate.set()


class TestTokensPerDay:
    @pytest.fixture
    async def alice(self) -> Caller:
        return await new_caller("alice", tokens_per_day=60)

    async def test_a_day_that_is_used_up(self, alice):
        answers = [await chat(alice) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        error = answers[2].json()["error"]
        assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
        assert error["message"].startswith("You exceeded your current quota")
        assert answers[2].headers["x-should-retry"] == "false"
        assert limits_in(answers[2]) == {}

    async def test_a_restart_forgets_nothing(self, alice):
        for _ in range(2):
            await chat(alice)
        limits._accounts.clear()
        assert (await chat(alice)).status_code == 429

    async def test_the_next_day_is_another_one(self, alice, monkeypatch):
        for _ in range(2):
            await chat(alice)
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        monkeypatch.setattr(usage, "now", lambda: tomorrow)
        assert (await chat(alice)).status_code == 200
        assert await Usage.objects.acount() == 2

    async def test_what_is_running_counts_with_what_it_has_reserved(self, alice, script):
        script.gate.clear()
        first = asyncio.create_task(chat(alice, max_tokens=80))

        async def is_reserved() -> bool:
            return limits._accounts[alice.key.pk].num_reserved == PROMPT + 80

        await until(is_reserved)
        assert (await chat(alice)).json()["error"]["code"] == "insufficient_quota"
        script.gate.set()
        assert (await first).status_code == 200
        assert (await chat(alice)).status_code == 200

    async def test_the_official_client_gives_up_at_once(self, alice):
        for _ in range(2):
            await chat(alice)
        client = alice.client.with_options(max_retries=2)
        with pytest.raises(openai.RateLimitError, match="exceeded your current quota"):
            await client.chat.completions.create(**CHAT)
        assert await RequestLog.objects.filter(status=429).acount() == 1


class TestUsage:
    @pytest.fixture
    async def alice(self) -> Caller:
        return await new_caller("alice")

    @staticmethod
    async def of(caller: Caller) -> tuple[int, int, int]:
        row = await Usage.objects.filter(key=caller.key).afirst() or Usage()
        return row.num_requests, row.num_prompt_tokens, row.num_completion_tokens

    async def test_every_way_to_use_the_model_counts(self, alice):
        await chat(alice)
        await chat(alice, stream=True)
        await alice.send("POST", "/v1/responses", HI)
        async with alice.socket() as socket:
            await socket.ask("Hi")
        await alice.send("GET", "/v1/models")

        async def is_written() -> bool:  # a socket's client does not wait for it
            return await self.of(alice) == (5, 4 * PROMPT, 4 * ANSWER)

        await until(is_written)

    async def test_it_is_what_the_history_says(self, alice):
        await chat(alice, n=2)
        await alice.send("POST", "/v1/completions", {"model": "m", "prompt": "a"})
        rows = RequestLog.objects.values_list("num_prompt_tokens", "num_completion_tokens")
        totals = [sum(column) for column in zip(*await read(list, rows), strict=True)]
        assert await self.of(alice) == (2, *totals)

    async def test_a_background_response_is_counted_when_it_ends(self, alice):
        await alice.send("POST", "/v1/responses", HI | {"background": True})

        async def is_counted() -> bool:
            return await self.of(alice) == (1, PROMPT, ANSWER)

        await until(is_counted)

    async def test_the_summary_of_a_long_conversation_counts_too(self, alice):
        first = await alice.send("POST", "/v1/responses", HI)
        threshold = [{"type": "compaction", "compact_threshold": 1}]
        body = HI | {"previous_response_id": first.json()["id"], "context_management": threshold}
        second = await alice.send("POST", "/v1/responses", body)
        said = first.json()["usage"]["output_tokens"] + second.json()["usage"]["output_tokens"]
        assert (await self.of(alice))[::2] == (2, said + ANSWER)

    async def test_a_summary_counts_whatever_becomes_of_its_request(self, alice, script):
        hi = {"role": "user", "content": "Hi"}
        wrong = {"input": [hi, TRIGGER], "structured_outputs": {"regex": "("}}
        refused = await alice.send("POST", "/v1/responses", HI | wrong)
        assert refused.status_code == 400
        assert (await self.of(alice))[2] == ANSWER

        script.gate.clear()
        before = (await self.of(alice))[1]
        for path in ("/v1/responses/compact", "/v1/responses"):
            body = HI | {"input": [hi, TRIGGER]}
            asking = asyncio.create_task(alice.send("POST", path, body))

            async def is_asked() -> bool:
                return any(lease.summaries for lease in limits._accounts[alice.key.pk].leases)

            await until(is_asked)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

            async def is_counted(before=before) -> bool:
                return (await self.of(alice))[1] > before

            await until(is_counted)
            before = (await self.of(alice))[1]

    async def test_who_asks_for_the_length_of_a_prompt_gets_no_summary(self, alice):
        body = HI | {"input": [{"role": "user", "content": "Hi"}, TRIGGER]}
        answer = await alice.send("POST", "/v1/responses/input_tokens", body)
        assert answer.json()["input_tokens"] == PROMPT
        assert await self.of(alice) == (1, 0, 0)

    async def test_what_a_client_that_left_has_used_counts(self, alice, script):
        script.gate.clear()
        asking = asyncio.create_task(chat(alice))

        async def is_asked() -> bool:
            return bool(limits._accounts[alice.key.pk].leases)

        await until(is_asked)
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        script.gate.set()

        async def is_counted() -> bool:
            return await self.of(alice) == (1, PROMPT, 0)

        await until(is_counted)

    async def test_nobodys_is_written_down_in_one_row(self):
        for _ in range(2):
            await chat(Caller())
        row = await Usage.objects.aget()
        assert (row.key_id, row.num_requests, row.num_prompt_tokens) == (None, 2, 2 * PROMPT)

    async def test_one_update_for_a_request(self, alice, monkeypatch):
        statements, execute = [], CursorWrapper.execute

        def noting(self, sql, params=None):
            statements.append(sql)
            return execute(self, sql, params)

        await chat(alice)
        monkeypatch.setattr(CursorWrapper, "execute", noting)
        await chat(alice)
        about = [sql.split()[0] for sql in statements if "openai_api_usage" in sql]
        assert about == ["UPDATE"]

    async def test_many_at_once_lose_nothing(self, alice):
        await asyncio.gather(*(chat(alice) for _ in range(20)))
        assert await self.of(alice) == (20, 20 * PROMPT, 20 * ANSWER)

    async def test_two_servers_begin_a_day_together(self, alice, monkeypatch):
        """Both find no row; one of them makes it."""
        increase, calls = usage._increase, []

        def beaten(row, *args):
            calls.append(row)
            if len(calls) == 1:
                Usage.objects.create(**row, num_requests=1)
                return 0
            return increase(row, *args)

        monkeypatch.setattr(usage, "_increase", beaten)
        await alice.send("GET", "/v1/models")
        assert await self.of(alice) == (2, 0, 0)
