"""Idempotency-Key: a POST that is sent again gets the answer of the first one.

The row of a response has the key from before anything is generated, and the database sees to it
that no two have the same. A key becomes free again if its response could not be begun, or if its
turn never came, or if its client left and took the answer along: it could only be cancelled then.
"""

import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import NamedTuple

from rest_framework.request import Request
from rest_framework.response import Response

from inference.errors import EngineError
from openai_api import background, conversations, runs
from openai_api import response_rows as rows
from openai_api.database import write, write_until_done
from openai_api.errors import (
    ApiError,
    InvalidRequest,
    NotFound,
    QueueFull,
    QueueTimedOut,
    Unavailable,
)
from openai_api.models import StoredResponse
from openai_api.protocol.sse import named_event
from openai_api.response_requests import Prepared
from openai_api.views.base import AsyncAPIView

HEADER = "Idempotency-Key"
VISIBLE = re.compile(r"[!-~]{1,255}")
LAST = 2**31 - 2  # beyond every event: whoever follows from there waits for the end


class Key(NamedTuple):
    """Each API key (`owner`) has names of its own."""

    value: str
    digest: str  # of the body that it was sent with
    owner: int | None = None


def key_of(request: Request, owner: int | None) -> Key | None:
    """The key of a request, if it has one. Raises InvalidRequest."""
    if (value := request.headers.get(HEADER)) is None:
        return None
    if not VISIBLE.fullmatch(value):
        message = f"Invalid '{HEADER}': expected 1 to 255 visible ASCII characters."
        raise InvalidRequest(message, HEADER, "invalid_value")
    if request.data.get("store") is False:
        message = f"'{HEADER}' cannot be used with 'store' false: there would be nothing to repeat."
        raise InvalidRequest(message, HEADER, "invalid_value")
    body = json.dumps(request.data, sort_keys=True)
    return Key(value, hashlib.sha256(body.encode()).hexdigest(), owner)


async def once(view: AsyncAPIView, create: Callable[[Key | None], Awaitable[Response]]) -> Response:
    """What `create` answers, or what it answered to the first request with this key."""
    if (key := key_of(view.request, view.owner)) is None:
        return await create(None)
    response = None
    while response is None:
        # Through the thread that writes: a response that was just left has been ended by then.
        if (row := await write(find, key)) is None:
            try:
                return await create(key)
            except (ApiError, EngineError):  # perhaps only because another one was a little faster
                if (row := await write(find, key)) is None:
                    raise
        response = await _repeated(view, row)
    return response


def find(key: Key) -> StoredResponse | None:
    """The response that has the key. Raises InvalidRequest if it answers something else."""
    row = StoredResponse.objects.filter(key=key.owner, idempotency_key=key.value).first()
    if row is None:
        return None
    has_left = row.status == row.Status.CANCELLED and not row.background
    if has_left or (row.error and row.error["code"] in (QueueFull.code, QueueTimedOut.code)):
        StoredResponse.objects.filter(pk=row.pk).update(idempotency_key=None)
        return None
    if row.body_digest != key.digest:
        raise InvalidRequest(
            f"This '{HEADER}' was used with another body before. Use a new one.",
            HEADER,
            "idempotency_key_reused",
        )
    return row


@asynccontextmanager
async def claimed(row: StoredResponse, key: Key | None) -> AsyncIterator[None]:
    """Where a response is begun: its row exists, with the key, or not at all if that fails."""
    if key is None:
        yield
        return
    row.idempotency_key, row.body_digest = key.value, key.digest
    try:
        await write(_claim, row)
        yield
    except BaseException:
        write_until_done(_release, row)
        raise


async def begin(prepared: Prepared, key: Key | None) -> runs.Run:
    """`background.begin`, to be shielded: what it has begun belongs to the key."""
    async with claimed(prepared.row, key):
        return await background.begin(prepared)


def _claim(row: StoredResponse) -> None:
    """Raises InvalidRequest if the key or the id is taken."""
    # An attempt that lost its key gives way to the next, if the caller chose an id for them.
    attempts = StoredResponse.objects.filter(pk=row.pk, key=row.key_id, idempotency_key=None)
    attempts.filter(body_digest=row.body_digest).only("pk").delete()
    rows.insert(row)


def _release(row: StoredResponse) -> None:
    """Take back a row that was claimed and not begun; one that was begun has ended by itself."""
    if row._state.adding:
        return
    active = StoredResponse.objects.filter(pk=row.pk, status__in=StoredResponse.ACTIVE)
    num_deleted, _ = active.only("pk").delete()
    if num_deleted:
        conversations.release(row)


async def _repeated(view: AsyncAPIView, row: StoredResponse) -> Response | None:
    """The answer once more, or None after waiting for its end."""
    stream = bool(view.request.data.get("stream"))
    view.record.describe({"model": row.model, "stream": stream})
    view.record.row.response_id = row.pk
    if stream:
        return await view.stream(events_of(row), named_event)
    if row.background or row.status not in row.ACTIVE:
        return Response(row.to_dict())
    with suppress(NotFound):
        async for _ in runs.replay(row.pk, LAST, row.key_id):
            pass
    return None


async def events_of(row: StoredResponse) -> AsyncIterator[runs.Event]:
    try:
        async with aclosing(runs.replay(row.pk, -1, row.key_id)) as events:
            async for event in events:
                yield event
    except NotFound as exc:
        message = "The first request with this key has just failed. Send yours again."
        raise Unavailable(message, headers={"Retry-After": "1"}) from exc
