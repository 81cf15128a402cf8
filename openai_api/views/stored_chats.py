from rest_framework.response import Response

from openai_api import stored_chats
from openai_api.database import read, write
from openai_api.serializers.fields import validated
from openai_api.serializers.queries import PageQuery, StoredChatsQuery, validated_query
from openai_api.serializers.stored_chats import StoredChatUpdateSerializer
from openai_api.views.base import AsyncAPIView


async def list_stored_chats(view: AsyncAPIView, request) -> Response:
    """GET /v1/chat/completions, a method of the view that has the path's POST."""
    query = validated_query(StoredChatsQuery, request.query_params)
    return Response(await read(stored_chats.page, query, view.owner))


class StoredChatView(AsyncAPIView):
    """GET, POST and DELETE /v1/chat/completions/{id}"""

    async def get(self, request, completion_id: str):
        row = await read(stored_chats.find, completion_id, self.owner)
        return Response(row.to_dict())

    async def post(self, request, completion_id: str):
        body = validated(StoredChatUpdateSerializer, request.data)
        args = (completion_id, body["metadata"], self.owner)
        row = await write(stored_chats.update_metadata, *args)
        return Response(row.to_dict())

    async def delete(self, request, completion_id: str):
        await write(stored_chats.delete, completion_id, self.owner)
        return Response({"id": completion_id, "object": "chat.completion.deleted", "deleted": True})


class StoredChatMessagesView(AsyncAPIView):
    """GET /v1/chat/completions/{id}/messages"""

    async def get(self, request, completion_id: str):
        query = validated_query(PageQuery, request.query_params)
        page = await read(stored_chats.messages_page, completion_id, query, self.owner)
        return Response(page)
