"""Who has logged in may ask from our own pages: a session and its CSRF token instead of a key."""

from importlib import import_module

from django.conf import settings
from django.contrib.auth import get_user
from rest_framework.authentication import SessionAuthentication
from rest_framework.permissions import BasePermission

from openai_api.database import read

USE_PLAYGROUND = "openai_api.use_playground"


class StaffSession(SessionAuthentication):
    """`request.user` is the user of the admin's session; there is no key, so no limit of one."""

    async def prepare(self, request) -> None:
        await read(load_user, request._request)

    def enforce_csrf(self, request) -> None:
        """On Django's own request: DRF's would take the body for a form, and itself for read."""
        request.body  # noqa: B018 - kept by this, whatever the check reads
        super().enforce_csrf(request._request)


class MayUsePlayground(BasePermission):
    def has_permission(self, request, view) -> bool:
        return request.user is not None and may_use_playground(request.user)


def load_user(request) -> None:
    """The API's handler has no middleware: this is what two of the admin's do, and no more."""
    engine = import_module(settings.SESSION_ENGINE)
    request.session = engine.SessionStore(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
    request.user = get_user(request)
    may_use_playground(request.user)  # the user remembers: later there is no database to ask


def may_use_playground(user) -> bool:
    return user.is_active and user.is_staff and user.has_perm(USE_PLAYGROUND)
