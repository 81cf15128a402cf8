"""The admin: what is stored as transcripts, and the history of requests. All for looking only.

What models and clients wrote is hostile: it goes to the page through autoescaping alone.
"""

from functools import cached_property

from django.contrib import admin
from django.utils.html import format_html

from openai_api import admin_history, admin_keys  # noqa: F401  (which register their own)
from openai_api.admin_lists import (
    EXCERPT_LEN,
    ChatList,
    ConversationList,
    LookingAdmin,
    ModelFilter,
    ResponseList,
    badge,
)
from openai_api.console.export import ExportMixin
from openai_api.console.replay_admin import ReplayMixin
from openai_api.models import Conversation, RequestLog, StoredChatCompletion, StoredResponse
from openai_api.transcript import Turn, call_names, chat_items, pretty, turns_of

MAX_ANCESTORS = 50
MAX_CONTINUATIONS = 20
MAX_CONVERSATION_ITEMS = 500


class TranscriptAdmin(ExportMixin, LookingAdmin):
    """Stored answers; `reader` makes of a row what its template shows."""

    search_fields = ("id__exact",)
    search_help_text = "Search by the whole id."
    change_list_template = "console/export_list.html"
    reader: type

    def render_change_form(self, request, context, *args, obj, **kwargs):
        context |= {"conversation": self.reader(obj), "history": None}
        context["may_replay"] = isinstance(self, ReplayMixin) and self.may_replay(request)
        if request.user.has_perm("openai_api.view_requestlog"):
            context["history"] = RequestLog.objects.filter(response_id=obj.pk).first()
        return super().render_change_form(request, context, *args, obj=obj, **kwargs)

    @admin.display(ordering="created_at")
    def created(self, row) -> str:
        return format_html("{} <small>{}</small>", super().created(row), row.pk)

    @admin.display(description="input")
    def question(self, row) -> str:
        return excerpt(row.input_excerpt)

    @admin.display(description="output")
    def answer(self, row) -> str:
        return excerpt(row.output_excerpt)


def excerpt(text: str | None) -> str:
    return (text or "") + ("…" if len(text or "") == EXCERPT_LEN else "")


class ResponseChain:
    """A response, what came before it and what comes after, for the template."""

    def __init__(self, row: StoredResponse):
        self.row = row
        self.ancestors: list[StoredResponse] = []  # oldest first
        self.earlier_id = row.previous_id  # the first one that `ancestors` lacks
        self.is_earlier_deleted = False
        rows = StoredResponse.objects.only("previous", "created_at", "status", "input", "output")
        while self.earlier_id and len(self.ancestors) < MAX_ANCESTORS:
            ancestor = rows.filter(pk=self.earlier_id).first()
            if ancestor is None:
                self.is_earlier_deleted = True
                break
            self.ancestors.insert(0, ancestor)
            self.earlier_id = ancestor.previous_id

    @cached_property
    def continuations(self) -> list[StoredResponse]:
        rows = self.row.continuations.only("created_at", "status")
        return list(rows[:MAX_CONTINUATIONS])

    @cached_property
    def names(self) -> dict[str, str]:
        rows = [*self.ancestors, self.row]
        return call_names(item for row in rows for item in row.input + row.output)

    def inherited(self) -> list[tuple[StoredResponse, list[Turn]]]:
        return [(row, turns_of(row.input + row.output, self.names)) for row in self.ancestors]

    def turns(self) -> list[Turn]:
        return turns_of(self.row.input + self.row.output, self.names)

    def duration_s(self) -> float | None:
        """For want of a history. The end is stored in whole seconds."""
        end = self.row.completed_at
        return max((end - self.row.created_at).total_seconds(), 0) if end else None

    def raw(self) -> list[tuple[str, str]]:
        names = ("request", "input", "output")
        return [(name, pretty(getattr(self.row, name))) for name in names]


class ConversationSoFar:
    """A conversation, for the template: its newest items, if there are very many."""

    def __init__(self, row: Conversation):
        self.row = row
        newest = row.items.order_by("-pk").values_list("item", flat=True)
        items = list(newest[: MAX_CONVERSATION_ITEMS + 1])
        self.has_earlier = len(items) > MAX_CONVERSATION_ITEMS
        self.items = items[:MAX_CONVERSATION_ITEMS][::-1]

    def turns(self) -> list[Turn]:
        return turns_of(self.items, call_names(self.items))

    def metadata(self) -> list[tuple[str, str]]:
        return list(self.row.metadata.items())

    def raw(self) -> list[tuple[str, str]]:
        return [("items", pretty(self.items)), ("metadata", pretty(self.row.metadata))]


class Chat:
    """A chat completion, for the template."""

    def __init__(self, row: StoredChatCompletion):
        self.row = row
        self.items = chat_items(row.messages)

    def turns(self) -> list[Turn]:
        return turns_of(self.items, call_names(self.items))

    def choices(self) -> list[list[Turn]]:
        """Each of them another answer to the same messages."""
        choices = self.row.completion["choices"]
        return [turns_of(chat_items([choice["message"]]), {}) for choice in choices]

    def finish_reasons(self) -> list[str]:
        return [choice["finish_reason"] for choice in self.row.completion["choices"]]

    def metadata(self) -> list[tuple[str, str]]:
        """A template would look for a key of the name "items" first."""
        return list(self.row.metadata.items())

    def raw(self) -> list[tuple[str, str]]:
        names = ("messages", "completion", "metadata")
        return [(name, pretty(getattr(self.row, name))) for name in names]


@admin.register(StoredResponse)
class StoredResponseAdmin(ReplayMixin, TranscriptAdmin):
    list_display = ("created", "state", "model", "question", "answer", "tokens")
    list_filter = ("status", ModelFilter, "created_at")
    reader = ResponseChain

    def get_changelist(self, request, **kwargs):
        return ResponseList

    @admin.display(description="status")
    def state(self, row) -> str:
        return badge(row.status, row.get_status_display())

    @admin.display(description="tokens in / out")
    def tokens(self, row) -> str:
        usage = row.usage
        return f"{usage['input_tokens']} / {usage['output_tokens']}" if usage else ""


@admin.register(Conversation)
class ConversationAdmin(TranscriptAdmin):
    list_display = ("created", "state", "question", "answer")
    list_filter = ("created_at",)
    reader = ConversationSoFar

    def get_changelist(self, request, **kwargs):
        return ConversationList

    @admin.display(description="status")
    def state(self, row) -> str:
        return badge("running", "in use") if row.run_id else ""

    @admin.display(description="first item")
    def question(self, row) -> str:
        return super().question(row)

    @admin.display(description="last item")
    def answer(self, row) -> str:
        return super().answer(row)


@admin.register(StoredChatCompletion)
class StoredChatCompletionAdmin(ReplayMixin, TranscriptAdmin):
    list_display = ("created", "model", "question", "answer", "tokens")
    list_filter = (ModelFilter, "created_at")
    reader = Chat

    def get_changelist(self, request, **kwargs):
        return ChatList

    @admin.display(description="tokens in / out")
    def tokens(self, row) -> str:
        return f"{row.num_prompt_tokens} / {row.num_completion_tokens}"
