"""Conversations: each function is one read or one state change of the database.

`owner` is the key of who asks; what belongs to another one is not there.
A response that goes on from a conversation holds its lock from its first row to its last, so that
what it read is still the end when its own items are added.
"""

from collections.abc import Iterable

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils.timezone import now

from openai_api.errors import ConversationLocked, InvalidRequest, NotFound
from openai_api.models import BOOT_ID, Conversation, ConversationItem, StoredResponse
from openai_api.paging import list_object, unknown_after
from openai_api.protocol.items import check_calls

FINISHED = (StoredResponse.Status.COMPLETED, StoredResponse.Status.INCOMPLETE)


def create(items: list[dict], metadata: dict, owner: int | None = None) -> Conversation:
    refuse_known([], items, "items")
    check_calls(items, "items")
    with transaction.atomic():
        row = Conversation.objects.create(metadata=metadata, key_id=owner)
        _append(row.pk, items)
    return row


def find(conversation_id: str, owner: int | None = None, param: str | None = None) -> Conversation:
    """Raises NotFound, which names the field `param`."""
    row = Conversation.objects.filter(pk=conversation_id, key=owner).first()
    if row is None:
        raise _not_found(conversation_id, param)
    return row


def update_metadata(conversation_id: str, metadata: dict, owner: int | None = None) -> Conversation:
    """All of the metadata is replaced. Raises NotFound."""
    rows = Conversation.objects.filter(pk=conversation_id, key=owner)
    rows.update(metadata=metadata, used_at=now())
    return find(conversation_id, owner)


def delete(conversation_id: str, owner: int | None = None) -> None:
    """Raises NotFound. A response that is at it goes on, and adds nothing."""
    find(conversation_id, owner).delete()


def add_items(conversation_id: str, items: list[dict], owner: int | None = None) -> dict:
    """The added items, as the API's list. Raises NotFound, ConversationLocked, InvalidRequest."""
    with transaction.atomic():
        rows = Conversation.objects.select_for_update()
        row = rows.filter(pk=conversation_id, key=owner).first()
        if row is None:
            raise _not_found(conversation_id)
        if row.run_id:  # its response would be put behind what it has not seen
            raise ConversationLocked()
        known = list(_items_of(conversation_id).values_list("item", flat=True))
        refuse_known((item["id"] for item in known), items, "items")
        check_calls(known + items, "items")
        _append(conversation_id, items)
    return list_object(items, len(items))


def find_item(conversation_id: str, item_id: str, owner: int | None = None) -> dict:
    """Raises NotFound."""
    find(conversation_id, owner)
    items = _items_of(conversation_id).filter(item_id=item_id).values_list("item", flat=True)
    if (item := items.first()) is None:
        raise _item_not_found(item_id)
    return item


def item_anywhere(item_id: str, owner: int | None = None) -> dict | None:
    """The newest item of this id, in whatever conversation of the owner."""
    items = ConversationItem.objects.filter(item_id=item_id, conversation__key=owner)
    return items.order_by("-pk").values_list("item", flat=True).first()


def delete_item(conversation_id: str, item_id: str, owner: int | None = None) -> Conversation:
    """Raises NotFound."""
    row = find(conversation_id, owner)
    num_deleted, _ = _items_of(conversation_id).filter(item_id=item_id).delete()
    if not num_deleted:
        raise _item_not_found(item_id)
    return row


def items_page(conversation_id: str, query: dict, owner: int | None = None) -> dict:
    """One page of the items, as the API's list. Raises NotFound, InvalidRequest."""
    find(conversation_id, owner)
    rows = _items_of(conversation_id)
    descending = query["order"] == "desc"
    if "after" in query:
        keys = rows.filter(item_id=query["after"]).values_list("pk", flat=True)
        if (key := keys.first()) is None:
            raise unknown_after(query["after"])
        rows = rows.filter(pk__lt=key) if descending else rows.filter(pk__gt=key)
    rows = rows.order_by("-pk" if descending else "pk")
    items = rows.values_list("item", flat=True)[: query["limit"] + 1]
    return list_object(list(items), query["limit"])


def context(conversation_id: str, owner: int | None = None) -> tuple[list[dict], int]:
    """All items, and the key of the last: where a response would go on.

    Raises NotFound, or ConversationLocked: what the running response says is still missing.
    """
    if find(conversation_id, owner, "conversation").run_id:
        raise ConversationLocked()
    rows = list(_items_of(conversation_id).values_list("pk", "item"))
    return [item for _, item in rows], rows[-1][0] if rows else 0


def items_before(response: StoredResponse) -> list[dict]:
    """What its conversation, if it has one, held when it began. Raises InvalidRequest."""
    if response.conversation_id is None:
        return []
    rows = Conversation.objects.filter(pk=response.conversation_id, key=response.key_id)
    if not rows.exists():
        raise InvalidRequest(
            f"Conversation with id '{response.conversation_id}', from which response "
            f"'{response.pk}' went on, not found.",
            "previous_response_id",
            "previous_response_not_found",
        )
    rows = _items_of(response.conversation_id).filter(pk__lte=response.conversation_position)
    return list(rows.values_list("item", flat=True))


def refuse_known(known: Iterable[str], items: list[dict], param: str) -> None:
    """Raise InvalidRequest for an item whose id is known, or comes twice."""
    seen = set(known)
    for item in items:
        if item["id"] in seen:
            raise InvalidRequest(
                f"Duplicate item found with id {item['id']}. Remove duplicate items from your "
                "input and try again.",
                param,
                "invalid_value",
            )
        seen.add(item["id"])


def lock(response: StoredResponse) -> None:
    """Take the lock for a response that is about to begin.

    Raises NotFound, or ConversationLocked: also if there are items that the response has not seen.
    """
    conversation_id = response.conversation_id
    if conversation_id is None:
        return
    with transaction.atomic():
        owner = response.key_id
        free = Conversation.objects.filter(pk=conversation_id, key=owner, run_id="")
        if not free.update(run_id=response.pk, boot_id=BOOT_ID):
            find(conversation_id, owner, "conversation")
            raise ConversationLocked()
        # Only now: what another one added before this one got the lock has become visible.
        unseen = _items_of(conversation_id).filter(pk__gt=response.conversation_position)
        if unseen.exists():
            raise ConversationLocked()


def end(response: StoredResponse, resource: dict) -> None:
    """Add what the response was asked and said, unless it failed, and give back the lock."""
    if response.conversation_id is None:
        return
    with transaction.atomic():
        if release(response) and resource["status"] in FINISHED:
            items = [*response.input, *resource["output"]]
            _append(response.conversation_id, items, response.pk)


def release(response: StoredResponse) -> bool:
    """Give back the lock. False if the response had none, or lost it with the conversation."""
    held = Conversation.objects.filter(pk=response.conversation_id, run_id=response.pk)
    return held.update(run_id="", boot_id="") == 1


def take_over(response: StoredResponse) -> None:
    """The lock of a response of another process, with which this one goes on."""
    held = Conversation.objects.filter(pk=response.conversation_id, run_id=response.pk)
    held.update(boot_id=BOOT_ID)


def release_lost() -> None:
    """Give back what a process that is gone had locked, but for responses that will go on."""
    active = StoredResponse.objects.filter(status__in=StoredResponse.ACTIVE)
    going_on = active.filter(pk=OuterRef("run_id"), conversation=OuterRef("pk"))
    lost = Conversation.objects.exclude(run_id="").exclude(boot_id=BOOT_ID)
    lost.exclude(Exists(going_on)).update(run_id="", boot_id="")


def _items_of(conversation_id: str) -> QuerySet:
    return ConversationItem.objects.filter(conversation=conversation_id)


def _append(conversation_id: str, items: list[dict], response_id: str = "") -> None:
    Conversation.objects.filter(pk=conversation_id).update(used_at=now())
    ConversationItem.objects.bulk_create(
        ConversationItem(
            conversation_id=conversation_id, item_id=item["id"], item=item, response_id=response_id
        )
        for item in items
    )


def _not_found(conversation_id: str, param: str | None = None) -> NotFound:
    message = f"Conversation with id '{conversation_id}' not found."
    return NotFound(message, param, "not_found")


def _item_not_found(item_id: str) -> NotFound:
    return NotFound(f"Item with id '{item_id}' not found.", code="not_found")
