"""POST /v1/conversations, /v1/conversations/{id} and /v1/conversations/{id}/items"""

from openai_api.serializers.fields import BodySerializer, ListOf, Metadata, empty_array, missing
from openai_api.serializers.items import Item
from openai_api.serializers.stored_chats import StoredChatUpdateSerializer

MAX_ITEMS = 20


class ConversationSerializer(BodySerializer):
    items = ListOf(Item(), max_length=MAX_ITEMS, default=list)
    metadata = Metadata(default=dict)


class ConversationUpdateSerializer(StoredChatUpdateSerializer):
    """Metadata alone, as of a stored chat completion."""


class ConversationItemsSerializer(BodySerializer):
    items = ListOf(Item(), max_length=MAX_ITEMS)

    def validate(self, body: dict) -> dict:
        if "items" not in body:
            raise missing("items")
        if not body["items"]:
            raise empty_array("items")
        return body
