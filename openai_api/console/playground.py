"""The playground: a page from which staff ask the model, in every way the API knows.

Its requests go to the API's own views, bound once more under /playground/v1/. There a session and
its CSRF token take the place of the key, so that no secret is ever in a browser.
"""

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import path, re_path, reverse

from openai_api.policies.session import MayUsePlayground, StaffSession, may_use_playground
from openai_api.views.chat import ChatCompletionsView
from openai_api.views.models import ModelsView
from openai_api.views.responses import ResponsesView
from openai_api.views.unknown import UnknownView

ID = "ID"  # stands for a row's in the addresses that the page is told
SESSION = {
    "authentication_classes": [StaffSession],
    "permission_classes": [MayUsePlayground],
    "schema": None,  # the API's description is of /v1
}
READ, ASK = SESSION | {"http_method_names": ["get"]}, SESSION | {"http_method_names": ["post"]}


def home(request: HttpRequest) -> HttpResponse:
    """GET /: the playground, and the admin for those of its staff who may not use it."""
    is_other = request.user.is_staff and not may_use_playground(request.user)
    return HttpResponseRedirect(reverse("admin:index" if is_other else "playground"))


def page(request: HttpRequest) -> HttpResponse:
    """GET /playground/; its `admin_view` sends strangers to the login."""
    if not may_use_playground(request.user):
        raise PermissionDenied
    context = {
        "title": "Playground",
        "response_url": address(request, "storedresponse"),
        "request_url": address(request, "requestlog"),
        "is_nav_sidebar_enabled": False,
    }
    return render(request, "console/playground.html", admin.site.each_context(request) | context)


def address(request: HttpRequest, model: str) -> str:
    """Where the admin shows a row, for those who may see it."""
    if not request.user.has_perm(f"openai_api.view_{model}"):
        return ""
    return reverse(f"admin:openai_api_{model}_change", args=[ID])


urlpatterns = [
    path("", admin.site.admin_view(page), name="playground"),
    path("v1/models", ModelsView.as_view(**READ)),
    path("v1/chat/completions", ChatCompletionsView.as_view(**ASK)),
    path("v1/responses", ResponsesView.as_view(**ASK)),
    re_path("^v1(/.*)?$", UnknownView.as_view(**SESSION)),
]
