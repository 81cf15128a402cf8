import asyncio
import json

from rest_framework.response import Response

from openai_api import idempotency, runs
from openai_api import response_rows as rows
from openai_api.database import read, write
from openai_api.errors import InvalidRequest
from openai_api.limits import estimate
from openai_api.prompts import check_prompt
from openai_api.protocol.sse import named_event
from openai_api.response_requests import Prepared, prepare
from openai_api.runs import Run
from openai_api.serializers.queries import ItemsQuery, ResponseQuery, validated_query
from openai_api.serializers.responses import ResponseSerializer
from openai_api.views.base import AsyncAPIView
from openai_api.views.generate import GenerateView


class ResponsesView(GenerateView):
    """POST /v1/responses"""

    serializer_class = ResponseSerializer

    async def post(self, request):
        return await idempotency.once(self, self._create)

    async def _create(self, key: idempotency.Key | None):
        body, model = await self.read_body()
        prepared = await prepare(model, body, self.owner, lease=self.record.lease)
        check_prompt(self.engine, prepared.choice.prompt_token_ids, "input")
        prepared.lease.reserve(estimate([prepared.choice], model.max_model_len))
        self.record.row.response_id = prepared.row.id
        if body["background"]:
            return await self._background(prepared, body, key)
        async with idempotency.claimed(prepared.row, key):
            answer = prepared.answer(self.engine)
            self.record.expect([answer])
            run = Run(prepared.row, answer, **prepared.run_options)
            events = self._observed(run.drive(), run)
            if body["stream"]:
                return await self.stream(events, named_event)
            async for _ in events:
                pass
        if run.refusal is not None:  # a status that clients try again after
            raise run.refusal
        return Response(run.resource)

    async def _background(self, prepared, body: dict, key: idempotency.Key | None):
        # What a killed server had sent and not kept is generated anew, and must come out the same.
        prepared.row.body = self.request.data | {"seed": prepared.choice.params.seed}
        prepared.lease.hold()  # the response outlives its request
        run = await asyncio.shield(self._begun(prepared, key))
        self.record.leave_place()
        if body["stream"]:
            return await self.stream(run.follow(), named_event)
        return Response(json.loads(run.log[0].text)["response"])

    @staticmethod
    async def _begun(prepared: Prepared, key: idempotency.Key | None) -> Run:
        try:
            return await idempotency.begin(prepared, key)
        except BaseException:
            prepared.lease.end()
            raise

    async def _observed(self, events, run: Run):
        """A failed response is sent with status 200; the history says what it was."""
        async for event in events:
            if event.type == "response.failed":
                self.record.fail(200, run.resource["error"] | {"type": "server_error"})
            yield event


class ResponseView(AsyncAPIView):
    """GET and DELETE /v1/responses/{id}"""

    async def get(self, request, response_id: str):
        query = validated_query(ResponseQuery, request.query_params)
        row = await read(rows.find, response_id, self.owner)
        if query["stream"]:
            events = runs.replay(response_id, query["starting_after"], self.owner)
            # there may be nothing new for long
            return await self.stream(events, named_event, patience_s=0.05)
        return Response(row.to_dict())

    async def delete(self, request, response_id: str):
        await runs.cancel(response_id, self.owner)
        await write(rows.delete, response_id, self.owner)
        return Response({"id": response_id, "object": "response", "deleted": True})


class ResponseInputItemsView(AsyncAPIView):
    """GET /v1/responses/{id}/input_items: those of its own request, not what it continued."""

    async def get(self, request, response_id: str):
        query = validated_query(ItemsQuery, request.query_params)
        return Response(await read(rows.input_items_page, response_id, query, self.owner))


class CancelResponseView(AsyncAPIView):
    """POST /v1/responses/{id}/cancel, for background responses; what has ended stays as it is."""

    async def post(self, request, response_id: str):
        row = await read(rows.find, response_id, self.owner)
        if not row.background:
            message = "Only a response that was created with background=true can be cancelled."
            raise InvalidRequest(message, "response_id", "invalid_value")
        await runs.cancel(response_id, self.owner)
        row = await read(rows.find, response_id, self.owner)
        return Response(row.to_dict())
