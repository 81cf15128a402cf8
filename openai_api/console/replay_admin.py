"""The page on which a stored request is asked again, and both answers are seen side by side."""

import json
from concurrent.futures import TimeoutError as StillRunning
from dataclasses import dataclass

from django import forms
from django.contrib import admin
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import path, reverse

from inference.errors import EngineError
from openai_api.console import replay
from openai_api.console.charts import Timing, timing
from openai_api.console.replay import Row
from openai_api.errors import ApiError, as_api_error
from openai_api.models import RequestLog, StoredChatCompletion
from openai_api.protocol.ids import new_request_id
from openai_api.transcript import Turn, call_names, chat_items, turns_of

FIRST_LOOK_S = 1.5  # for what is wrong, or done, at once; what takes longer has a page to wait on
PERMISSION = "openai_api.replay_requestlog"


class ReplayForm(forms.Form):
    """What is left empty is left to the server."""

    instructions = forms.CharField(
        required=False,
        strip=False,
        max_length=1_000_000,
        widget=forms.Textarea(attrs={"rows": 3, "class": "vLargeTextField"}),
    )
    temperature = forms.FloatField(required=False, min_value=0, max_value=2)
    top_p = forms.FloatField(required=False, min_value=0, max_value=1, label="Top p")
    max_tokens = forms.IntegerField(required=False, min_value=1, label="Most tokens")
    seed = forms.IntegerField(required=False, min_value=0, max_value=2**63 - 1)


LABELS = {name: field.label or name.capitalize() for name, field in ReplayForm.base_fields.items()}


@dataclass(frozen=True)
class Side:
    """One of two answers. `log` is its line of history, if there is one."""

    title: str
    row: Row | None
    log: RequestLog | None
    settings: list[tuple[str, object, bool]]  # name, value, whether the other side differs
    choices: list[list[Turn]]
    finish: str
    longest_s: float

    @property
    def timing(self) -> Timing | None:
        if self.log is None or self.log.duration_s is None:
            return None
        return timing(self.log.time_to_first_token_s, self.log.duration_s, self.longest_s)

    @property
    def tokens_per_s(self) -> float | None:
        if self.log is None or not (self.log.num_completion_tokens and self.log.duration_s):
            return None
        return self.log.num_completion_tokens / self.log.duration_s


class ReplayMixin(admin.ModelAdmin):
    def get_urls(self):
        name = f"{self.opts.app_label}_{self.opts.model_name}_replay"
        view = self.admin_site.admin_view(self.replay)
        own = [
            path("<path:object_id>/replay/", view, name=name),
            path("<path:object_id>/replay/<str:request_id>/", view, name=f"{name}ed"),
        ]
        return [*own, *super().get_urls()]

    def may_replay(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request) and request.user.has_perm(PERMISSION)

    def replay(self, request: HttpRequest, object_id: str, request_id: str = "") -> HttpResponse:
        if not self.may_replay(request):
            raise PermissionDenied
        row = self.get_object(request, unquote(object_id))
        if row is None:
            raise Http404
        log, answer = self._answer(request, row, request_id)
        form = ReplayForm(request.POST or None, initial=replay.settings_of(answer or row))
        if request.method == "POST" and form.is_valid():
            try:
                return redirect(self._replayed_url(row, self._ask(request, row, form.cleaned_data)))
            except (ApiError, EngineError) as exc:
                form.add_error(None, str(as_api_error(exc).detail))
        context = {
            **self.admin_site.each_context(request),
            "title": "Replay",
            "opts": self.opts,
            "original": row,
            "form": form,
            "log": log,
            "sides": sides(row, answer, log) if log else [],
            "may_abort": request.user.has_perm("openai_api.abort_requestlog"),
            "media": self.media,
        }
        return TemplateResponse(request, "console/replay.html", context)

    def _ask(self, request: HttpRequest, row: Row, chosen: dict) -> str:
        """The id of the request that was made. Raises ApiError or EngineError if it was refused."""
        request_id, who = new_request_id(), request.user.get_username()
        body = replay.changed(replay.body_of(row), row, chosen)
        asked = replay.begin(row, body, request_id, who)
        try:
            response = asked.result(FIRST_LOOK_S)
        except StillRunning:
            pass
        else:
            if response.status_code >= 400:
                raise ApiError(json.loads(response.content)["error"]["message"])
        self.log_change(request, row, f"Replayed as {request_id}.")
        return request_id

    def _replayed_url(self, row: Row, request_id: str) -> str:
        name = f"admin:{self.opts.app_label}_{self.opts.model_name}_replayed"
        return reverse(name, args=[quote(row.pk), request_id])

    def _answer(
        self, request: HttpRequest, row: Row, request_id: str
    ) -> tuple[RequestLog | None, Row | None]:
        """The line of a replay of this row, and what was stored of it, if it has ended well."""
        if not request_id:
            return None, None
        logs = RequestLog.objects.filter(user_agent__startswith=f"{replay.agent_of(row)} by ")
        if (log := logs.filter(pk=request_id).first()) is None:
            raise Http404
        return log, self.model.objects.filter(pk=log.response_id).first()


def sides(row: Row, answer: Row | None, log: RequestLog) -> list[Side]:
    """The stored answer and the new one, which there may not be yet."""
    before = RequestLog.objects.filter(response_id=row.pk).first()
    longest_s = max(entry.duration_s or 0 for entry in (before, log) if entry)
    mine = replay.settings_of(row)
    theirs = replay.settings_of(answer) if answer is not None else mine
    names = [name for name in mine if (mine[name], theirs[name]) not in ((None, None), ("", ""))]

    def side(title: str, row: Row | None, log: RequestLog | None, settings: dict) -> Side:
        shown = [(name, settings[name], mine[name] != theirs[name]) for name in names]
        shown = [(LABELS[name], value, differs) for name, value, differs in shown]
        choices, finish = told(row) if row is not None else ([], "")
        return Side(title, row, log, shown if row else [], choices, finish, longest_s)

    return [side("Stored answer", row, before, mine), side("Replay", answer, log, theirs)]


def told(row: Row) -> tuple[list[list[Turn]], str]:
    """Its answers as transcripts, and how they ended."""
    if isinstance(row, StoredChatCompletion):
        choices = row.completion["choices"]
        turns = [turns_of(chat_items([choice["message"]]), {}) for choice in choices]
        return turns, ", ".join(str(choice["finish_reason"]) for choice in choices)
    details = row.incomplete_details or row.error or {}
    finish = " ".join(filter(None, (row.status, details.get("reason") or details.get("code"))))
    return [turns_of(row.output, call_names(row.output))], finish
