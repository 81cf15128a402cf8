from rest_framework.response import Response

from openai_api import conversations
from openai_api.database import read, write
from openai_api.response_rows import referenced
from openai_api.serializers.conversations import (
    ConversationItemsSerializer,
    ConversationSerializer,
    ConversationUpdateSerializer,
)
from openai_api.serializers.fields import validated
from openai_api.serializers.queries import ItemsQuery, validated_query
from openai_api.views.base import AsyncAPIView


class ConversationsView(AsyncAPIView):
    """POST /v1/conversations"""

    async def post(self, request):
        body = validated(ConversationSerializer, request.data)
        items = await read(referenced, body["items"], (), "items", self.owner)
        row = await write(conversations.create, items, body["metadata"], self.owner)
        return Response(row.to_dict())


class ConversationView(AsyncAPIView):
    """GET, POST and DELETE /v1/conversations/{id}"""

    async def get(self, request, conversation_id: str):
        row = await read(conversations.find, conversation_id, self.owner)
        return Response(row.to_dict())

    async def post(self, request, conversation_id: str):
        body = validated(ConversationUpdateSerializer, request.data)
        args = (conversation_id, body["metadata"], self.owner)
        row = await write(conversations.update_metadata, *args)
        return Response(row.to_dict())

    async def delete(self, request, conversation_id: str):
        await write(conversations.delete, conversation_id, self.owner)
        return Response({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


class ConversationItemsView(AsyncAPIView):
    """GET and POST /v1/conversations/{id}/items"""

    async def get(self, request, conversation_id: str):
        query = validated_query(ItemsQuery, request.query_params)
        page = await read(conversations.items_page, conversation_id, query, self.owner)
        return Response(page)

    async def post(self, request, conversation_id: str):
        body = validated(ConversationItemsSerializer, request.data)
        items = await read(referenced, body["items"], (), "items", self.owner)
        added = await write(conversations.add_items, conversation_id, items, self.owner)
        return Response(added)


class ConversationItemView(AsyncAPIView):
    """GET and DELETE /v1/conversations/{id}/items/{item}"""

    async def get(self, request, conversation_id: str, item_id: str):
        item = await read(conversations.find_item, conversation_id, item_id, self.owner)
        return Response(item)

    async def delete(self, request, conversation_id: str, item_id: str):
        row = await write(conversations.delete_item, conversation_id, item_id, self.owner)
        return Response(row.to_dict())
