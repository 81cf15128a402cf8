"""The rows of a response: each function is one read or one state change, run by `database`.

`owner` is the key of who asks. What belongs to another one is, for every function, not there.
"""

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from openai_api import conversations
from openai_api.errors import InvalidRequest, NotFound
from openai_api.models import BOOT_ID, EventBatch, RequestLog, StoredItem, StoredResponse
from openai_api.paging import page_of

logger = logging.getLogger(__name__)

Status = StoredResponse.Status
MAX_ATTEMPTS = 3


def find(response_id: str, owner: int | None = None) -> StoredResponse:
    return _found(StoredResponse.objects.filter(pk=response_id, key=owner), response_id)


def _found(rows: QuerySet[StoredResponse], response_id: str) -> StoredResponse:
    row = rows.first()
    if row is None:
        raise NotFound(f"Response with id '{response_id}' not found.", code="not_found")
    return row


def insert(row: StoredResponse) -> None:
    """The row of a response that begins, and the lock of its conversation, if it has one."""
    try:
        with transaction.atomic():
            conversations.lock(row)
            row.save(force_insert=True)
            _index(row, row.input)
    except IntegrityError as exc:  # the caller chose the id
        raise InvalidRequest(
            f"A response with id '{row.pk}' exists already.", "request_id", "invalid_value"
        ) from exc


def _index(row: StoredResponse, items: list[dict]) -> None:
    StoredItem.objects.bulk_create(
        StoredItem(response_id=row.pk, item_id=item["id"]) for item in items
    )


def referenced(
    items: list[dict],
    context: Sequence[dict] = (),
    param: str = "input",
    owner: int | None = None,
) -> list[dict]:
    """The items, with those in the place of each `item_reference` that it stands for.

    They are looked for in `context`, then among what is stored. Raises InvalidRequest.
    """
    known = {item["id"]: item for item in context}
    wanted = {item["id"] for item in items if item["type"] == "item_reference"} - known.keys()
    known |= _stored_items(wanted, owner)

    def meant(item: dict) -> dict:
        if item["type"] != "item_reference":
            return item
        if (found := known.get(item["id"])) is None:
            raise InvalidRequest(f"Item with id '{item['id']}' not found.", param)
        return found

    return [meant(item) for item in items]


def _stored_items(item_ids: set[str], owner: int | None) -> dict[str, dict]:
    """Those there are, of responses and conversations; the newest, if callers gave an id twice.

    A response may hold thousands of them, and is read once.
    """
    places = StoredItem.objects.filter(item_id__in=item_ids, response__key=owner)
    newest = dict(places.order_by("pk").values_list("item_id", "response_id"))
    found: dict[str, dict] = {}
    for response_id in set(newest.values()):
        row = StoredResponse.objects.only("input", "output").filter(pk=response_id).first()
        for item in [*row.input, *row.output] if row else ():
            if newest.get(item["id"]) == response_id:
                found.setdefault(item["id"], item)
    for item_id in item_ids - newest.keys():
        if (item := conversations.item_anywhere(item_id, owner)) is not None:
            found[item_id] = item
    return found


def delete(response_id: str, owner: int | None = None) -> None:
    find(response_id, owner).delete()


def set_status(response_id: str, status: str) -> None:
    """From one active state to another."""
    rows = StoredResponse.objects.filter(pk=response_id, status__in=StoredResponse.ACTIVE)
    rows.update(status=status)


def put_off() -> int:
    """Leave this process's background responses, which it could not end, to the next one."""
    rows = StoredResponse.objects.filter(status__in=StoredResponse.ACTIVE, background=True)
    return rows.filter(boot_id=BOOT_ID).update(status=Status.QUEUED, attempts=0)


def close(response_id: str, owner: int | None = None) -> None:
    """End as cancelled what is active, though nobody is at it."""
    row = find(response_id, owner)
    row.finish(status=Status.CANCELLED, incomplete_details={"reason": "cancelled"}, body=None)
    conversations.release(row)


def append_events(row: StoredResponse, first: int, texts: list[str], token_ids: list[int]) -> None:
    """Keep events, unless the response is not kept or was deleted.

    They take the place of those from `first` on that were kept before, unknown to the caller.
    """
    if texts and StoredResponse.objects.filter(pk=row.pk).exists():
        batch = EventBatch(response_id=row.pk, first=first, token_ids=token_ids)
        batch.events = "\n".join(texts)
        EventBatch.objects.bulk_create(
            [batch],
            update_conflicts=True,
            unique_fields=["response", "first"],
            update_fields=["events", "token_ids"],
        )


def finish(row: StoredResponse, resource: dict, first: int, texts: list[str]) -> None:
    """Write the final resource and the last events, unless somebody ended the response before."""
    completed_at = resource["completed_at"]
    with transaction.atomic():
        finished = row.finish(
            status=resource["status"],
            completed_at=datetime.fromtimestamp(completed_at, UTC) if completed_at else None,
            output=resource["output"],
            usage=resource["usage"],
            error=resource["error"],
            incomplete_details=resource["incomplete_details"],
            body=None,
        )
        if finished:
            append_events(row, first, texts, [])
            _index(row, resource["output"])
            conversations.end(row, resource)
        else:
            conversations.release(row)


def event_texts(
    response_id: str, after: int, owner: int | None = None
) -> tuple[list[tuple[int, str]], bool]:
    """(number, JSON text) of the next events after number `after`; whether there are none to come.

    One batch at a time: readers may be slow, and many.
    """
    rows = StoredResponse.objects.filter(pk=response_id, key=owner)
    row = _found(rows.only("status"), response_id)  # its output may be long
    batches = EventBatch.objects.filter(response_id=response_id)
    last = batches.filter(first__lte=after + 1).order_by("-first").values_list("first", flat=True)
    start = last.first() or 0
    batch = batches.filter(first__gte=start).values_list("first", "events").first()
    events = [
        (number, text)
        for first, lines in [batch] * (batch is not None)
        for number, text in enumerate(lines.split("\n"), first)
        if number > after
    ]
    return events, row.status not in StoredResponse.ACTIVE and not events


def input_items_page(response_id: str, query: dict, owner: int | None = None) -> dict:
    """One page of the request's own items, as the API's list."""
    return page_of(find(response_id, owner).input, query)


def past_of(response_id: str) -> tuple[list[dict], list[int]]:
    """All stored events of a response, and the tokens behind them."""
    events, token_ids = [], []
    for batch in EventBatch.objects.filter(response_id=response_id):
        events += [json.loads(text) for text in batch.events.split("\n")]
        token_ids += batch.token_ids
    return events, token_ids


def chain_items(previous_id: str | None, owner: int | None = None) -> list[dict]:
    """All items of the conversation that ends with `previous_id`, oldest first.

    Raises InvalidRequest if a response of the chain is unknown, deleted, or did not complete.
    """
    turns: list[list[dict]] = []
    seen: set[str] = set()  # callers may choose ids, and so could close a circle
    while previous_id is not None and previous_id not in seen:
        seen.add(previous_id)
        row = StoredResponse.objects.filter(pk=previous_id, key=owner).first()
        if row is None:
            raise InvalidRequest(
                f"Previous response with id '{previous_id}' not found.",
                "previous_response_id",
                "previous_response_not_found",
            )
        if row.status not in (Status.COMPLETED, Status.INCOMPLETE):
            raise InvalidRequest(
                f"Previous response with id '{previous_id}' is {row.status} and cannot be "
                "continued.",
                "previous_response_id",
            )
        turns += row.input + row.output, conversations.items_before(row)
        previous_id = row.previous_id
    return [item for turn in reversed(turns) for item in turn]


def context_of(row: StoredResponse) -> list[dict]:
    """What came before a response that has begun."""
    return chain_items(row.previous_id, row.key_id) + conversations.items_before(row)


def reconcile() -> None:
    """Close what a process that is gone left open. Called once, before the first request.

    Background responses are only taken over: `background` goes on with them.
    """
    lost = StoredResponse.objects.filter(status__in=StoredResponse.ACTIVE).exclude(boot_id=BOOT_ID)
    error = {"code": "server_error", "message": "The server stopped while answering."}
    lost.filter(background=False).update(idempotency_key=None)  # whose callers got no answer
    num_responses = 0
    for row in lost.exclude(background=True, attempts__lt=MAX_ATTEMPTS):
        num_responses += fail(row, error)
    conversations.release_lost()
    requests = RequestLog.objects.filter(outcome=RequestLog.Outcome.RUNNING)
    num_requests = requests.exclude(boot_id=BOOT_ID).update(outcome=RequestLog.Outcome.LOST)
    if num_responses or num_requests:
        logger.warning(
            "closed %d responses and %d requests of a server that was stopped",
            num_responses,
            num_requests,
        )


def fail(row: StoredResponse, error: dict) -> bool:
    """End a response that nobody works on, with an event for those who read its stream."""
    past, _ = past_of(row.pk)
    resource = row.to_dict() | {"status": Status.FAILED, "error": error}
    if past:
        event = {"type": "response.failed", "sequence_number": len(past), "response": resource}
        append_events(row, len(past), [json.dumps(event, separators=(",", ":"))], [])
    conversations.release(row)
    return row.finish(status=Status.FAILED, error=error, body=None)


def abandoned() -> list[tuple[str, int | None]]:
    """Ids and owners of background responses whose process is gone; we go on with them now."""
    rows = StoredResponse.objects.filter(status__in=StoredResponse.ACTIVE, background=True)
    rows = list(rows.exclude(boot_id=BOOT_ID).order_by("created_at"))
    for row in rows:
        row.boot_id, row.attempts = BOOT_ID, row.attempts + 1
        row.save(update_fields=["boot_id", "attempts"])
        conversations.take_over(row)
    return [(row.pk, row.key_id) for row in rows]
