from collections.abc import Iterable

from rest_framework.response import Response

from inference.request import ModelInfo
from openai_api.errors import ModelNotFound
from openai_api.prompts import allowed_names, check_model
from openai_api.views.base import AsyncAPIView


def model_object(model: ModelInfo, name: str) -> dict:
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "nanollmserve",
        "root": model.name,
        "parent": None,
        "max_model_len": model.max_model_len,
    }


def for_codex(model: ModelInfo, names: Iterable[str]) -> list[dict]:
    """The array that codex looks for beside OpenAI's."""
    return [
        {
            "slug": name,
            "display_name": name,
            "context_window": model.max_model_len,
            "supported_in_api": True,
            "visibility": "list",
        }
        for name in names
    ]


class ModelsView(AsyncAPIView):
    """GET /v1/models: every name the model answers to, and the key may use, as an entry."""

    async def get(self, request):
        model = self.engine.model
        names = allowed_names(model, self.key)
        entries = [model_object(model, name) for name in names]
        return Response({"object": "list", "data": entries, "models": for_codex(model, names)})


class ModelView(AsyncAPIView):
    """GET /v1/models/{id}; ids of the hub hold a slash."""

    async def get(self, request, name: str):
        model = self.engine.model
        check_model(model, name, self.key)
        return Response(model_object(model, name))

    async def delete(self, request, name: str):
        raise ModelNotFound(f"The model `{name}` is not a fine-tuned one and cannot be deleted.")
