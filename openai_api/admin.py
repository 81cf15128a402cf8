"""The admin: what is stored as transcripts, and the history of requests. All for looking only.

What models and clients wrote is hostile: it goes to the page through autoescaping alone.
"""

from functools import cached_property

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db.models import Exists, OuterRef
from django.urls import reverse
from django.utils.html import format_html

from openai_api import admin_keys  # noqa: F401  (which registers its own)
from openai_api.admin_lists import (
    EXCERPT_LEN,
    ChatList,
    ConversationList,
    LookingAdmin,
    ResponseList,
    badge,
)
from openai_api.models import Conversation, RequestLog, StoredChatCompletion, StoredResponse
from openai_api.transcript import Turn, call_names, chat_items, pretty, turns_of

MAX_ANCESTORS = 50
MAX_CONTINUATIONS = 20
MAX_CONVERSATION_ITEMS = 500
NUM_RECENT_ROWS = 1000  # in which a filter looks for the values it offers

admin.site.site_header = admin.site.site_title = "nanoLLMServe"
admin.site.index_title = "Overview"


class RecentValuesFilter(admin.SimpleListFilter):
    """The values in the latest rows: to find all there are, the whole table would be read."""

    def lookups(self, request, model_admin):
        rows = model_admin.model.objects.order_by("-created_at")
        recent = rows.values_list(self.parameter_name, flat=True)[:NUM_RECENT_ROWS]
        values = sorted({*recent, self.value() or ""} - {""})
        return [(value, value) for value in values]

    def queryset(self, request, queryset):
        return queryset.filter(**{self.parameter_name: self.value()}) if self.value() else queryset


class ModelFilter(RecentValuesFilter):
    title = parameter_name = "model"


class EndpointFilter(RecentValuesFilter):
    title = parameter_name = "endpoint"


class HttpStatusFilter(admin.SimpleListFilter):
    title, parameter_name = "HTTP status", "http"
    firsts = {"2xx": 200, "4xx": 400, "5xx": 500}

    def lookups(self, request, model_admin):
        return [(name, name) for name in self.firsts]

    def queryset(self, request, queryset):
        first = self.firsts.get(self.value())
        return queryset.filter(status__range=(first, first + 99)) if first else queryset


class TranscriptAdmin(LookingAdmin):
    """Stored answers; `reader` makes of a row what its template shows."""

    search_fields = ("id__exact",)
    search_help_text = "Search by the whole id."
    reader: type

    def render_change_form(self, request, context, *args, obj, **kwargs):
        context |= {"conversation": self.reader(obj), "history": None}
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
class StoredResponseAdmin(TranscriptAdmin):
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
class StoredChatCompletionAdmin(TranscriptAdmin):
    list_display = ("created", "model", "question", "answer", "tokens")
    list_filter = (ModelFilter, "created_at")
    reader = Chat

    def get_changelist(self, request, **kwargs):
        return ChatList

    @admin.display(description="tokens in / out")
    def tokens(self, row) -> str:
        return f"{row.num_prompt_tokens} / {row.num_completion_tokens}"


@admin.register(RequestLog)
class RequestLogAdmin(LookingAdmin):
    """Nobody deletes here: the history goes by age, or it proves nothing."""

    list_display = (
        "created",
        "state",
        "status",
        "endpoint",
        "model",
        "stream",
        "finish_reason",
        "prompt",
        "completion",
        "first_token",
        "duration",
        "speed",
        "caller",
        "client",
        "response",
    )
    list_filter = (
        "key",
        EndpointFilter,
        "outcome",
        HttpStatusFilter,
        "stream",
        ModelFilter,
        "created_at",
    )
    list_select_related = ("key",)
    search_fields = ("id__exact", "response_id__exact")
    search_help_text = "Search by the whole id of a request or of a response."
    fieldsets = (
        (None, {"fields": ("id", "created", "endpoint", "model", "stream", "response")}),
        ("End", {"fields": ("state", "status", "finish_reason", "error_code", "error_message")}),
        ("Usage", {"fields": ("prompt", "completion", "first_token", "duration", "speed")}),
        ("Caller", {"fields": ("key", "user", "client", "user_agent")}),
    )

    def has_delete_permission(self, request, obj=None):
        return False

    def get_queryset(self, request):
        same_id = {"pk": OuterRef("response_id")}
        return (
            super()
            .get_queryset(request)
            .annotate(
                is_response=Exists(StoredResponse.objects.filter(**same_id)),
                is_chat=Exists(StoredChatCompletion.objects.filter(**same_id)),
            )
        )

    @admin.display(description="key", ordering="key")
    def caller(self, row) -> str:
        return str(row.key) if row.key else row.user

    @admin.display(description="outcome")
    def state(self, row) -> str:
        return badge(row.outcome, row.get_outcome_display())

    @admin.display(description="prompt tokens")
    def prompt(self, row) -> str:
        if row.num_prompt_tokens is None:
            return ""
        cached = f" ({row.num_cached_tokens} cached)" if row.num_cached_tokens else ""
        return f"{row.num_prompt_tokens}{cached}"

    @admin.display(description="completion tokens")
    def completion(self, row) -> int | None:
        return row.num_completion_tokens

    @admin.display(description="first token, ms")
    def first_token(self, row) -> str:
        seconds = row.time_to_first_token_s
        return "" if seconds is None else f"{seconds * 1000:.0f}"

    @admin.display(description="duration, s")
    def duration(self, row) -> str:
        return "" if row.duration_s is None else f"{row.duration_s:.3f}"

    @admin.display(description="tokens/s")
    def speed(self, row) -> str:
        """As the caller sees it: over the whole duration."""
        if not (row.num_completion_tokens and row.duration_s):
            return ""
        return f"{row.num_completion_tokens / row.duration_s:.1f}"

    @admin.display(description="response")
    def response(self, row) -> str:
        if not (row.is_response or row.is_chat):
            return row.response_id and format_html("{}<br>(not stored)", row.response_id)
        name = "storedresponse" if row.is_response else "storedchatcompletion"
        url = reverse(f"admin:openai_api_{name}_change", args=[quote(row.response_id)])
        return format_html('<a href="{}">{}</a>', url, row.response_id)
