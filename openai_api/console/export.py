"""Rows as JSON, one a line: what was selected in a list of the admin, or all that it would show."""

import json
from collections.abc import AsyncIterator

import orjson
from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect, StreamingHttpResponse
from django.urls import path, reverse

from openai_api.database import read
from openai_api.models import Conversation, RequestLog, StoredChatCompletion, StoredResponse

BATCH_SIZE = 50  # rows in memory at a time; each may hold megabytes


class ExportMixin(admin.ModelAdmin):
    """For tables with a `created_at`, which are read from the newest row on."""

    actions = ("export_selected",)

    def get_urls(self):
        name = f"{self.opts.app_label}_{self.opts.model_name}_export"
        view = self.admin_site.admin_view(self.export_all)
        return [path("export/", view, name=name), *super().get_urls()]

    @admin.action(description="Export the selected rows as JSONL", permissions=["view"])
    def export_selected(self, request: HttpRequest, queryset: QuerySet) -> HttpResponseBase:
        return self._file(queryset)

    def export_all(self, request: HttpRequest) -> HttpResponseBase:
        """All that the list's filters leave."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        try:
            rows = self.get_changelist_instance(request).get_queryset(request)
        except IncorrectLookupParameters:
            name = f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist"
            return HttpResponseRedirect(reverse(name))
        return self._file(rows)

    def _file(self, rows: QuerySet) -> StreamingHttpResponse:
        disposition = f'attachment; filename="{self.opts.model_name}.jsonl"'
        return StreamingHttpResponse(
            lines(rows),
            content_type="application/jsonl; charset=utf-8",
            headers={"Content-Disposition": disposition},
        )


async def lines(rows: QuerySet) -> AsyncIterator[bytes]:
    """Newest first. Each batch is a read of its own: a slow reader holds no connection."""
    last = None
    while True:
        text, last = await read(_batch, rows, last)
        if last is None:
            return
        yield text


def _batch(rows: QuerySet, last: tuple | None) -> tuple[bytes, tuple | None]:
    """The lines after the row (created_at, id), and the last row of these; None at the end."""
    if last is not None:
        at, pk = last
        rows = rows.filter(created_at__lte=at).exclude(created_at=at, pk__gte=pk)
    # Keys first: the list may have left out columns, and added some of its own.
    rows = rows.order_by("-created_at", "-pk")
    found = list(rows.values_list("created_at", "pk")[:BATCH_SIZE])
    by_id = rows.model.objects.select_related("key").in_bulk([pk for _, pk in found])
    text = b"".join(line(by_id[pk]) for _, pk in found if pk in by_id)
    return text, found[-1] if found else None


def line(row: Model) -> bytes:
    values = SHAPES[type(row)](row)
    try:
        return orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # integers beyond 64 bits, halves of surrogate pairs
        return json.dumps(values, default=str).encode() + b"\n"


def _request(row: RequestLog) -> dict:
    names = [field.name for field in row._meta.concrete_fields if field.name != "boot_id"]
    return {name: getattr(row, name) for name in names} | _head(row)


def _response(row: StoredResponse) -> dict:
    return row.to_dict() | {"input": row.input, "background": row.background, "key": _key(row)}


def _chat(row: StoredChatCompletion) -> dict:
    return row.to_dict() | {"request": row.request, "messages": row.messages, "key": _key(row)}


def _conversation(row: Conversation) -> dict:
    items = list(row.items.values_list("item", flat=True))
    return row.to_dict() | {"items": items, "key": _key(row)}


def _head(row: Model) -> dict:
    return {"created_at": row.created_at.isoformat(), "key": _key(row)}


def _key(row: Model) -> str | None:
    return row.key and row.key.name


SHAPES = {
    RequestLog: _request,
    StoredResponse: _response,
    StoredChatCompletion: _chat,
    Conversation: _conversation,
}
