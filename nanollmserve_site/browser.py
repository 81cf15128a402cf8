"""What protects people with browsers: which content a page may hold, how often a login may fail.

Middleware of the admin and the docs; the API's paths go past it.
"""

import logging
import math
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable

from django.conf import settings
from django.contrib.auth.signals import user_logged_in
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

logger = logging.getLogger("nanollmserve")

Handler = Callable[[HttpRequest], HttpResponse]

# No inline scripts or styles: what a model or a client wrote could not run even unescaped.
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
WINDOW_S = 10 * 60
MAX_PER_USER = 10
MAX_PER_ADDRESS = 30
MAX_REMEMBERED = 10_000

clock = time.monotonic


def content_security_policy(get_response: Handler) -> Handler:
    def with_policy(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response

    return with_policy


class Attempts:
    """When somebody tried to log in, as long as that counts. A success takes them back."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], deque[float]] = {}
        self._lock = threading.Lock()

    def take(self, limits: list[tuple[tuple[str, str], int]]) -> float:
        """Count an attempt and return 0; or count none, and return how long to wait."""
        with self._lock:
            wait_s = max(self.wait_s(who, limit) for who, limit in limits)
            if wait_s <= 0:
                for who, _ in limits:
                    self.add(who)
            return wait_s

    def wait_s(self, who: tuple[str, str], limit: int) -> float:
        """How long until the next attempt; what is within the limit is 0."""
        times = self._times.get(who, deque())
        while times and times[0] <= clock() - WINDOW_S:
            times.popleft()
        return 0.0 if len(times) < limit else times[-limit] + WINDOW_S - clock()

    def add(self, who: tuple[str, str]) -> None:
        times = self._times.pop(who, deque())
        times.append(clock())
        self._times[who] = times  # the last one now
        while len(self._times) > MAX_REMEMBERED:
            del self._times[next(iter(self._times))]

    def forget(self, who: tuple[str, str]) -> None:
        self._times.pop(who, None)

    def clear(self) -> None:
        self._times.clear()


attempts = Attempts()


def login_throttle(get_response: Handler) -> Handler:
    """Attempts count before the password is looked at: many at once are no way around it."""

    def throttled(request: HttpRequest) -> HttpResponse:
        if request.method != "POST" or request.path != reverse("admin:login"):
            return get_response(request)
        if (wait_s := attempts.take(limits_of(request))) > 0:
            logger.warning("too many logins as %.40r from %s", *names_of(request))
            minutes = math.ceil(wait_s / 60)
            return HttpResponse(
                f"Too many attempts to log in. Try again in {minutes} minutes.\n",
                content_type="text/plain; charset=utf-8",
                status=429,
                headers={"Retry-After": str(math.ceil(wait_s))},
            )
        return get_response(request)

    return throttled


def names_of(request: HttpRequest) -> tuple[str, str]:
    """The user and the address of a login."""
    user = unicodedata.normalize("NFKC", request.POST.get("username", ""))  # as Django does
    user = user.strip().lower()[:150]
    address = request.META.get("REMOTE_ADDR", "")
    if settings.SERVER.tls:  # the proxy's own address otherwise; it adds whom it speaks for last
        address = request.META.get("HTTP_X_FORWARDED_FOR", address).rpartition(",")[2].strip()
    return user, address[:100]


def limits_of(request: HttpRequest) -> list[tuple[tuple[str, str], int]]:
    user, address = names_of(request)
    return [(("user", user), MAX_PER_USER), (("address", address), MAX_PER_ADDRESS)]


def forget_attempts(sender: object, request: HttpRequest | None, **kwargs: object) -> None:
    if request is not None:
        for who, _ in limits_of(request):
            attempts.forget(who)


user_logged_in.connect(forget_attempts)
