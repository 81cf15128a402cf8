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
from openai_api.serializers.formats import (
    GuidedChoice,
    GuidedGrammar,
    GuidedJson,
    GuidedRegex,
    ResponseFormat,
    StructuredOutputs,
    only_format,
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
UNSUPPORTED = {"use_beam_search": (False,), "length_penalty": (1, 1.0)}


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
    """{include_usage, continuous_usage_stats, include_obfuscation}; the last changes nothing."""

    def check(self, param: str, value) -> dict:
        check_type(param, value, dict)
        for key in ("include_usage", "continuous_usage_stats", "include_obfuscation"):
            if value.get(key) is not None:
                check_type(f"{param}.{key}", value[key], bool)
        return value


class LogprobCount(Integer):
    """How many alternatives; -1, all of the vocabulary, would make answers of gigabytes."""

    def check(self, param: str, value) -> int:
        if value == -1:
            message = f"Invalid '{param}': -1 is not supported, at most {self.maximum} are."
            raise InvalidRequest(message, param, "unsupported_value")
        return super().check(param, value)


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
    repetition_penalty = Number(0.001, 100)  # a quotient of logits has to stay finite
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
    priority = Integer(-(2**31), 2**31, default=0)


class GenerationSerializer(SamplingSerializer):
    """What chat and text completions have in common beyond sampling."""

    n = Integer(1, 128, default=1)
    stream_options = StreamOptions(default=dict)
    response_format = ResponseFormat()
    structured_outputs = StructuredOutputs()
    guided_json = GuidedJson()
    guided_regex = GuidedRegex()
    guided_choice = GuidedChoice()
    guided_grammar = GuidedGrammar()
    prompt_logprobs = LogprobCount(0, 20)
    logprob_token_ids = ListOf(Integer(0, 2**31), max_length=128, default=list)
    truncate_prompt_tokens = Integer(-1, 2**31)
    truncation_side = String(choices=("left", "right"), default="left")
    return_token_ids = Boolean(default=False)
    return_tokens_as_token_ids = Boolean(default=False)
    stream_interval = Integer(1, 2**31, default=1)
    echo = Boolean(default=False)

    def validate(self, body: dict) -> dict:
        if body["stream"] and body.get("prompt_logprobs") is not None:
            message = "'prompt_logprobs' cannot be combined with 'stream'."
            raise InvalidRequest(message, "prompt_logprobs", "unsupported_value")
        if body.get("truncate_prompt_tokens") == 0:
            message = "Invalid 'truncate_prompt_tokens': nothing would be left of the prompt."
            raise InvalidRequest(message, "truncate_prompt_tokens", "integer_below_min_value")
        only_format(body)
        return body
