"""Who answers which HTTP path: the API without middleware, everything else with all of it."""

from collections.abc import Awaitable, Callable

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.exception import convert_exception_to_response
from django.http import HttpRequest, HttpResponseBase

from nanollmserve_site.guard import Application, Message, Receive, Send

API = {"v1", "health", "metrics"}


class ApiHandler(ASGIHandler):
    """Sessions, CSRF and the like mean nothing to the API and cost it about a millisecond."""

    def load_middleware(self, is_async: bool = False) -> None:
        self._view_middleware: list[object] = []
        self._template_response_middleware: list[object] = []
        self._exception_middleware: list[object] = []
        self._middleware_chain = convert_exception_to_response(
            api_headers(self._get_response_async)
        )


def api_headers(
    get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]],
) -> Callable[[HttpRequest], Awaitable[HttpResponseBase]]:
    """What is left of the middleware: the check of the host, and two headers."""

    async def respond(request: HttpRequest) -> HttpResponseBase:
        request.get_host()  # raises DisallowedHost: a web page must not reach us by DNS rebinding
        response = await get_response(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        if not response.streaming:
            response.headers.setdefault("Content-Length", str(len(response.content)))
        return response

    return respond


def http_application() -> Application:
    api, browser = ApiHandler(), ASGIStaticFilesHandler(ASGIHandler())

    async def route(scope: Message, receive: Receive, send: Send) -> None:
        first_part = scope["path"].split("/", 2)[1:2]
        handler = api if API.intersection(first_part) else browser
        await handler(scope, receive, send)

    return route
