"""The admin of the history: what was asked, by whom, how it ended and how long it took."""

from datetime import date, datetime, time, timedelta

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db.models import Exists, OuterRef
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.html import format_html
from django.utils.timezone import get_current_timezone, localdate

from openai_api.admin_lists import (
    EndpointFilter,
    LookingAdmin,
    ModelFilter,
    UncountedList,
    badge,
)
from openai_api.console.charts import share, timing
from openai_api.console.export import ExportMixin
from openai_api.console.replay_admin import PERMISSION
from openai_api.models import RequestLog, StoredChatCompletion, StoredResponse

NUM_DAYS = 7  # that can be chosen one by one; a link may name any


class HttpStatusFilter(admin.SimpleListFilter):
    title, parameter_name = "HTTP status", "http"
    firsts = {"2xx": 200, "4xx": 400, "5xx": 500}

    def lookups(self, request, model_admin):
        return [(name, name) for name in self.firsts]

    def queryset(self, request, queryset):
        first = self.firsts.get(self.value())
        return queryset.filter(status__range=(first, first + 99)) if first else queryset


class DayFilter(admin.SimpleListFilter):
    title = parameter_name = "day"

    def lookups(self, request, model_admin):
        days = [localdate() - timedelta(days=i) for i in range(NUM_DAYS)]
        if (chosen := self._chosen()) is not None and chosen not in days:
            days.append(chosen)
        return [(day.isoformat(), "today" if day == localdate() else str(day)) for day in days]

    def queryset(self, request, queryset):
        if (day := self._chosen()) is None:
            return queryset
        start = datetime.combine(day, time.min, get_current_timezone())
        return queryset.filter(created_at__gte=start, created_at__lt=start + timedelta(days=1))

    def _chosen(self) -> date | None:
        try:
            return date.fromisoformat(self.value() or "")
        except ValueError:
            return None


class RequestList(UncountedList):
    """Its bars are as long as they are beside the longest of the page."""

    def get_results(self, request):
        super().get_results(request)
        rows = list(self.result_list)
        longest_s = max((row.duration_s or 0 for row in rows), default=0)
        fastest = max((tokens_per_s(row) or 0 for row in rows), default=0)
        for row in rows:
            row.longest_s, row.fastest = longest_s, fastest


def tokens_per_s(row: RequestLog) -> float | None:
    """As the caller sees it: over the whole duration."""
    if not (row.num_completion_tokens and row.duration_s):
        return None
    return row.num_completion_tokens / row.duration_s


def bar(text: str, first: float, rest: float) -> str:
    context = {"text": text, "first": first, "rest": rest}
    return render_to_string("console/figure.html", context)


@admin.register(RequestLog)
class RequestLogAdmin(ExportMixin, LookingAdmin):
    """Nobody deletes here: the history goes by age, or it proves nothing."""

    list_display = (
        "created",
        "end",
        "endpoint",
        "caller",
        "prompt",
        "completion",
        "first_token",
        "duration",
        "speed",
        "model",
        "finish_reason",
        "stream",
        "client",
        "response",
    )
    list_filter = (
        "key",
        EndpointFilter,
        "outcome",
        HttpStatusFilter,
        DayFilter,
        "stream",
        ModelFilter,
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
    change_list_template = "console/export_list.html"
    change_form_template = "console/request.html"

    def has_delete_permission(self, request, obj=None):
        return False

    def get_changelist(self, request, **kwargs):
        return RequestList

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

    @admin.display(description="outcome")
    def end(self, row) -> str:
        return format_html("{} {}", self.state(row), row.status or "")

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
        """Its bar begins with the time until the first token."""
        if row.duration_s is None:
            return ""
        longest_s = getattr(row, "longest_s", row.duration_s)
        parts = timing(row.time_to_first_token_s, row.duration_s, longest_s)
        return bar(f"{row.duration_s:.3f}", parts.first, parts.rest)

    @admin.display(description="tokens/s")
    def speed(self, row) -> str:
        if (speed := tokens_per_s(row)) is None:
            return ""
        fastest = getattr(row, "fastest", None)
        return bar(f"{speed:.1f}", 0, share(speed, fastest)) if fastest else f"{speed:.1f}"

    @admin.display(description="response")
    def response(self, row) -> str:
        if not (url := self._stored_url(row, "change")):
            return row.response_id and format_html("{}<br>(not stored)", row.response_id)
        return format_html('<a href="{}">{}</a>', url, row.response_id)

    @staticmethod
    def _stored_url(row: RequestLog, view: str) -> str:
        """A page of what was stored of a request, if anything was."""
        if not (row.is_response or row.is_chat):
            return ""
        name = "storedresponse" if row.is_response else "storedchatcompletion"
        return reverse(f"admin:openai_api_{name}_{view}", args=[quote(row.response_id)])

    def render_change_form(self, request, context, *args, obj, **kwargs):
        """With what can be done: ask it again, or end it."""
        user = request.user
        if user.has_perm(PERMISSION):
            context["replay_url"] = self._stored_url(obj, "replay")
        is_running = obj.outcome == RequestLog.Outcome.RUNNING
        context["may_abort"] = is_running and user.has_perm("openai_api.abort_requestlog")
        return super().render_change_form(request, context, *args, obj=obj, **kwargs)
