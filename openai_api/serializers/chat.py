"""POST /v1/chat/completions"""

from django.conf import settings

from openai_api.errors import InvalidRequest
from openai_api.policies.parsers import load_json
from openai_api.serializers.content import MAX_ENTRIES, content_text
from openai_api.serializers.fields import (
    BodySerializer,
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
from openai_api.serializers.sampling import UNSUPPORTED, GenerationSerializer
from openai_api.serializers.tools import FunctionCall, Functions, ToolChoice, Tools, name_of
from openai_api.tools import CUSTOM_INPUT

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
    elif not any(message.get(key) for key in ("tool_calls", "function_call", "refusal")):
        raise missing(f"{param}.content")
    for key in ("reasoning_content", "reasoning"):
        if message.get(key) is not None:
            checked["reasoning_content"] = check_type(f"{param}.{key}", message[key], str)
    if message.get("tool_calls"):
        calls = check_type(f"{param}.tool_calls", message["tool_calls"], list)
        checked["tool_calls"] = [
            tool_call(f"{param}.tool_calls[{i}]", call) for i, call in enumerate(calls)
        ]
    elif message.get("function_call"):
        function = called_function(f"{param}.function_call", message["function_call"])
        checked["tool_calls"] = [{"id": "", "type": "function", "function": function}]
    return checked


def tool_call(param: str, call) -> dict:
    """A call of the history, of a function or a custom tool; as a function's."""
    check_type(param, call, dict)
    if call.get("type") == "custom":
        custom = check_type(f"{param}.custom", call.get("custom"), dict)
        text = check_type(f"{param}.custom.input", custom.get("input"), str)
        function = {"name": name_of(f"{param}.custom", custom), "arguments": {CUSTOM_INPUT: text}}
    elif call.get("function") is None:
        raise missing(f"{param}.function")
    else:
        function = called_function(f"{param}.function", call["function"])
    call_id = check_type(f"{param}.id", call.get("id") or "", str)
    return {"id": call_id, "type": "function", "function": function}


def called_function(param: str, function) -> dict:
    """Name and arguments; these become an object, as templates expect."""
    check_type(param, function, dict)
    if function.get("name") is None:
        raise missing(f"{param}.name")
    name = check_type(f"{param}.name", function["name"], str)
    arguments = arguments_object(f"{param}.arguments", function.get("arguments"))
    return {"name": name, "arguments": arguments}


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
    entries = ListOf(MESSAGE, max_length=MAX_ENTRIES)

    def check(self, param: str, value) -> list[dict]:
        if not (messages := self.entries.check(param, value)):
            raise empty_array(param)
        return messages


class Documents(StrictField):
    """What a template for retrieval shows: objects of texts."""

    def check(self, param: str, value) -> list[dict]:
        check_type(param, value, list)
        for i, document in enumerate(value):
            check_type(f"{param}[{i}]", document, dict)
            for key, text in document.items():
                check_type(f"{param}[{i}].{key}", text, str)
        return value


class TemplateKwargs(StrictField):
    """Scalars for the chat template, `enable_thinking` for instance."""

    def check(self, param: str, value) -> dict:
        check_type(param, value, dict)
        for key, entry in value.items():
            if key in RESERVED_TEMPLATE_KEYS or not isinstance(entry, bool | int | float | str):
                message = f"Invalid '{param}.{key}': only scalars with other names are taken."
                raise InvalidRequest(message, f"{param}.{key}", "invalid_value")
        return value


class PromptSerializer(BodySerializer):
    """How messages become a prompt."""

    messages = Messages(required=True)
    tools = Tools()
    documents = Documents()
    chat_template = String(max_length=65_536)
    chat_template_kwargs = TemplateKwargs(default=dict)
    add_generation_prompt = Boolean()
    continue_final_message = Boolean(default=False)
    add_special_tokens = Boolean(default=False)

    def validate(self, body: dict) -> dict:
        body.setdefault("add_generation_prompt", not body["continue_final_message"])
        if body["continue_final_message"] and body["add_generation_prompt"]:
            message = "'continue_final_message' and 'add_generation_prompt' exclude each other."
            raise InvalidRequest(message, "continue_final_message", "invalid_value")
        if body.get("chat_template") is not None and not settings.API.trust_request_chat_template:
            message = "This server takes no chat templates from requests."
            raise InvalidRequest(message, "chat_template", "unsupported_parameter")
        return super().validate(body)


class ChatCompletionSerializer(PromptSerializer, GenerationSerializer):
    UNSUPPORTED = UNSUPPORTED | {
        "modalities": (["text"],),
        "audio": (),
        "web_search_options": (),
    }

    max_completion_tokens = Integer(1, 2**31)
    max_tokens = Integer(1, 2**31)
    tool_choice = ToolChoice()
    parallel_tool_calls = Boolean(default=True)
    functions = Functions()
    function_call = FunctionCall()
    logprobs = Boolean(default=False)
    top_logprobs = Integer(0, 20)
    store = Boolean(default=False)
    metadata = Metadata(default=dict)
    reasoning_effort = String(choices=EFFORTS)
    include_reasoning = Boolean(default=True)
    thinking_token_budget = Integer(0, 2**31)

    def validate(self, body: dict) -> dict:
        for name in ("top_logprobs", "logprob_token_ids"):
            if body.get(name) and not body["logprobs"]:
                message = f"'{name}' requires 'logprobs' to be true."
                raise InvalidRequest(message, name, "invalid_value")
        return super().validate(body)
