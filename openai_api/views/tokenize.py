from rest_framework.response import Response

from inference.request import ModelInfo
from openai_api.prompts import any_model, chat_prompt, check_model, check_token_ids, tokenize
from openai_api.serializers.fields import BodySerializer, validated
from openai_api.serializers.tokenize import DetokenizeSerializer, TokenizeSerializer
from openai_api.tools import as_function
from openai_api.views.base import AsyncAPIView


class TokenView(AsyncAPIView):
    """A view on the tokenizer; `model` may be left out, there is only one."""

    serializer_class: type[BodySerializer]

    async def read_body(self) -> tuple[dict, ModelInfo]:
        model = self.engine.model
        await self.record.admit()
        body = validated(self.serializer_class, self.request.data)
        check_model(model, body.get("model") or any_model(model, self.key), self.key)
        return body, model


class TokenizeView(TokenView):
    """POST /tokenize"""

    serializer_class = TokenizeSerializer

    async def post(self, request):
        body, model = await self.read_body()
        if "prompt" in body:
            special = body["add_special_tokens"]
            ids = await tokenize(model, body["prompt"], "prompt", add_special_tokens=special)
        else:
            tools = [as_function(tool) for tool in body.get("tools", ())]
            ids = await chat_prompt(model, body["messages"], body, tools=tools)
        pieces = model.tokenizer.convert_ids_to_tokens(ids) if body["return_token_strs"] else None
        return Response(
            {
                "count": len(ids),
                "max_model_len": model.max_model_len,
                "tokens": ids,
                "token_strs": pieces,
            }
        )


class DetokenizeView(TokenView):
    """POST /detokenize"""

    serializer_class = DetokenizeSerializer

    async def post(self, request):
        body, model = await self.read_body()
        check_token_ids(model, "tokens", body["tokens"])
        return Response({"prompt": model.tokenizer.decode(body["tokens"])})
