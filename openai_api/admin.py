"""The admin: stored responses as transcripts, and the history of requests. Both for looking only.

What models and clients wrote is hostile: it goes to the page through autoescaping alone.
"""

from functools import cached_property

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.admin.views.main import PAGE_VAR, ChangeList
from django.core.paginator import EmptyPage, Page, Paginator
from django.db.models import Case, Exists, OuterRef, QuerySet, TextField, Value, When
from django.db.models.fields.json import KT
from django.db.models.functions import Coalesce, Concat, Left
from django.urls import reverse
from django.utils.html import format_html
from django.utils.timezone import localtime

from openai_api.models import RequestLog, StoredResponse
from openai_api.transcript import Turn, call_names, pretty, turns_of

MAX_PAGE = 10**9
MAX_ANCESTORS = 50
MAX_CONTINUATIONS = 20
NUM_RECENT_ROWS = 1000  # in which a filter looks for the values it offers
NUM_EXCERPT_ITEMS = 4
EXCERPT_LEN = 110

admin.site.site_header = admin.site.site_title = "nanoLLMServe"
admin.site.index_title = "Overview"


class UncountedPaginator(Paginator):
    """One page of a table too large to be counted, found by its ids and one id more.

    `count` is the number of rows known to exist: all of them only on the last page.
    """

    def __init__(self, object_list, per_page: int, number: int):
        super().__init__(object_list, per_page)
        self.number = number
        self.start = (number - 1) * per_page

    @cached_property
    def ids(self) -> list[str]:
        """Ids first: in one query, columns would be computed for the skipped rows as well."""
        stop = self.start + self.per_page + 1
        return list(self.object_list.values_list("pk", flat=True)[self.start : stop])

    @property
    def has_more(self) -> bool:
        return len(self.ids) > self.per_page

    @property
    def rows(self) -> QuerySet:
        return self.object_list.filter(pk__in=self.ids[: self.per_page])

    @cached_property
    def count(self) -> int:
        # A page too far claims a row nevertheless: with fewer rows than fit one page, the change
        # list would not ask for the page, and not learn that it does not exist.
        return self.start + (len(self.ids) or min(self.start, 1))

    def page(self, number: int) -> Page:
        if number != self.number or not self.ids:
            raise EmptyPage
        return self._get_page(self.rows, number, self)


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


class LookingAdmin(admin.ModelAdmin):
    """Rows that the server writes: nobody adds or changes them, and nobody counts them."""

    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_max_show_all = 0
    list_per_page = 50
    sortable_by = ("created",)

    class Media:
        css = {"all": ("openai_api/admin.css",)}

    def get_paginator(self, request, queryset, per_page, *args, **kwargs):
        given = request.GET.get(PAGE_VAR, "1")
        number = int(given) if given.isdecimal() else 1
        return UncountedPaginator(queryset, per_page, min(max(number, 1), MAX_PAGE))

    def get_changelist(self, request, **kwargs):
        return UncountedList

    def has_add_permission(self, request):
        return False

    def has_change_permission(self, request, obj=None):
        return False

    @admin.display(ordering="created_at")
    def created(self, row) -> str:
        return f"{localtime(row.created_at):%Y-%m-%d %H:%M:%S}"


class UncountedList(ChangeList):
    def get_results(self, request):
        super().get_results(request)
        self.result_list = self.paginator.rows  # where all rows fit one page, it would search again
        # The search form tells the count if the two differ; ours is only what is known so far.
        self.full_result_count = self.result_count


class ResponseList(UncountedList):
    """Reads of each row what the list shows: the items may be megabytes."""

    def get_queryset(self, request, exclude_parameters=None):
        rows = super().get_queryset(request, exclude_parameters)
        return rows.only("id", "created_at", "status", "model", "usage").annotate(
            input_excerpt=Left(input_text(), EXCERPT_LEN),
            output_excerpt=Left(output_text(), EXCERPT_LEN),
        )


def input_text():
    """The text of the first message of the user, if it comes early; else the first text."""
    texts = [KT(f"input__{i}__content__0__text") for i in range(NUM_EXCERPT_ITEMS)]
    of_user = [When(**{f"input__{i}__role": "user"}, then=text) for i, text in enumerate(texts)]
    return Coalesce(Case(*of_user), texts[0], KT("input__0__output"))


def output_text():
    """The text of the first message, or the name of the first call, or the error."""
    whens = []
    for i in range(NUM_EXCERPT_ITEMS):
        item, type_ = f"output__{i}", f"output__{i}__type"
        whens.append(When(**{type_: "message"}, then=KT(f"{item}__content__0__text")))
        call = Concat(KT(f"{item}__name"), Value("(…)", TextField()))
        whens.append(When(**{type_: "function_call"}, then=call))
    return Case(*whens, default=KT("error__message"))


@admin.register(StoredResponse)
class StoredResponseAdmin(LookingAdmin):
    list_display = ("created", "state", "model", "question", "answer", "tokens")
    list_filter = ("status", ModelFilter, "created_at")
    search_fields = ("id__exact",)
    search_help_text = "Search by the whole id."

    def get_changelist(self, request, **kwargs):
        return ResponseList

    def render_change_form(self, request, context, *args, obj, **kwargs):
        context |= {"conversation": Conversation(obj), "history": None}
        if request.user.has_perm("openai_api.view_requestlog"):
            context["history"] = RequestLog.objects.filter(response_id=obj.pk).first()
        return super().render_change_form(request, context, *args, obj=obj, **kwargs)

    @admin.display(ordering="created_at")
    def created(self, row) -> str:
        return format_html("{} <small>{}</small>", super().created(row), row.pk)

    @admin.display(description="status")
    def state(self, row) -> str:
        return badge(row.status, row.get_status_display())

    @admin.display(description="input")
    def question(self, row) -> str:
        return excerpt(row.input_excerpt)

    @admin.display(description="output")
    def answer(self, row) -> str:
        return excerpt(row.output_excerpt)

    @admin.display(description="tokens in / out")
    def tokens(self, row) -> str:
        usage = row.usage
        return f"{usage['input_tokens']} / {usage['output_tokens']}" if usage else ""


def badge(kind: str, label: str) -> str:
    return format_html('<span class="badge badge-{}">{}</span>', kind, label)


def excerpt(text: str | None) -> str:
    return (text or "") + ("…" if len(text or "") == EXCERPT_LEN else "")


class Conversation:
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
        "client",
        "response",
    )
    list_filter = (EndpointFilter, "outcome", HttpStatusFilter, "stream", ModelFilter, "created_at")
    search_fields = ("id__exact", "response_id__exact")
    search_help_text = "Search by the whole id of a request or of a response."
    fieldsets = (
        (None, {"fields": ("id", "created", "endpoint", "model", "stream", "response")}),
        ("End", {"fields": ("state", "status", "finish_reason", "error_code", "error_message")}),
        ("Usage", {"fields": ("prompt", "completion", "first_token", "duration", "speed")}),
        ("Caller", {"fields": ("client", "user_agent")}),
    )

    def has_delete_permission(self, request, obj=None):
        return False

    def get_queryset(self, request):
        stored = StoredResponse.objects.filter(pk=OuterRef("response_id"))
        return super().get_queryset(request).annotate(is_stored=Exists(stored))

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
        if not row.is_stored:
            return row.response_id and format_html("{}<br>(not stored)", row.response_id)
        url = reverse("admin:openai_api_storedresponse_change", args=[quote(row.response_id)])
        return format_html('<a href="{}">{}</a>', url, row.response_id)
