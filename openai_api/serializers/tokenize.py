"""POST /tokenize and /detokenize, in vLLM's shape."""

from openai_api.errors import InvalidRequest
from openai_api.serializers.chat import Messages, PromptSerializer
from openai_api.serializers.fields import BodySerializer, Boolean, Integer, ListOf, String, missing


class TokenizeSerializer(PromptSerializer):
    """A text as `prompt`, or what chat completions take for a prompt."""

    model = String()
    prompt = String()
    messages = Messages()
    add_special_tokens = Boolean()
    return_token_strs = Boolean(default=False)

    def validate(self, body: dict) -> dict:
        if "prompt" not in body and "messages" not in body:
            raise missing("prompt")
        if "prompt" in body and "messages" in body:
            message = "'messages' cannot be combined with 'prompt'."
            raise InvalidRequest(message, "messages", "invalid_value")
        body.setdefault("add_special_tokens", "prompt" in body)
        return super().validate(body)


class DetokenizeSerializer(BodySerializer):
    model = String()
    tokens = ListOf(Integer(0, 2**31), required=True, max_length=2**18)
