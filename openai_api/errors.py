"""How a request fails: the classes to raise, and the one place that turns them into bytes.

ApiError                        500
    InvalidRequest              400  a parameter is missing, malformed or unsupported
        UnsupportedParameter    400
        ContextTooLong          400
        Unauthorized            401
        ModelNotAllowed         403
        NotFound                404
            ModelNotFound       404
        ConversationLocked      409  of a passing condition alone: clients try again by themselves
        BodyTooLarge            413
    Overloaded                  429
        QueueFull               429
            QueueTimedOut       429
    LimitReached                429  of the caller's key
        QuotaExceeded           429
    Unavailable                 503  loading, shutting down, or without its database
    ServerError                 500  anything unexpected
        Aborted                 500  by the operator
"""

import logging
import math

from django.core.exceptions import DisallowedHost, RequestDataTooBig, SuspiciousOperation
from django.db import Error, InterfaceError, OperationalError
from django.http import Http404, HttpRequest, JsonResponse
from rest_framework import exceptions
from rest_framework.response import Response

from inference import errors as inference_errors

logger = logging.getLogger(__name__)


class ApiError(exceptions.APIException):
    status_code = 500
    type = "server_error"
    code: str | None = None
    param: str | None = None
    default_detail = "The server had an error while processing your request."

    def __init__(
        self,
        message: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param or self.param
        self.code = code or self.code
        self.headers = headers or {}


class InvalidRequest(ApiError):
    status_code = 400
    type = "invalid_request_error"
    default_detail = "Your request is invalid."


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class Unauthorized(InvalidRequest):
    status_code = 401

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message, code=code, headers={"WWW-Authenticate": "Bearer"})


class ModelNotAllowed(InvalidRequest):
    status_code = 403
    code = "model_not_allowed"
    param = "model"


class NotFound(InvalidRequest):
    status_code = 404
    default_detail = "Not found."


class ModelNotFound(NotFound):
    code = "model_not_found"
    param = "model"


class ConversationLocked(InvalidRequest):
    status_code = 409
    code = "conversation_locked"
    param = "conversation"
    default_detail = (
        "Another process is currently operating on this conversation. "
        "Please retry in a few seconds."
    )


class BodyTooLarge(InvalidRequest):
    status_code = 413
    default_detail = "The body of your request is too large."


class Overloaded(ApiError):
    status_code = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class QueueFull(Overloaded):
    code = "queue_full"


class QueueTimedOut(QueueFull):
    code = "queue_timeout"


class LimitReached(ApiError):
    """A key's limit; without `wait_s` waiting does not help, and clients are told not to retry."""

    status_code = 429
    code = "rate_limit_exceeded"

    def __init__(self, type: str, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.type = type  # which limit it is, as at OpenAI
        self.headers = retry_after(wait_s) if wait_s else {"x-should-retry": "false"}


class QuotaExceeded(LimitReached):
    code = "insufficient_quota"

    def __init__(self) -> None:
        super().__init__(
            self.code,
            "You exceeded your current quota: the tokens that your API key may use in a day are "
            "used up until midnight UTC.",
        )


class Unavailable(ApiError):
    status_code = 503
    code = "server_is_overloaded"
    default_detail = "The server cannot answer at the moment."


class ServerError(ApiError):
    pass


class Aborted(ServerError):
    """Clients are told not to retry: whoever ended it would have to end it again."""

    code = "request_aborted"
    default_detail = "The operator of this server has ended this request."

    def __init__(self) -> None:
        super().__init__(headers={"x-should-retry": "false"})


TRANSLATIONS: dict[type[Exception], type[ApiError]] = {
    Http404: NotFound,
    SuspiciousOperation: InvalidRequest,
    RequestDataTooBig: BodyTooLarge,
    OperationalError: Unavailable,  # unreachable, locked, full, read-only
    InterfaceError: Unavailable,
    inference_errors.PromptTooLong: ContextTooLong,
    inference_errors.InvalidPrompt: InvalidRequest,
    inference_errors.InvalidGrammar: InvalidRequest,
    inference_errors.EngineOverloaded: QueueFull,
    inference_errors.QueueTimeout: QueueTimedOut,
    inference_errors.EngineNotReady: Unavailable,
    inference_errors.ShuttingDown: Unavailable,
    inference_errors.EngineFailed: ServerError,
    inference_errors.EngineLost: ServerError,
    inference_errors.ConstraintFailed: ServerError,
    inference_errors.ModelLoadError: ServerError,
    inference_errors.EngineError: ServerError,
}


def as_api_error(exc: Exception) -> exceptions.APIException:
    """The exception to show for `exc`; nothing about an unexpected one leaves the server."""
    if isinstance(exc, exceptions.APIException):
        return exc
    for cls in type(exc).__mro__:
        if (error := TRANSLATIONS.get(cls)) is not None:
            if isinstance(exc, Error):
                logger.error("the database failed: %s", exc)
            return error(_message(exc, error), headers=_retry_headers(exc))
    logger.error("unexpected error", exc_info=exc)
    return ServerError()


def error_body(error: exceptions.APIException) -> dict:
    """The error in OpenAI's shape, without the envelope."""
    if isinstance(error, exceptions.ValidationError):
        return {"type": "invalid_request_error", **first_problem(error.detail)}
    return {
        "message": str(error.detail),
        "type": getattr(error, "type", _type_of(error)),
        "param": getattr(error, "param", None),
        "code": getattr(error, "code", None),
    }


def exception_handler(exc: Exception, context: dict) -> Response:
    """DRF's hook: every failure of a view becomes this."""
    error = as_api_error(exc)
    headers = getattr(error, "headers", {})
    return Response({"error": error_body(error)}, status=error.status_code, headers=headers)


def first_problem(detail, path: str = "") -> dict:
    """The first leaf of a ValidationError's tree: its message, JS-like path and code."""
    if isinstance(detail, dict):
        key, child = next(iter(detail.items()))
        step = "" if key == "non_field_errors" else f".{key}" if path else str(key)
        return first_problem(child, path + step)
    if isinstance(detail, list):
        return first_problem(detail[0], path)
    message = str(detail)
    if detail.code == "required":
        message = f"Missing required parameter: '{path}'."
    return {"message": message, "param": path or None, "code": CODES.get(detail.code, detail.code)}


CODES = {"required": "missing_required_parameter", "null": "invalid_type", "invalid": None}


def bad_request(request: HttpRequest, exception: Exception) -> JsonResponse:
    """Django's handler400: what fails before a view."""
    if isinstance(exception, DisallowedHost):
        return _json(
            InvalidRequest(
                "The Host of your request is not a name of this server; its operator can add it "
                "to NANOLLM_ALLOWED_HOSTS."
            )
        )
    return _json(InvalidRequest())


def permission_denied(request: HttpRequest, exception: Exception) -> JsonResponse:
    error = InvalidRequest(str(exception) or "You are not allowed to do this.")
    error.status_code = 403
    return _json(error)


def not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    return _json(NotFound(f"Invalid URL ({request.method} {request.path})"))


def server_error(request: HttpRequest) -> JsonResponse:
    return _json(ServerError())


def _json(error: ApiError) -> JsonResponse:
    return JsonResponse({"error": error_body(error)}, status=error.status_code)


def _message(exc: Exception, error: type[ApiError]) -> str | None:
    """Ours are written for the caller; a framework's are not, nor is what concerns our inside."""
    ours = isinstance(exc, inference_errors.EngineError) and error is not ServerError
    return str(exc) if ours else None


def _retry_headers(exc: Exception) -> dict[str, str]:
    seconds = 1 if isinstance(exc, Error) else getattr(exc, "retry_after_s", None)
    return {} if seconds is None else retry_after(seconds)


def retry_after(seconds: float) -> dict[str, str]:
    """Whole seconds, at least one: the SDK ignores 0, and gives up beyond 120."""
    return {"Retry-After": str(min(max(math.ceil(seconds), 1), 120))}


def _type_of(error: exceptions.APIException) -> str:
    return "invalid_request_error" if error.status_code < 500 else "server_error"
