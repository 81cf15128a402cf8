"""POST /v1/completions"""

from openai_api.serializers.fields import Boolean, Integer, StrictField, empty_array, wrong_type
from openai_api.serializers.sampling import UNSUPPORTED, SamplingSerializer, StreamOptions


def is_token_ids(value) -> bool:
    return isinstance(value, list) and bool(value) and all(type(t) is int for t in value)


class Prompt(StrictField):
    """A string, token ids, or a list of either; always a list of prompts afterwards."""

    def check(self, param: str, value) -> list[str | list[int]]:
        if isinstance(value, str) or is_token_ids(value):
            return [value]
        if not isinstance(value, list):
            raise wrong_type(param, "a string or an array", value)
        if not value:
            raise empty_array(param)
        for i, entry in enumerate(value):
            if not (isinstance(entry, str) or is_token_ids(entry)):
                raise wrong_type(f"{param}[{i}]", "a string or an array of token ids", entry)
        return value


class CompletionSerializer(SamplingSerializer):
    UNSUPPORTED = UNSUPPORTED | {
        "best_of": (1,),
        "echo": (False,),
        "suffix": ("",),
        "prompt_embeds": (),
        "response_format": ({"type": "text"},),
    }

    prompt = Prompt(required=True)
    max_tokens = Integer(1, 2**31, default=16)
    n = Integer(1, 128, default=1)
    logprobs = Integer(0, 5)
    stream_options = StreamOptions(default=dict)
    add_special_tokens = Boolean(default=True)
