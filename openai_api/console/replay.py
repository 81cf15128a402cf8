"""A stored request once more, with other settings: through the API's own views, as nobody's.

So it is checked, queued, answered, stored and written into the history as any request, and is
neither charged to the key that asked first nor shown to it.
"""

import asyncio
import json
from concurrent.futures import Future
from io import BytesIO

from django.core.handlers.asgi import ASGIRequest
from django.urls import resolve
from rest_framework.authentication import BaseAuthentication
from rest_framework.response import Response

from inference.service import get_engine
from openai_api import background
from openai_api import response_rows as rows
from openai_api.models import StoredChatCompletion, StoredResponse
from openai_api.prompts import served_names

Row = StoredResponse | StoredChatCompletion

# What is echoed of a Response and says nothing of what was asked, or is decided anew.
NOT_REPEATED = ("background", "store", "service_tier", "conversation", "previous_response_id")
FIRST_ROLES = ("system", "developer")
MAX_METADATA = 16
SEED = "replay_seed"  # which a Response does not echo


class Nobody(BaseAuthentication):
    """The operator asks, who has no key."""

    async def prepare(self, request):
        pass

    def authenticate(self, request):
        return None


def agent_of(row: Row) -> str:
    """What the history has as the user agent of a row's replays; who asked comes after it."""
    return f"replay of {row.pk}"


def begin(row: Row, body: dict, request_id: str, who: str) -> Future[Response]:
    """Ask it, in the background's event loop. Failures come as responses with their status."""
    is_chat = isinstance(row, StoredChatCompletion)
    path = "/v1/chat/completions" if is_chat else "/v1/responses"
    data = json.dumps(body).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(data)),
        "user-agent": f"{agent_of(row)} by {who}",
    }
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("admin", 0),
        "request_id": request_id,
    }
    match = resolve(path)
    request = ASGIRequest(scope, BytesIO(data))
    request.resolver_match = match
    view = match.func.view_class.as_view(authentication_classes=[Nobody])

    async def ask() -> Response:
        return await view(request)

    return asyncio.run_coroutine_threadsafe(ask(), background.loop())


def body_of(row: Row) -> dict:
    """The request as it could be sent today. Raises InvalidRequest if what it goes on from is gone.

    The whole conversation becomes its input: what came before belongs to the key that asked.
    """
    if isinstance(row, StoredChatCompletion):
        body = row.request | {"messages": [_sent(message) for message in row.messages]}
    else:
        echo = {name: value for name, value in row.request.items() if name not in NOT_REPEATED}
        items = rows.context_of(row) + row.input
        body = echo | {"input": [_without_id(item) for item in items]}
    body = {name: value for name, value in body.items() if value is not None}
    names = served_names(get_engine().model)
    metadata = dict(row.request.get("metadata") or getattr(row, "metadata", None) or {})
    if len(metadata) < MAX_METADATA:
        metadata["replay_of"] = row.pk
    model = row.model if row.model in names else names[0]
    return body | {"model": model, "metadata": metadata, "store": True}


def _sent(message: dict) -> dict:
    """A stored message as it was sent."""
    kept = {name: value for name, value in message.items() if name not in ("id", "content_parts")}
    return kept | {"content": message.get("content_parts") or message.get("content")}


def _without_id(item: dict) -> dict:
    """A copy is an item of its own."""
    return {name: value for name, value in item.items() if name != "id"}


LIMITS = {  # on the length of an answer, by endpoint
    StoredResponse: ("max_output_tokens",),
    StoredChatCompletion: ("max_completion_tokens", "max_tokens"),
}


def settings_of(row: Row) -> dict:
    """What of it can be chosen anew, as it was."""
    request = row.request
    limits = (request.get(name) for name in LIMITS[type(row)])
    return {
        "instructions": _instructions(row),
        "temperature": request.get("temperature"),
        "top_p": request.get("top_p"),
        "max_tokens": next((limit for limit in limits if limit is not None), None),
        "seed": request.get("seed", (request.get("metadata") or {}).get(SEED)),
    }


def _instructions(row: Row) -> str:
    if isinstance(row, StoredResponse):
        return row.request.get("instructions") or ""
    first = row.messages[0] if row.messages else {}
    return (first.get("content") or "") if first.get("role") in FIRST_ROLES else ""


def changed(body: dict, row: Row, chosen: dict) -> dict:
    """The body with the settings that were chosen; what is None is left to the server."""
    limit, *others = LIMITS[type(row)]
    body = {name: value for name, value in body.items() if name not in (limit, *others)}
    wanted = {name: chosen[name] for name in ("temperature", "top_p", "seed")}
    wanted[limit] = chosen["max_tokens"]
    if isinstance(row, StoredResponse):
        wanted["instructions"] = chosen["instructions"] or None
        if chosen["seed"] is not None and len(body["metadata"]) < MAX_METADATA:
            body["metadata"] = body["metadata"] | {SEED: str(chosen["seed"])}
    elif chosen["instructions"] != _instructions(row):
        body["messages"] = _instructed(body["messages"], chosen["instructions"])
    kept = {name: value for name, value in body.items() if name not in wanted}
    return kept | {name: value for name, value in wanted.items() if value is not None}


def _instructed(messages: list[dict], text: str) -> list[dict]:
    has_first = bool(messages) and messages[0]["role"] in FIRST_ROLES
    role = messages[0]["role"] if has_first else FIRST_ROLES[0]
    rest = messages[1:] if has_first else messages
    return [{"role": role, "content": text}, *rest] if text else rest
