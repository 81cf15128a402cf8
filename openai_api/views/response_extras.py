import time

from rest_framework.response import Response

from openai_api.compaction import after_compaction, kept_messages, summarise
from openai_api.errors import InvalidRequest
from openai_api.prompts import any_model, check_model, owned
from openai_api.protocol.events import response_usage
from openai_api.protocol.ids import new_response_id
from openai_api.protocol.items import check_calls
from openai_api.response_requests import conversation_so_far, prepare
from openai_api.serializers.fields import missing, validated
from openai_api.serializers.responses import ResponseSerializer
from openai_api.views.base import AsyncAPIView
from openai_api.views.generate import GenerateView


class InputTokensView(AsyncAPIView):
    """POST /v1/responses/input_tokens: how long the prompt of such a request would be."""

    async def post(self, request):
        model = self.engine.model
        await self.record.admit()
        data = {"model": any_model(model, self.key), "input": [], **request.data}
        body = owned(validated(ResponseSerializer, data), self.owner)
        check_model(model, body["model"], self.key)
        prepared = await prepare(model, body, self.owner)
        num_tokens = len(prepared.choice.prompt_token_ids)
        return Response({"object": "response.input_tokens", "input_tokens": num_tokens})


class CompactView(GenerateView):
    """POST /v1/responses/compact: a long conversation as a summary, to go on with."""

    serializer_class = ResponseSerializer

    async def post(self, request):
        if request.data.get("model") is None:
            raise missing("model")
        body, _ = await self.read_body()
        context, items, _ = await conversation_so_far(body, self.owner)
        items = after_compaction(context + items)
        check_calls(items)
        if not items:
            raise InvalidRequest("There is nothing to compact.", "input", "empty_array")
        self.record.leave_place()
        compaction = await summarise(self.engine, body, items, self.record.lease)
        return Response(
            {
                "id": new_response_id(),
                "object": "response.compaction",
                "created_at": int(time.time()),
                "output": [*kept_messages(items), compaction],
                "usage": response_usage(self.record.lease.summaries[-1]),
            }
        )
