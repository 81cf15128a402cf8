"""What every view of the API has in common."""

import asyncio
from contextlib import aclosing

from django.conf import settings
from django.http import HttpResponse
from rest_framework.response import Response
from rest_framework.views import APIView

from inference.service import EngineClient, get_engine
from openai_api import limits
from openai_api.errors import BodyTooLarge, as_api_error, error_body
from openai_api.history import Outcome, Record
from openai_api.models import ApiKey
from openai_api.protocol.ids import new_request_id
from openai_api.protocol.sse import Encode, EventStream, event_stream


class AsyncAPIView(APIView):
    """An APIView whose handlers are coroutines, and whose requests leave a row in the history.

    DRF's life cycle is kept: initialize, check, handle, translate what was raised, finalize.
    """

    http_method_names = ["get", "post", "delete"]
    key: ApiKey | None  # of who asks; None where there are no keys

    async def dispatch(self, request, *args, **kwargs):
        self.args, self.kwargs, self.key = args, kwargs, None
        self.headers = self.default_response_headers
        self.request = request = self.initialize_request(request, *args, **kwargs)
        self.record = new_record(request)
        try:
            for authenticator in request.authenticators:  # DRF's authentication is synchronous
                await authenticator.prepare(request)
            self.initial(request, *args, **kwargs)
            await self.record.open(self.key)  # strangers leave no row: they could fill the disk
            self._receive_body(request)
            handler = self._get_handler(request.method.lower())
            response = await handler(request, *args, **kwargs)
        except asyncio.CancelledError:
            self.record.abort_answers()
            self.record.close_later(Outcome.CANCELLED)
            raise
        except Exception as exc:
            self.record.abort_answers()
            response = self.handle_exception(exc)
        finally:
            self.record.leave_place()
        response = self.finalize_response(request, response, *args, **kwargs)
        self._add_headers(response)
        if not isinstance(response, EventStream):
            await self.record.close(Outcome.SUCCEEDED, response.status_code)
        return rendered(response) if isinstance(response, Response) else response

    def perform_authentication(self, request) -> None:
        super().perform_authentication(request)
        self.key = request.auth
        self.record.row.user = str(request.user or "")

    @property
    def engine(self) -> EngineClient:
        return get_engine()

    @property
    def owner(self) -> int | None:
        """To whom belongs what this request makes, and what it can see; None is nobody."""
        return self.key and self.key.pk

    def handle_exception(self, exc: Exception) -> Response:
        response = super().handle_exception(exc)
        self.record.fail(response.status_code, response.data["error"])
        return response

    async def stream(
        self, events, encode: Encode, *, patience_s: float | None = None
    ) -> EventStream:
        """Answer with `events`; the record is closed when they end."""
        if patience_s is None:
            patience_s = settings.API.ping_interval_s
        return await event_stream(self._recorded(events), encode, patience_s=patience_s)

    async def _recorded(self, events):
        outcome = Outcome.CANCELLED
        try:
            async with aclosing(events):
                async for event in events:
                    yield event
            outcome = Outcome.SUCCEEDED
        except Exception as exc:
            outcome, error = Outcome.FAILED, as_api_error(exc)
            self.record.fail(200, error_body(error))
            raise error from exc
        finally:
            self.record.abort_answers()  # those that nobody began to read
            if outcome == Outcome.CANCELLED:
                self.record.close_later(outcome, 200)
            else:  # whoever has read the end of a stream finds it in the history
                await self.record.close(outcome, 200)

    def _add_headers(self, response) -> None:
        response["openai-version"] = "2020-10-01"
        response["openai-processing-ms"] = str(self.record.elapsed_ms)
        if self.key is not None:
            for name, value in limits.headers(self.key).items():
                response[name] = value

    def _get_handler(self, method: str):
        if method in self.http_method_names:
            return getattr(self, method, self.http_method_not_allowed)
        return self.http_method_not_allowed

    @staticmethod
    def _receive_body(request) -> None:
        """DRF takes a body without Content-Length, a chunked upload, as empty."""
        size = len(request.body)
        if size > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
            raise BodyTooLarge()
        request.META["CONTENT_LENGTH"] = str(size)


def rendered(response: Response) -> HttpResponse:
    """DRF's as a plain one: Django would have it rendered by a thread that all requests share."""
    content = response.render().content
    return HttpResponse(content, status=response.status_code, headers=response.headers)


def new_record(request) -> Record:
    scope = request._request.scope
    return Record(
        scope.get("request_id") or new_request_id(),
        f"{request.method} /{request.resolver_match.route}",
        client=(scope.get("client") or [""])[0] or "",
        user_agent=request.META.get("HTTP_USER_AGENT", ""),
    )
