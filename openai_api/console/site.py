"""The admin's site, with the dashboard in front of it."""

import logging

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import path
from django.views.decorators.http import require_POST

from openai_api.console import dashboard

logger = logging.getLogger(__name__)


class ConsoleSite(admin.AdminSite):
    site_header = site_title = "nanoLLMServe"
    index_title = "Overview"
    index_template = "console/index.html"

    def get_urls(self):
        own = [
            path("live/", self.admin_view(self.live), name="live"),
            path("abort/", self.admin_view(require_POST(self.abort)), name="abort"),
        ]
        return [*own, *super().get_urls()]

    def index(self, request, extra_context=None):
        shown = dashboard.context(dashboard.sight_of(request.user))
        return super().index(request, {**shown, **(extra_context or {})})

    def live(self, request: HttpRequest) -> HttpResponse:
        """The moving part alone, for browsers that get no WebSocket."""
        return HttpResponse(dashboard.fragment(dashboard.sight_of(request.user)))

    def abort(self, request: HttpRequest) -> HttpResponse:
        if not request.user.has_perm("openai_api.abort_requestlog"):
            raise PermissionDenied
        id_ = request.POST.get("id", "")[:64]
        if dashboard.abort(id_, request.user.get_username()):
            logger.warning("%s has ended %s", request.user.get_username(), id_)
            messages.success(request, f"Ended: {id_}")
        else:
            messages.warning(request, f"Nothing runs under {id_}. It may have ended by itself.")
        return redirect("admin:index")
