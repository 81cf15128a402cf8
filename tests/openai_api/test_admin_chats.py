"""The admin's pages of stored chat completions."""

import re

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from openai_api import stored_chats
from openai_api.models import StoredChatCompletion
from tests.openai_api.test_admin import (
    EVIL,
    HISTORY,
    links_in,
    make_request,
    page_of,
    page_of_row,
    staff,
    text_of,
    url_of,
)

pytestmark = pytest.mark.django_db

CHATS = "/admin/openai_api/storedchatcompletion/"
USER = {"role": "user", "content": "What is paging?"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "rain", "arguments": '{"x": 1}'}}
CUSTOM = {"id": "call_2", "type": "custom", "custom": {"name": "shell", "input": "ls > x"}}
COUNTER = iter(range(1000))


@pytest.fixture
def visitor() -> Client:
    return Client()


@pytest.fixture
def operator(db) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("alice"))
    return client


def answer(content: str | None = "A table of blocks.", **fields) -> dict:
    return {"role": "assistant", "content": content, "refusal": None, **fields}


def make_chat(
    *answers: dict, messages=(USER,), metadata=None, model="toy", row_id=""
) -> StoredChatCompletion:
    row_id = row_id or f"chatcmpl_{next(COUNTER)}"
    choices = [
        {"index": index, "message": message, "logprobs": None, "finish_reason": "stop"}
        for index, message in enumerate(answers or [answer()])
    ]
    usage = {
        "prompt_tokens": 31,
        "completion_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 7},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    completion = {"id": row_id, "model": model, "choices": choices, "usage": usage}
    stored_chats.save(completion, {"messages": list(messages), "metadata": metadata})
    return StoredChatCompletion.objects.get(pk=row_id)


class TestChatPage:
    def test_it_reads_as_a_transcript(self, operator):
        row = make_chat(
            answer(
                "Yes,\ntake a coat.", reasoning_content="So it rains.", reasoning="So it rains."
            ),
            messages=[
                {"role": "developer", "content": "Use metric units."},
                {"role": "user", "content": [{"type": "text", "text": "Rain in Oslo?"}]},
                {"role": "assistant", "tool_calls": [CALL], "reasoning": "A tool is needed."},
                {"role": "tool", "tool_call_id": "call_1", "content": "8 degrees"},
            ],
            metadata={"topic": "weather", "items": "2"},
        )

        html = page_of_row(operator, row)
        text = text_of(html)

        in_order = (
            "Finish reason stop",
            "Prompt tokens 31 (7 cached)",
            "Completion tokens 12 (5 reasoning)",
            "Metadata topic weather items 2",
            "developer Use metric units.",
            "user Rain in Oslo?",
            "assistant Reasoning, 17 characters A tool is needed. calls rain { &quot;x&quot;: 1 }",
            "tool result of rain 8 degrees",
            "assistant Reasoning, 12 characters So it rains. Yes, take a coat.",
        )
        places = [text.index(part) for part in in_order]
        assert places == sorted(places)
        assert "Yes,\ntake a coat." in html
        assert "Choice" not in text

    def test_several_choices_are_told_apart(self, operator):
        row = make_chat(answer("One."), answer("Two."), answer(None, tool_calls=[CALL]))

        text = text_of(page_of_row(operator, row))

        assert "Finish reason stop, stop, stop" in text
        assert (
            "Choice 0 assistant One. Choice 1 assistant Two. Choice 2 assistant calls rain" in text
        )

    @pytest.mark.parametrize(
        ("message", "shown"),
        [
            (answer(""), "turn-assistant"),
            (answer(None, refusal="No."), ">No.</div>"),
            (answer(None), "turn-other"),
            (answer(None, function_call=CALL["function"]), "calls <code>rain"),
            (answer(None, tool_calls=[CUSTOM]), "<pre>ls &gt; x</pre>"),
            ({"role": "function", "name": "rain", "content": "Wet"}, "result of <code>rain"),
            ({"role": "tool", "content": "Wet"}, "turn-other"),
            ({"role": "user", "content": [{"type": "text"}]}, "&quot;type&quot;"),
            ({"role": "assistant", "tool_calls": ["<b>bare"]}, "turn-other"),
            ({"content": "<b>nobody"}, "turn-other"),
            ("<b>bare", "turn-other"),
            (None, "turn-other"),
        ],
    )
    def test_a_message_of_any_shape_is_shown(self, operator, message, shown):
        row = make_chat(metadata={"a": "b"})
        StoredChatCompletion.objects.update(messages=[message])

        html = page_of_row(operator, row)

        assert shown in html[html.index("<h2>Transcript") : html.index("<h2>Raw")]
        assert "<b>bare" not in html
        assert "<b>nobody" not in html

    def test_it_and_its_request_link_to_each_other(self, operator):
        row = make_chat()
        request = make_request(response_id=row.pk, duration_s=1.25)

        html = page_of_row(operator, row)

        assert links_in(html, HISTORY) == [request.pk]
        assert "Duration 1.250 s" in text_of(html)
        assert links_in(page_of(operator, HISTORY), CHATS) == [row.pk]
        assert links_in(page_of_row(operator, request), CHATS) == [row.pk]

    def test_without_permission_for_the_history_it_shows_none_of_it(self, visitor):
        staff(visitor, "view_storedchatcompletion")
        row = make_chat()
        make_request(response_id=row.pk, duration_s=1.25)

        html = page_of_row(visitor, row)

        assert HISTORY not in html
        assert "Duration" not in text_of(html)


class TestChatList:
    def test_it_shows_the_beginnings_of_question_and_answer(self, operator):
        make_chat(
            messages=[{"role": "system", "content": "Be kind."}, {**USER, "content": "Hello " * 99}]
        )
        for call in (
            {"tool_calls": [CALL]},
            {"tool_calls": [CUSTOM]},
            {"function_call": {"name": "old", "arguments": ""}},
        ):
            make_chat(answer(None, **call))

        text = text_of(page_of(operator, CHATS))

        for part in ("Hello Hello", "What is paging?", "A table of blocks.", "31 / 12"):
            assert part in text
        for name in ("rain", "shell", "old"):
            assert f"{name}(…)" in text
        assert "Be kind." not in text
        assert text.count("Hello") < 30

    def test_it_reads_no_whole_completions_and_counts_nothing(self, operator):
        make_chat()

        with CaptureQueriesContext(connection) as queries:
            page_of(operator, CHATS)

        ours = [q["sql"] for q in queries if "storedchatcompletion" in q["sql"]]
        assert len(ours) >= 2
        assert not [sql for sql in ours if "COUNT(" in sql.upper() or "DISTINCT" in sql.upper()]
        for name in ("metadata", "messages", "completion"):
            column = f'[ ]"openai_api_storedchatcompletion"."{name}"'
            assert not any(re.search(column, sql) for sql in ours)

    @pytest.mark.parametrize(
        "query", ["model=other", "created_at__lt=2020-01-01T00:00Z", "q=chatcmpl_b"]
    )
    def test_filters_and_search_find_the_row(self, operator, query):
        make_chat()
        make_chat(row_id="chatcmpl_bb")
        wanted = make_chat(row_id="chatcmpl_b", model="other")
        at = wanted.created_at.replace(year=2019)
        StoredChatCompletion.objects.filter(pk="chatcmpl_b").update(created_at=at)

        html = page_of(operator, f"{CHATS}?{query}")

        assert links_in(html, CHATS) == [wanted.pk]

    def test_selected_rows_can_be_deleted(self, operator):
        kept, gone = make_chat(), make_chat()
        form = {"action": "delete_selected", "_selected_action": [gone.pk], "post": "yes"}

        assert operator.post(CHATS, form).status_code == 302

        assert list(StoredChatCompletion.objects.all()) == [kept]


class TestSafety:
    def test_what_a_model_or_a_client_wrote_is_never_markup(self, operator):
        function = {"name": EVIL, "arguments": EVIL}
        calls = [{"id": EVIL, "type": "function", "function": function}]
        hostile = answer(EVIL, reasoning_content=EVIL, tool_calls=calls)
        tool = {"role": "tool", "tool_call_id": EVIL, "content": EVIL}
        row = make_chat(
            hostile,
            hostile,
            messages=[{"role": EVIL, "content": EVIL}, hostile, tool],
            metadata={EVIL: EVIL},
            model=EVIL,
        )

        for html in (page_of(operator, CHATS), page_of_row(operator, row)):
            assert "&lt;script&gt;alert(1)" in html
            assert "<script>" not in html
            assert "<img src=x" not in html

    def test_a_stranger_is_sent_to_the_login(self, visitor):
        row = make_chat()

        for path in (CHATS, url_of(row), url_of(row, "delete")):
            response = visitor.get(path)
            assert response.status_code == 302
            assert response.url.startswith("/admin/login/")

    def test_nobody_edits_or_adds(self, operator):
        row = make_chat()

        assert operator.post(url_of(row), {"model": "forged"}).status_code == 403
        assert operator.get(f"{CHATS}add/").status_code == 403
        row.refresh_from_db()
        assert row.model == "toy"

    def test_one_is_deleted_only_with_permission(self, visitor):
        row = make_chat()
        staff(visitor, "view_storedchatcompletion")
        path = url_of(row, "delete")

        assert path not in page_of_row(visitor, row)
        assert visitor.post(path, {"post": "yes"}).status_code == 403
        User.objects.get().user_permissions.add(
            Permission.objects.get(codename="delete_storedchatcompletion")
        )
        assert path in page_of_row(visitor, row)
        assert visitor.post(path, {"post": "yes"}).status_code == 302
        assert not StoredChatCompletion.objects.exists()
