"""Who answers which HTTP path: the API without middleware, everything else with all of it."""

import asyncio

from channels.routing import URLRouter
from django.conf import settings
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.exceptions import PermissionDenied, RequestAborted, SuspiciousOperation
from django.core.handlers.asgi import ASGIHandler, ASGIRequest, get_script_prefix
from django.core.handlers.exception import convert_exception_to_response
from django.http import Http404, HttpRequest, HttpResponseBase
from django.urls import path, re_path, set_script_prefix

from nanollmserve_site.door import is_another_site, same_origin
from nanollmserve_site.guard import Application, Message, Receive, Send
from openai_api.protocol.sse import Pinging

API = {"v1", "health", "metrics", "tokenize", "detokenize"}
PLAYGROUND = "/playground/v1/"  # the same views; they look at the session themselves


class ApiHandler(ASGIHandler):
    """Django without middleware: sessions, CSRF and the like cost a request about a millisecond."""

    def load_middleware(self, is_async: bool = True) -> None:
        self._view_middleware: list[object] = []
        self._template_response_middleware: list[object] = []
        self._exception_middleware: list[object] = []
        self._answer = convert_exception_to_response(self._check_host_and_answer)
        self._middleware_chain = self._answer_with_headers

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Django's, without its signals, for which each request would start a thread."""
        try:
            body = await self.read_body(receive)
        except RequestAborted:
            return
        with body:
            set_script_prefix(get_script_prefix(scope))
            request, refusal = self.create_request(scope, body)
            if request is None:
                await self.send_response(refusal, send)
                return
            answering = asyncio.create_task(self._answer_to(request, send))
            leaving = asyncio.create_task(receive())
            try:
                await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
            finally:
                left = not answering.done()
                answering.cancel()
                leaving.cancel()
                await asyncio.gather(answering, leaving, return_exceptions=True)
            if not left:
                answering.result()

    async def _answer_to(self, request: ASGIRequest, send: Send) -> None:
        await self.send_response(await self.run_get_response(request), send)

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        """Django's, without its thread to log failures in: the history has a line of each."""
        return await self._answer_with_headers(request)

    async def _answer_with_headers(self, request: HttpRequest) -> HttpResponseBase:
        response = await self._answer(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        if not response.streaming:
            response.headers.setdefault("Content-Length", str(len(response.content)))
        return response

    async def send_response(self, response: HttpResponseBase, send: Send) -> None:
        if not response.streaming:  # Django's, without its thread to close what is not open
            headers = [(k.encode("ascii"), v.encode("latin-1")) for k, v in response.items()]
            start = {"type": "http.response.start", "status": response.status_code}
            await send(start | {"headers": headers})
            await send({"type": "http.response.body", "body": response.content})
            return
        with Pinging(send, settings.API.ping_interval_s) as pinging:
            await super().send_response(response, pinging)

    async def _check_host_and_answer(self, request: HttpRequest) -> HttpResponseBase:
        from openai_api import keys  # which has models
        from openai_api.errors import permission_denied

        host = request.get_host()  # raises DisallowedHost: no page may reach us by DNS rebinding
        # A page of another site cannot read our answers, nor send a key, but could have us work.
        is_unasked = request.method == "POST" and keys.secret_in(request.headers) is None
        if is_unasked and is_another_site(request.headers.get("Origin"), host):
            refusal = PermissionDenied("Pages of another origin may not use this server.")
            return permission_denied(request, refusal)  # raised, it would fill the log
        return await self._get_response_async(request)


class StaticFiles(ASGIStaticFilesHandler):
    """Django's, for which a path that leads out of the folders is a failure of the server."""

    def serve(self, request: HttpRequest) -> HttpResponseBase:
        try:
            return super().serve(request)
        except (SuspiciousOperation, ValueError):  # the latter for a zero byte
            raise Http404 from None


def http_application() -> Application:
    api, browser = ApiHandler(), StaticFiles(ASGIHandler())

    async def route(scope: Message, receive: Receive, send: Send) -> None:
        asked = scope["path"]
        is_api = API.intersection(asked.split("/", 2)[1:2]) or asked.startswith(PLAYGROUND)
        await (api if is_api else browser)(scope, receive, send)

    return route


async def refuse(scope: Message, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close"})


def websocket_application() -> Application:
    from channels.auth import AuthMiddlewareStack  # these have models

    from openai_api.console.consumer import LiveConsumer
    from openai_api.consumers import ResponsesConsumer

    live = same_origin(AuthMiddlewareStack(LiveConsumer.as_asgi()), is_page=True)
    return URLRouter(
        [
            path("v1/responses", ResponsesConsumer.as_asgi()),
            path("admin/live/", live),
            re_path("", refuse),
        ]
    )
