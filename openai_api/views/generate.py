"""Queueing the answers of one request, and giving them back whole or as a stream."""

from rest_framework.response import Response

from inference.request import ModelInfo
from openai_api import idempotency
from openai_api.answers import Answer, Choice
from openai_api.limits import estimate
from openai_api.prompts import check_model, check_prompt, owned
from openai_api.protocol.sse import data
from openai_api.serializers.fields import BodySerializer, validated
from openai_api.tools import NO_TOOLS, ToolUse
from openai_api.views.base import AsyncAPIView


class GenerateView(AsyncAPIView):
    """A view whose answer comes from the model."""

    serializer_class: type[BodySerializer]

    async def read_body(self) -> tuple[dict, ModelInfo]:
        """The checked body and the model it names; whether there is room is asked first."""
        self.record.take_place(self.owner)
        await self.record.admit()
        body = validated(self.serializer_class, self.request.data)
        self.record.describe(body)
        model = self.engine.model
        check_model(model, body["model"], self.key)
        return owned(body, self.owner), model

    def check_throttles(self, request) -> None:
        """DRF's hook: whom a full queue turns away costs neither a row nor a look at the body.

        Who sends something again may have been answered already.
        """
        if request.method == "POST" and idempotency.HEADER not in request.headers:
            self.record.take_place(self.owner)

    def queue(
        self,
        choices: list[Choice],
        body: dict,
        *,
        chat: bool,
        param: str,
        use: ToolUse = NO_TOOLS,
    ) -> list[Answer]:
        """All of the choices, or none: raises what the checks of prompt and capacity raise."""
        for choice in {c.prompt_index: c for c in choices}.values():
            check_prompt(self.engine, choice.prompt_token_ids, param, choice.params.max_tokens)
        if len(choices) > 1:  # one has its place
            self.engine.check_capacity(len(choices) - 1, body["owner"])
        self.record.lease.reserve(estimate(choices, self.engine.model.max_model_len))
        answers = [Answer(self.engine, choice, body, chat=chat, use=use) for choice in choices]
        self.record.expect(answers)
        return answers

    async def answer(self, chunks, body: dict):
        """`chunks` as a stream or added up."""
        if body["stream"]:
            return await self.stream(chunks.stream(), data)
        return Response(await chunks.collect())
