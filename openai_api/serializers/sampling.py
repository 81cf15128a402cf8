"""The parameters all three ways to generate share: OpenAI's, and those vLLM added."""

import re

from openai_api.errors import InvalidRequest
from openai_api.serializers.fields import (
    BodySerializer,
    Boolean,
    Integer,
    ListOf,
    Number,
    StrictField,
    String,
    check_type,
)

# Known fields that can change nothing in the answer of a text model on this server.
IGNORED = (
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "service_tier",
    "verbosity",
    "moderation",
    "prediction",
    "spaces_between_special_tokens",
    "repetition_detection",
    "vllm_xargs",
    "kv_transfer_params",
    "session_id",
)

# Known fields that would change the answer, with the values at which they do not.
UNSUPPORTED = {
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "prompt_logprobs": (),
    "logprob_token_ids": ([],),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "priority": (0,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "stream_interval": (1,),
}


class LogitBias(StrictField):
    """{token id as a decimal string: -100 to 100}, at most 1,024 entries."""

    bias = Number(-100, 100)

    def check(self, param: str, value) -> dict[int, float]:
        check_type(param, value, dict)
        if len(value) > 1024:
            message = f"Invalid '{param}': too many properties. Expected at most 1024."
            raise InvalidRequest(message, param, "object_above_max_properties")
        if wrong := [key for key in value if not re.fullmatch("[0-9]{1,10}", key)]:
            message = f"Invalid '{param}': '{wrong[0][:40]}' is not a token id."
            raise InvalidRequest(message, param, "invalid_value")
        return {int(key): self.bias.check(f"{param}.{key}", v) for key, v in value.items()}


class StreamOptions(StrictField):
    """{include_usage, include_obfuscation}; the latter is accepted and changes nothing."""

    def check(self, param: str, value) -> dict:
        check_type(param, value, dict)
        for key in ("include_usage", "include_obfuscation"):
            if value.get(key) is not None:
                check_type(f"{param}.{key}", value[key], bool)
        if value.get("continuous_usage_stats"):
            message = f"Unsupported parameter: '{param}.continuous_usage_stats'."
            raise InvalidRequest(
                message, f"{param}.continuous_usage_stats", "unsupported_parameter"
            )
        return value


class SamplingSerializer(BodySerializer):
    """How to sample and when to stop. What is absent takes the model's own default."""

    IGNORED = IGNORED
    UNSUPPORTED = UNSUPPORTED

    model = String(required=True)
    stream = Boolean(default=False)
    temperature = Number(0, 2)
    top_p = Number(0, 1)
    top_k = Integer(-1, 2**31)
    min_p = Number(0, 1)
    presence_penalty = Number(-2, 2)
    frequency_penalty = Number(-2, 2)
    repetition_penalty = Number(above=0, maximum=100)
    logit_bias = LogitBias(default=dict)
    seed = Integer(-(2**63), 2**63 - 1)
    stop = ListOf(String(max_length=256), single=True, max_length=16, default=list)
    stop_token_ids = ListOf(Integer(0, 2**31), max_length=128, default=list)
    include_stop_str_in_output = Boolean(default=False)
    min_tokens = Integer(0, 2**31, default=0)
    ignore_eos = Boolean(default=False)
    bad_words = ListOf(String(max_length=256), max_length=128, default=list)
    allowed_token_ids = ListOf(Integer(0, 2**31), max_length=2**17)
    skip_special_tokens = Boolean(default=True)
    cache_salt = String(max_length=1024, default="")
    request_id = String(pattern=r"[A-Za-z0-9_.:-]{1,64}")
