"""Stored chat completions: each function is one read or one state change of the database.

`owner` is the key of who asks; what belongs to another one is not there.
"""

import json

from django.db import IntegrityError, connection
from django.db.models import BooleanField, QuerySet
from django.db.models.expressions import RawSQL

from openai_api.errors import InvalidRequest, NotFound
from openai_api.models import StoredChatCompletion
from openai_api.paging import list_object, page_of, unknown_after

ELSEWHERE = ("messages", "metadata", "model", "store", "stream", "stream_options", "request_id")
HAS_PAIR = (
    "EXISTS (SELECT 1 FROM json_each(openai_api_storedchatcompletion.metadata)"
    " WHERE key = %s AND value = %s)"
)
HAS_PAIR_POSTGRESQL = HAS_PAIR.replace("json_each", "json_each_text")


def save(completion: dict, body: dict, owner: int | None = None) -> None:
    """Keep what answers a body as it was sent. Raises InvalidRequest if there is one of its id."""
    row = StoredChatCompletion(
        id=completion["id"],
        key_id=owner,
        model=completion["model"],
        metadata=body.get("metadata") or {},
        messages=[
            stored_message(f"{completion['id']}-{index}", message)
            for index, message in enumerate(body["messages"])
        ],
        request={name: value for name, value in body.items() if name not in ELSEWHERE},
        completion=completion,
    )
    try:
        row.save(force_insert=True)
    except IntegrityError as exc:  # the caller chose the id
        raise _taken(row.pk) from exc


def refuse_taken(completion_id: str) -> None:
    """Raise what `save` would raise, before anything is generated."""
    if StoredChatCompletion.objects.filter(pk=completion_id).exists():
        raise _taken(completion_id)


def _taken(completion_id: str) -> InvalidRequest:
    message = f"A chat completion with id '{completion_id}' exists already."
    return InvalidRequest(message, "request_id", "invalid_value")


def stored_message(message_id: str, message: dict) -> dict:
    """A message of a request as the API lists it: text in `content`, its parts apart."""
    stored = {name: value for name, value in message.items() if value is not None}
    content, parts = message.get("content"), None
    if isinstance(content, list):
        parts = content
        content = "".join(part.get("text") or part.get("refusal") or "" for part in parts)
    if message.get("tool_calls"):
        stored["tool_calls"] = [_stored_call(call) for call in message["tool_calls"]]
    if message.get("function_call"):
        stored["function_call"] = _stored_function(message["function_call"])
    return stored | {"id": message_id, "content": content, "content_parts": parts}


def _stored_call(call: dict) -> dict:
    if call.get("type") == "custom":
        return call
    return call | {"type": "function", "function": _stored_function(call["function"])}


def _stored_function(function: dict) -> dict:
    """Arguments may be given as an object; what is listed are strings."""
    if isinstance(function["arguments"], str):
        return function
    return function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}


def find(completion_id: str, owner: int | None = None) -> StoredChatCompletion:
    """Raises NotFound."""
    row = _rows(owner).defer("messages").filter(pk=completion_id).first()
    if row is None:
        raise _not_found(completion_id)
    return row


def page(query: dict, owner: int | None = None) -> dict:
    """One page of the completions that the checked query asks for, as the API's list."""
    rows = _rows(owner).defer("messages")
    if "model" in query:
        rows = rows.filter(model=query["model"])
    rows = _with_metadata(rows, query.get("metadata", {}))
    descending = query["order"] == "desc"
    if "after" in query:
        last = _rows(owner).filter(pk=query["after"]).only("created_at").first()
        if last is None:
            raise unknown_after(query["after"])
        rows = _beyond(rows, last, descending)
    rows = rows.order_by(*(("-created_at", "-id") if descending else ("created_at", "id")))
    return list_object([row.to_dict() for row in rows[: query["limit"] + 1]], query["limit"])


def messages_page(completion_id: str, query: dict, owner: int | None = None) -> dict:
    """One page of the messages that a completion answers, as the API's list."""
    rows = _rows(owner).filter(pk=completion_id)
    messages = rows.values_list("messages", flat=True).first()
    if messages is None:
        raise _not_found(completion_id)
    return page_of(messages, query)


def update_metadata(
    completion_id: str, metadata: dict, owner: int | None = None
) -> StoredChatCompletion:
    """All of the metadata is replaced. Raises NotFound."""
    _rows(owner).filter(pk=completion_id).update(metadata=metadata)
    return find(completion_id, owner)


def delete(completion_id: str, owner: int | None = None) -> None:
    """Raises NotFound."""
    num_deleted, _ = _rows(owner).filter(pk=completion_id).delete()
    if not num_deleted:
        raise _not_found(completion_id)


def _rows(owner: int | None) -> QuerySet:
    return StoredChatCompletion.objects.filter(key=owner)


def _with_metadata(rows: QuerySet, pairs: dict[str, str]) -> QuerySet:
    # In Django's lookups "0" is an index and "a__b" a path, and SQLite's paths know no quotes.
    sql = HAS_PAIR_POSTGRESQL if connection.vendor == "postgresql" else HAS_PAIR
    for pair in pairs.items():
        rows = rows.filter(RawSQL(sql, pair, BooleanField()))
    return rows


def _beyond(rows: QuerySet, last: StoredChatCompletion, descending: bool) -> QuerySet:
    """The rows behind the last one seen; of rows of one time, the id decides."""
    at = last.created_at
    if descending:
        return rows.filter(created_at__lte=at).exclude(created_at=at, id__gte=last.pk)
    return rows.filter(created_at__gte=at).exclude(created_at=at, id__lte=last.pk)


def _not_found(completion_id: str) -> NotFound:
    return NotFound(f"Chat completion with id '{completion_id}' not found.", code="not_found")
