"""POST /v1/chat/completions"""

from openai_api.errors import InvalidRequest
from openai_api.policies.parsers import load_json
from openai_api.serializers.content import content_text
from openai_api.serializers.fields import (
    Boolean,
    Integer,
    ListOf,
    Metadata,
    StrictField,
    String,
    TaggedUnion,
    check_type,
    empty_array,
    missing,
)
from openai_api.serializers.sampling import UNSUPPORTED, SamplingSerializer, StreamOptions

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
RESERVED_TEMPLATE_KEYS = {
    "self", "tokenizer", "messages", "conversation", "tools", "documents", "chat_template",
    "tokenize", "add_generation_prompt", "continue_final_message", "padding", "truncation",
    "max_length", "return_dict", "return_tensors", "return_assistant_tokens_mask",
    "tokenizer_kwargs",
}  # fmt: skip


def plain_message(param: str, message: dict) -> dict:
    """system, developer, user: a role, a content, perhaps a name."""
    if message.get("content") is None:
        raise missing(f"{param}.content")
    checked = {"role": message["role"]}
    checked["content"] = content_text(f"{param}.content", message["content"])
    if message.get("name") is not None:
        checked["name"] = check_type(f"{param}.name", message["name"], str)
    return checked


def assistant_message(param: str, message: dict) -> dict:
    """Content may be missing beside tool calls; reasoning comes under either of its names."""
    checked = {"role": "assistant", "content": ""}
    if message.get("content") is not None:
        checked["content"] = content_text(f"{param}.content", message["content"])
    elif not message.get("tool_calls") and message.get("refusal") is None:
        raise missing(f"{param}.content")
    for key in ("reasoning_content", "reasoning"):
        if message.get(key) is not None:
            checked["reasoning_content"] = check_type(f"{param}.{key}", message[key], str)
    if message.get("tool_calls"):
        calls = check_type(f"{param}.tool_calls", message["tool_calls"], list)
        checked["tool_calls"] = [
            tool_call(f"{param}.tool_calls[{i}]", call) for i, call in enumerate(calls)
        ]
    return checked


def tool_call(param: str, call) -> dict:
    """A function call of the history; its arguments become an object, as templates expect."""
    check_type(param, call, dict)
    function = check_type(f"{param}.function", call.get("function"), dict)
    name = check_type(f"{param}.function.name", function.get("name"), str)
    arguments = arguments_object(f"{param}.function.arguments", function.get("arguments"))
    call_id = check_type(f"{param}.id", call.get("id", ""), str)
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def arguments_object(param: str, arguments) -> dict:
    """The JSON object that a string of arguments holds; a model may have been cut while writing."""
    if isinstance(arguments, dict):
        return arguments
    try:
        value = load_json(check_type(param, arguments, str) or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        message = f"Invalid '{param}': expected a string with a JSON object."
        raise InvalidRequest(message, param, "invalid_value")
    return value


def tool_message(param: str, message: dict) -> dict:
    checked = plain_message(param, message)
    if message.get("tool_call_id") is not None:
        call_id = check_type(f"{param}.tool_call_id", message["tool_call_id"], str)
        checked["tool_call_id"] = call_id
    elif message["role"] == "tool":
        raise missing(f"{param}.tool_call_id")
    return checked | {"role": "tool"}


MESSAGE = TaggedUnion(
    "role",
    {
        "system": plain_message,
        "developer": plain_message,
        "user": plain_message,
        "assistant": assistant_message,
        "tool": tool_message,
        "function": tool_message,
    },
)


class Messages(StrictField):
    entries = ListOf(MESSAGE)

    def check(self, param: str, value) -> list[dict]:
        if not (messages := self.entries.check(param, value)):
            raise empty_array(param)
        return messages


class TemplateKwargs(StrictField):
    """Scalars for the chat template, `enable_thinking` for instance."""

    def check(self, param: str, value) -> dict:
        check_type(param, value, dict)
        for key, entry in value.items():
            if key in RESERVED_TEMPLATE_KEYS or not isinstance(entry, bool | int | float | str):
                message = f"Invalid '{param}.{key}': only scalars with other names are taken."
                raise InvalidRequest(message, f"{param}.{key}", "invalid_value")
        return value


class ChatCompletionSerializer(SamplingSerializer):
    UNSUPPORTED = UNSUPPORTED | {
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "store": (False,),
        "modalities": (["text"],),
        "audio": (),
        "web_search_options": (),
        "echo": (False,),
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
        "add_special_tokens": (False,),
        "chat_template": (),
        "documents": ([],),
        "include_reasoning": (True,),
        "thinking_token_budget": (),
    }
    IGNORED = (*SamplingSerializer.IGNORED, "parallel_tool_calls")

    messages = Messages(required=True)
    max_completion_tokens = Integer(1, 2**31)
    max_tokens = Integer(1, 2**31)
    n = Integer(1, 128, default=1)
    logprobs = Boolean(default=False)
    top_logprobs = Integer(0, 20)
    stream_options = StreamOptions(default=dict)
    metadata = Metadata()
    reasoning_effort = String(choices=EFFORTS)
    chat_template_kwargs = TemplateKwargs(default=dict)

    def validate(self, body: dict) -> dict:
        if body.get("top_logprobs") and not body["logprobs"]:
            raise InvalidRequest(
                "'top_logprobs' requires 'logprobs' to be true.", "top_logprobs", "invalid_value"
            )
        return body
