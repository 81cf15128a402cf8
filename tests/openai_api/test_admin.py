"""The admin: what staff sees of stored responses and of the history, and what it must not do."""

import re
from datetime import timedelta

import pytest
from django.contrib.admin.utils import quote, unquote
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now

from openai_api import admin, admin_lists
from openai_api.models import RequestLog, StoredResponse

pytestmark = pytest.mark.django_db

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">'
RESPONSES = "/admin/openai_api/storedresponse/"
HISTORY = "/admin/openai_api/requestlog/"


@pytest.fixture
def visitor() -> Client:
    return Client()


@pytest.fixture
def operator(db) -> Client:
    """May do everything. Has no password, as hashing one takes most of a second."""
    client = Client()
    client.force_login(User.objects.create_superuser("alice"))
    return client


def message(role: str, text: str) -> dict:
    kind = "output_text" if role == "assistant" else "input_text"
    part = {"type": kind, "text": text}
    return {
        "id": "msg_1",
        "type": "message",
        "status": "completed",
        "role": role,
        "content": [part],
    }


def reasoning(text: str) -> dict:
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": "rs_1", "type": "reasoning", "status": "completed", "content": content}


def call(arguments: str, name: str = "get_weather") -> dict:
    head = {"id": "fc_1", "type": "function_call", "status": "completed", "call_id": "call_1"}
    return head | {"name": name, "arguments": arguments}


def call_output(text: str, call_id: str = "call_1") -> dict:
    return {"id": "fco_1", "type": "function_call_output", "call_id": call_id, "output": text}


def usage(num_input: int, num_output: int, num_cached: int = 0) -> dict:
    return {
        "input_tokens": num_input,
        "input_tokens_details": {"cached_tokens": num_cached},
        "output_tokens": num_output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_input + num_output,
    }


def make_response(**values) -> StoredResponse:
    values = {
        "status": "completed",
        "model": "toy",
        "request": {"instructions": None, "store": True},
        "input": [message("user", "What is paging?")],
        "output": [message("assistant", "A table of blocks.")],
        **values,
    }
    return StoredResponse.objects.create(**values)


def make_request(**values) -> RequestLog:
    values = {"endpoint": "POST /v1/responses", "outcome": "succeeded", "status": 200, **values}
    return RequestLog.objects.create(**values)


def page_of(client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200, response.headers
    return response.content.decode()


def url_of(row, view: str = "change") -> str:
    return reverse(f"admin:openai_api_{row._meta.model_name}_{view}", args=[quote(row.pk)])


def links_in(html: str, url: str) -> list[str]:
    """The ids of the rows under `url` that a page links to."""
    links = re.findall(rf'href="{url}(\w+)/change/', html)
    return [unquote(link) for link in dict.fromkeys(links)]


def page_of_row(client, row) -> str:
    return page_of(client, url_of(row))


def text_of(html: str) -> str:
    """What a reader sees of the page's content, in one line."""
    content = html[html.index('<div id="content"') :]
    return " ".join(re.sub(r"<[^>]*>", " ", content).split())


def staff(client, *permissions: str) -> None:
    user = User.objects.create_user("bob", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)


class TestResponsePage:
    def test_it_reads_as_a_transcript(self, operator):
        row = make_response(
            request={"instructions": "Answer briefly."},
            input=[
                message("developer", "Use metric units."),
                message("user", "Rain in Oslo?"),
                reasoning("A tool is needed."),
                call('{"city": "Oslo", "days": [1, 2]}'),
                call_output("Rain, 8 degrees"),
            ],
            output=[reasoning("So it rains."), message("assistant", "Yes,\ntake a coat.")],
            usage=usage(31, 12, num_cached=7),
        )

        html = page_of_row(operator, row)
        text = text_of(html)

        in_order = (
            "instructions Answer briefly.",
            "developer Use metric units.",
            "user Rain in Oslo?",
            "assistant Reasoning, 17 characters A tool is needed. calls get_weather",
            "&quot;city&quot;: &quot;Oslo&quot;, &quot;days&quot;: [ 1, 2 ]",
            "tool result of get_weather Rain, 8 degrees",
            "assistant Reasoning, 12 characters So it rains. Yes, take a coat.",
        )
        places = [text.index(part) for part in in_order]
        assert places == sorted(places)
        assert "Input tokens 31 (7 cached)" in text
        assert "Yes,\ntake a coat." in html

    @pytest.mark.parametrize("status", StoredResponse.Status.values)
    def test_a_row_of_any_status_has_a_page(self, operator, status):
        row = make_response(status=status, output=[])

        assert f"badge-{status}" in page_of_row(operator, row)
        assert f"badge-{status}" in page_of(operator, RESPONSES)

    def test_it_says_why_it_ended(self, operator):
        failed = make_response(status="failed", error={"code": "server_error", "message": "Oh no."})
        details = {"reason": "max_output_tokens"}
        cut = make_response(status="incomplete", incomplete_details=details)

        assert "server_error Oh no." in text_of(page_of_row(operator, failed))
        assert "Ended early: max_output_tokens" in text_of(page_of_row(operator, cut))

    @pytest.mark.parametrize(
        "item",
        [
            {"type": "computer_call", "action": "<b>click</b>"},
            {"type": "message", "role": "user", "content": None},
            {"type": "message", "role": "user", "content": ["bare"]},
            {"type": "function_call", "call_id": 3},
            {"no": "type"},
            {"type": ["list"]},
            "bare",
            None,
        ],
    )
    def test_an_item_of_unknown_shape_is_shown_as_json(self, operator, item):
        html = page_of_row(operator, make_response(input=[item]))

        assert 'class="turn turn-other"' in html
        assert "<b>click" not in html

    @pytest.mark.parametrize(
        ("arguments", "shown"),
        [("{oops", "{oops"), (r'"\ud800"', r"\ud800"), ("[" * 20_000, "[[[")],
    )
    def test_arguments_may_be_anything(self, operator, arguments, shown):
        html = page_of_row(operator, make_response(output=[call(arguments)]))

        assert shown in html[html.index("calls <code>") : html.index("<h2>Raw")]

    def test_huge_raw_json_is_cut(self, operator, monkeypatch):
        monkeypatch.setattr("openai_api.transcript.MAX_JSON_LEN", 100)

        html = page_of_row(operator, make_response(request={"metadata": "a" * 500}))

        assert "a" * 101 not in html
        assert "characters in all" in html

    def test_it_links_to_its_request(self, operator):
        row = make_response()
        request = make_request(response_id=row.pk, duration_s=1.25)

        html = page_of_row(operator, row)

        assert links_in(html, HISTORY) == [request.pk]
        assert "Duration 1.250 s" in text_of(html)

    def test_without_permission_for_the_history_it_shows_none_of_it(self, visitor):
        staff(visitor, "view_storedresponse")
        row = make_response(completed_at=now() - timedelta(seconds=1))
        make_request(response_id=row.pk, duration_s=1.25)

        html = page_of_row(visitor, row)

        assert HISTORY not in html
        assert "Duration about 0 s" in text_of(html)  # though the stored end precedes the start


class TestChain:
    def test_links_lead_there_whatever_the_id(self, operator):
        """The admin reads `_22` in its URLs as a quotation mark."""
        first = make_response(id="resp_22cafe")
        second = make_response(id="resp_5Fcafe", previous=first)
        request = make_request(id="req_3Acafe", response_id=second.pk)

        for page, shown in ((second, first), (first, second), (second, request), (request, second)):
            link = f'href="{url_of(shown)}"'
            assert link in page_of_row(operator, page)
            assert shown.pk in page_of_row(operator, shown)

    def test_it_links_to_what_came_before_and_after(self, operator):
        first = make_response(input=[message("user", "First?")])
        second = make_response(previous=first, input=[message("user", "Second?")])
        third = make_response(previous=second, input=[message("user", "Third?")])

        html = page_of_row(operator, second)
        chain = html[html.index('class="chain"') : html.index("</nav>", html.index("chain"))]

        ids = re.findall(r"resp_[0-9a-f]{32}(?=</code>)", chain)
        assert ids == [first.pk, second.pk, third.pk]
        assert links_in(chain, RESPONSES) == [first.pk, third.pk]
        assert html.index("First?") < html.index("Second?")
        assert "Third?" not in html

    def test_a_result_is_named_by_a_call_of_an_earlier_response(self, operator):
        first = make_response(output=[call("{}")])
        second = make_response(previous=first, input=[call_output("Rain")])

        assert "result of get_weather Rain" in text_of(page_of_row(operator, second))

    def test_a_deleted_parent_is_named_and_not_linked(self, operator):
        first = make_response()
        second = make_response(previous=first)
        first_id = first.pk
        first.delete()

        html = page_of_row(operator, second)

        assert f"{first_id} deleted" in text_of(html)
        assert links_in(html, RESPONSES) == []

    def test_a_long_chain_is_cut_at_a_link(self, operator, monkeypatch):
        monkeypatch.setattr(admin, "MAX_ANCESTORS", 2)
        rows = [make_response()]
        for _ in range(4):
            rows.append(make_response(previous=rows[-1]))

        html = page_of_row(operator, rows[4])

        assert links_in(html, RESPONSES) == [row.pk for row in rows[1:4]]
        assert rows[0].pk not in html
        assert "Earlier in this conversation: 2 responses" in text_of(html)


class TestResponseList:
    def test_it_shows_the_beginnings_of_input_and_output(self, operator):
        make_response(
            input=[message("developer", "Be kind."), message("user", "Hello " * 100)],
            output=[reasoning("Hm."), message("assistant", "Hi there.")],
            usage=usage(5, 7),
        )
        make_response(output=[reasoning("Hm."), call("{}")])
        make_response(input=[call_output("42 degrees")], output=[])
        make_response(output=[], error={"code": "server_error", "message": "Out of blocks."})
        make_response(input=[], output=[])

        text = text_of(page_of(operator, RESPONSES))

        for part in ("Hello Hello", "Hi there.", "5 / 7", "get_weather(…)", "42 degrees"):
            assert part in text
        assert "Out of blocks." in text
        assert "Be kind." not in text
        assert text.count("Hello") < 30

    def test_it_reads_no_whole_items(self, operator):
        make_response(request={"metadata": {}})

        with CaptureQueriesContext(
            connection,
        ) as queries:
            page_of(operator, RESPONSES)

        ours = [q["sql"] for q in queries if "storedresponse" in q["sql"]]
        assert len(ours) >= 2
        for name in ("request", "input", "output"):
            column = f'[ ]"openai_api_storedresponse"."{name}"'  # not as a function's argument
            assert not any(re.search(column, sql) for sql in ours)

    @pytest.mark.parametrize(
        "query",
        ["status__exact=failed", "model=other", "created_at__lt=2020-01-01T00:00Z", "q=resp_b"],
    )
    def test_filters_and_search_find_the_row(self, operator, query):
        make_response()
        make_response(id="resp_bb")
        wanted = make_response(
            id="resp_b",
            status="failed",
            model="other",
            created_at=now().replace(year=2019),
        )

        html = page_of(operator, f"{RESPONSES}?{query}")

        assert links_in(html, RESPONSES) == [wanted.pk]

    def test_the_model_filter_keeps_a_value_that_is_not_recent(self, operator, monkeypatch):
        monkeypatch.setattr(admin_lists, "NUM_RECENT_ROWS", 1)
        make_response(model="old", created_at=now() - timedelta(days=1))
        make_response(model="new")

        html = page_of(operator, f"{RESPONSES}?model=old")

        assert len(links_in(html, RESPONSES)) == 1
        assert "?model=new" in html
        assert "?model=old" in html

    def test_selected_rows_can_be_deleted(self, operator):
        kept, gone = make_response(), make_response()
        form = {"action": "delete_selected", "_selected_action": [gone.pk]}

        page = operator.post(RESPONSES, form)
        assert page.status_code == 200
        assert "Are you sure" in page.content.decode()
        assert operator.post(RESPONSES, form | {"post": "yes"}).status_code == 302

        assert list(StoredResponse.objects.all()) == [kept]


class TestPages:
    """Of a table that is never counted. 5 rows, 2 on a page."""

    @pytest.fixture(autouse=True)
    def rows(self, monkeypatch):
        monkeypatch.setattr(admin.LookingAdmin, "list_per_page", 2)
        return [make_request(id=f"req_{i}") for i in range(5)]

    @pytest.mark.parametrize(
        ("number", "ids", "linked", "count"),
        [
            (1, ["req_4", "req_3"], ["2"], "more than 2 requests"),
            (2, ["req_2", "req_1"], ["1", "3"], "more than 4 requests"),
            (3, ["req_0"], ["1", "2"], "5 requests"),
        ],
    )
    def test_a_page_links_to_the_next_only_if_there_is_one(
        self, operator, number, ids, linked, count
    ):
        html = page_of(operator, f"{HISTORY}?p={number}")

        assert links_in(html, HISTORY) == ids
        paginator = html[html.index('class="paginator"') :]
        assert re.findall(r'href="\?p=(\d)"', paginator) == linked
        assert count in text_of(html)

    def test_a_full_last_page_links_to_no_next(self, operator):
        RequestLog.objects.filter(pk="req_0").delete()

        html = page_of(operator, f"{HISTORY}?p=2")

        assert "?p=3" not in html
        assert " 4 requests" in text_of(html)

    @pytest.mark.parametrize("number", ["4", "99", "9" * 30])
    def test_a_page_too_far_goes_back_to_the_list(self, operator, number):
        response = operator.get(f"{HISTORY}?p={number}")

        assert response.status_code == 302
        assert response.url == f"{HISTORY}?e=1"

    @pytest.mark.parametrize("number", ["0", "-1", "x", ""])
    def test_a_page_that_is_no_number_does_no_harm(self, operator, number):
        assert operator.get(f"{HISTORY}?p={number}").status_code in (200, 302)

    def test_nothing_shows_all(self, operator):
        assert len(links_in(page_of(operator, f"{HISTORY}?all="), HISTORY)) == 2

    @pytest.mark.parametrize("query", ["", "?p=2", "?q=req_1", "?model=toy", "?e=1"])
    def test_nothing_counts(self, operator, query):
        make_response()
        make_response()
        make_response()

        with CaptureQueriesContext(connection) as queries:
            for url in (HISTORY, RESPONSES):
                assert operator.get(url + query).status_code == 200

        ours = [q["sql"] for q in queries if "openai_api_" in q["sql"]]
        assert len(ours) >= 2
        assert not [sql for sql in ours if "COUNT(" in sql.upper() or "DISTINCT" in sql.upper()]

    def test_all_can_be_selected_only_where_their_number_is_known(self, operator):
        for _ in range(3):
            make_response()

        assert "Select all 3" not in page_of(operator, RESPONSES)
        assert "Select all 3 stored responses" in page_of(operator, f"{RESPONSES}?p=2")
        assert "0 of 2 selected" in page_of(operator, RESPONSES)  # the list's script needs it


class TestHistory:
    def test_it_shows_what_a_request_cost(self, operator):
        stored = make_response()
        make_request(
            model="toy",
            stream=True,
            finish_reason="stop",
            num_prompt_tokens=100,
            num_cached_tokens=64,
            num_completion_tokens=50,
            time_to_first_token_s=0.0834,
            duration_s=2,
            client="127.0.0.1",
            response_id=stored.pk,
        )

        html = page_of(operator, HISTORY)

        text = text_of(html)
        for part in ("Succeeded", "100 (64 cached)", "83", "2.000", "25.0", "127.0.0.1"):
            assert part in text
        assert links_in(html, RESPONSES) == [stored.pk]

    @pytest.mark.parametrize("outcome", RequestLog.Outcome.values)
    def test_a_row_of_any_outcome_has_a_page(self, operator, outcome):
        row = make_request(outcome=outcome, status=None, error_message=EVIL)

        html = page_of_row(operator, row)

        assert f"badge-{outcome}" in html
        assert f"badge-{outcome}" in page_of(operator, HISTORY)
        assert "<script>alert" not in html

    def test_a_response_that_was_not_stored_is_no_link(self, operator):
        row = make_request(response_id="resp_gone")

        for html in (page_of(operator, HISTORY), page_of_row(operator, row)):
            assert "resp_gone (not stored)" in text_of(html)
            assert links_in(html, RESPONSES) == []

    @pytest.mark.parametrize(
        "query",
        [
            "endpoint=POST+%2Fv1%2Fcompletions",
            "outcome__exact=failed",
            "http=4xx",
            "stream__exact=1",
            "model=other",
            "q=req_b",
            "q=resp_b",
        ],
    )
    def test_filters_and_search_find_the_row(self, operator, query):
        make_request(id="req_bb")
        wanted = make_request(
            id="req_b",
            endpoint="POST /v1/completions",
            outcome="failed",
            status=429,
            stream=True,
            model="other",
            response_id="resp_b",
        )

        html = page_of(operator, f"{HISTORY}?{query}")

        assert links_in(html, HISTORY) == [wanted.pk]


class TestSafety:
    def test_what_a_model_wrote_is_never_markup(self, operator):
        request = {"instructions": EVIL, "metadata": {EVIL: EVIL}}
        items = [message(EVIL, EVIL), reasoning(EVIL), call(f'"{EVIL}', EVIL)]
        items += [call_output(EVIL, EVIL), {"type": EVIL, EVIL: EVIL}]
        error = {"code": EVIL, "message": EVIL}
        values = {"model": EVIL, "request": request, "error": error}
        parent = make_response(input=items, output=items, **values)
        details = {"reason": EVIL}
        row = make_response(
            previous=parent,
            input=[message("user", EVIL)],
            output=[message("assistant", EVIL)],
            incomplete_details=details,
            **values,
        )
        make_response(output=[call("{}", EVIL)], **values)
        make_request(
            endpoint=EVIL[:80],
            model=EVIL,
            client=EVIL,
            user_agent=EVIL,
            finish_reason="<script>",
            response_id=EVIL,
            error_code=EVIL,
        )

        pages = [page_of(operator, url) for url in (RESPONSES, HISTORY)]
        pages += [page_of_row(operator, row), page_of_row(operator, parent)]
        pages.append(page_of_row(operator, RequestLog.objects.get()))

        for html in pages:
            assert "&lt;script&gt;alert(1)" in html
            assert "<script>" not in html
            assert "<img src=x" not in html

    def test_the_page_of_a_response_holds_no_inline_code(self, operator):
        html = page_of_row(operator, make_response())

        assert "<script>" not in html
        assert not re.search(r"<style|\sstyle=|\son\w+=", html)

    @pytest.mark.parametrize("url", [RESPONSES, HISTORY])
    def test_a_stranger_is_sent_to_the_login(self, visitor, url):
        row = make_response() if url == RESPONSES else make_request()

        for path in (url, url_of(row), url_of(row, "delete")):
            response = visitor.get(path)
            assert response.status_code == 302
            assert response.url.startswith("/admin/login/")

    def test_nobody_edits_or_adds(self, operator):
        response, request = make_response(), make_request()

        for url, row in ((RESPONSES, response), (HISTORY, request)):
            path = url_of(row)
            assert operator.post(path, {"model": "forged"}).status_code == 403
            assert operator.get(f"{url}add/").status_code == 403
            row.refresh_from_db()
            assert row.model != "forged"

    def test_a_response_is_deleted_only_with_permission(self, visitor):
        row = make_response()
        staff(visitor, "view_storedresponse")
        path = url_of(row, "delete")

        assert path not in page_of_row(visitor, row)
        assert visitor.post(path, {"post": "yes"}).status_code == 403
        User.objects.get().user_permissions.add(
            Permission.objects.get(codename="delete_storedresponse")
        )
        assert path in page_of_row(visitor, row)
        assert visitor.post(path, {"post": "yes"}).status_code == 302
        assert not StoredResponse.objects.exists()

    def test_history_is_never_deleted(self, operator):
        row = make_request()
        form = {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"}

        assert operator.post(url_of(row, "delete"), {"post": "yes"}).status_code == 403
        operator.post(HISTORY, form)
        assert RequestLog.objects.exists()
