"""Lists of the admin: of tables too large to be counted, whose rows only the server writes."""

from functools import cached_property

from django.contrib import admin
from django.contrib.admin.views.main import PAGE_VAR, ChangeList
from django.core.paginator import EmptyPage, Page, Paginator
from django.db.models import (
    Case,
    OuterRef,
    QuerySet,
    Subquery,
    TextField,
    Value,
    When,
)
from django.db.models.fields.json import KT
from django.db.models.functions import Coalesce, Concat, Left
from django.db.models.lookups import Exact
from django.utils.html import format_html
from django.utils.timezone import localtime

from openai_api.models import ConversationItem

NUM_RECENT_ROWS = 1000  # in which a filter looks for the values it offers
MAX_PAGE = 10**9
NUM_EXCERPT_ITEMS = 4
EXCERPT_LEN = 110


def badge(kind: str, label: str) -> str:
    return format_html('<span class="badge badge-{}">{}</span>', kind, label)


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


class LookingAdmin(admin.ModelAdmin):
    """Rows that the server writes: nobody adds or changes them, and nobody counts them."""

    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_max_show_all = 0
    list_per_page = 50
    sortable_by = ("created",)

    class Media:
        css = {"all": ("openai_api/admin.css", "console/console.css")}

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


def is_text(path: str, text: str) -> Exact:
    """Compares what is in the JSON as text: PostgreSQL does not compare JSON itself."""
    return Exact(KT(path), Value(text))


def input_text():
    """The text of the first message of the user, if it comes early; else the first text."""
    texts = [KT(f"input__{i}__content__0__text") for i in range(NUM_EXCERPT_ITEMS)]
    of_user = [
        When(is_text(f"input__{i}__role", "user"), then=text) for i, text in enumerate(texts)
    ]
    return Coalesce(Case(*of_user), texts[0], KT("input__0__output"))


def output_text():
    """The text of the first message, or the name of the first call, or the error."""
    whens = []
    for i in range(NUM_EXCERPT_ITEMS):
        item, type_ = f"output__{i}", f"output__{i}__type"
        whens.append(When(is_text(type_, "message"), then=KT(f"{item}__content__0__text")))
        call = Concat(KT(f"{item}__name"), Value("(…)", TextField()))
        whens.append(When(is_text(type_, "function_call"), then=call))
    return Case(*whens, default=KT("error__message"))


class ChatList(UncountedList):
    """As `ResponseList`, of chat completions."""

    def get_queryset(self, request, exclude_parameters=None):
        rows = super().get_queryset(request, exclude_parameters)
        return rows.only("id", "created_at", "model").annotate(
            input_excerpt=Left(chat_input_text(), EXCERPT_LEN),
            output_excerpt=Left(chat_output_text(), EXCERPT_LEN),
            num_prompt_tokens=KT("completion__usage__prompt_tokens"),
            num_completion_tokens=KT("completion__usage__completion_tokens"),
        )


def chat_input_text():
    """The text of the first message of the user, if it comes early; else the first text."""
    texts = [KT(f"messages__{i}__content") for i in range(NUM_EXCERPT_ITEMS)]
    whens = [When(is_text(f"messages__{i}__role", "user"), then=t) for i, t in enumerate(texts)]
    return Case(*whens, default=texts[0])


def chat_output_text():
    """The name of the first call, or the text, of the first choice."""
    message, whens = "completion__choices__0__message", []
    for call in ("tool_calls__0__function", "tool_calls__0__custom", "function_call"):
        name = f"{message}__{call}__name"
        then = Concat(KT(name), Value("(…)", TextField()))
        whens.append(When(**{f"{name}__isnull": False}, then=then))
    return Case(*whens, default=KT(f"{message}__content"))


class ConversationList(UncountedList):
    """As `ResponseList`, of conversations: how they began, and how far they are."""

    def get_queryset(self, request, exclude_parameters=None):
        items = ConversationItem.objects.filter(conversation=OuterRef("pk"))
        texts = [KT(f"item__{key}") for key in ("content__0__text", "output", "name")]
        text = Left(Coalesce(*texts), EXCERPT_LEN)
        rows = super().get_queryset(request, exclude_parameters)
        return rows.only("id", "created_at", "run_id").annotate(
            input_excerpt=Subquery(items.order_by("pk").values(excerpt=text)[:1]),
            output_excerpt=Subquery(items.order_by("-pk").values(excerpt=text)[:1]),
        )
