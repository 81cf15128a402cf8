"""POST /v1/responses"""

from openai_api.errors import InvalidRequest
from openai_api.serializers.chat import EFFORTS, TemplateKwargs
from openai_api.serializers.content import MAX_ENTRIES
from openai_api.serializers.fields import (
    Boolean,
    Integer,
    ListOf,
    Metadata,
    StrictField,
    String,
    check_type,
    missing,
    wrong_type,
    wrong_value,
)
from openai_api.serializers.formats import Format, StructuredOutputs, json_schema, only_format
from openai_api.serializers.items import Item, message_item
from openai_api.serializers.sampling import UNSUPPORTED, SamplingSerializer, StreamOptions
from openai_api.serializers.tools import ResponseTools, ToolChoice

INCLUDABLE = (
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
)

ONE_PAST = (
    "Mutually exclusive parameters: 'conversation' and 'previous_response_id'. Ensure you are only "
    "providing one of: 'conversation' or 'previous_response_id'."
)


class Input(StrictField):
    """A string, or items; always normalised items afterwards."""

    entries = ListOf(Item(), max_length=MAX_ENTRIES)

    def check(self, param: str, value) -> list[dict]:
        if isinstance(value, str):
            return [message_item(param, {"role": "user", "content": value})]
        if not isinstance(value, list):
            raise wrong_type(param, "a string or an array of input items", value)
        items = self.entries.check(param, value)
        for i, item in enumerate(items):
            check_configuration(f"{param}[{i}]", item)
        return items


def check_configuration(param: str, item: dict) -> None:
    """Whether what a `configuration_update` asks for can be done."""
    if item["type"] == "configuration_update":
        for key, field in (("reasoning", Reasoning()), ("text", TextFormat())):
            if key in item:
                field.check(f"{param}.{key}", item[key])


class TextFormat(StrictField):
    """{format, verbosity}: what is echoed, and the `Format` that the answer is kept to."""

    verbosity = String(choices=("low", "medium", "high"))

    def check(self, param: str, value) -> tuple[dict, Format | None]:
        check_type(param, value, dict)
        echo: dict = {"format": {"type": "text"}}
        if (verbosity := value.get("verbosity")) is not None:
            echo["verbosity"] = self.verbosity.check(f"{param}.verbosity", verbosity)
        if (given := value.get("format")) is None:
            return echo, None
        path = f"{param}.format"
        form = self._format(path, check_type(path, given, dict))
        return echo | {"format": given}, form

    @staticmethod
    def _format(param: str, value: dict) -> Format | None:
        kind = value.get("type")
        if kind == "text":
            return None
        if kind == "json_object":
            return Format("json", {"type": "object"}, param)
        if kind != "json_schema":
            raise wrong_value(f"{param}.type", kind, ("text", "json_object", "json_schema"))
        blamed = f"{param}.schema"
        return Format("json", json_schema(param, value, blamed), blamed)


class Reasoning(StrictField):
    """{effort, summary}; there is no summariser, so a wish for a summary changes nothing."""

    effort, summary = String(choices=EFFORTS), String(choices=("auto", "concise", "detailed"))

    def check(self, param: str, value) -> dict:
        check_type(param, value, dict)
        summary = value.get("summary") or value.get("generate_summary")  # its name of old
        given = {"effort": value.get("effort"), "summary": summary}
        return {
            key: text if text is None else getattr(self, key).check(f"{param}.{key}", text)
            for key, text in given.items()
        }


class ConversationId(StrictField):
    """A conversation's id, bare or as {id}."""

    def check(self, param: str, value) -> str:
        if not isinstance(value, dict):
            return check_type(param, value, str, "a string or an object")
        if value.get("id") is None:
            raise missing(f"{param}.id")
        return check_type(f"{param}.id", value["id"], str)


class ContextManagement(StrictField):
    """[{type: compaction, compact_threshold}]: beyond that many tokens, compact first."""

    threshold = Integer(1, 2**31)

    def check(self, param: str, value) -> list[dict]:
        for i, entry in enumerate(check_type(param, value, list)):
            path = f"{param}[{i}]"
            kind = check_type(path, entry, dict).get("type")
            if kind != "compaction":
                raise wrong_value(f"{path}.type", kind, ("compaction",))
            if entry.get("compact_threshold") is not None:
                self.threshold.check(f"{path}.compact_threshold", entry["compact_threshold"])
        return value


class ResponseSerializer(SamplingSerializer):
    UNSUPPORTED = UNSUPPORTED | {
        "prompt_logprobs": (),
        "logprob_token_ids": ([],),
        "truncate_prompt_tokens": (),
        "truncation_side": (),
        "return_token_ids": (False,),
        "return_tokens_as_token_ids": (False,),
        "stream_interval": (1,),
        "prompt": (),
        "enable_response_messages": (False,),
    }
    IGNORED = (
        *(
            name
            for name in SamplingSerializer.IGNORED
            if name not in ("user", "safety_identifier", "prompt_cache_key")
        ),
        "background_options",
        "access_programs",
        "image",
    )

    input = Input()
    instructions = String()
    previous_response_id = String(max_length=64)
    conversation = ConversationId()
    store = Boolean(default=True)
    background = Boolean(default=False)
    max_output_tokens = Integer(1, 2**31)
    top_logprobs = Integer(0, 20, default=0)
    include = ListOf(String(choices=INCLUDABLE), default=list)
    truncation = String(choices=("auto", "disabled"), default="disabled")
    context_management = ContextManagement(default=list)
    max_tool_calls = Integer(0, 2**31)
    tools = ResponseTools(default=list)
    tool_choice = ToolChoice(nested=False)
    parallel_tool_calls = Boolean(default=True)
    text = TextFormat()
    structured_outputs = StructuredOutputs()
    thinking_token_budget = Integer(0, 2**31)
    include_reasoning = Boolean(default=True)
    reasoning = Reasoning()
    stream_options = StreamOptions(default=dict)
    metadata = Metadata(default=dict)
    user = String(max_length=512)
    safety_identifier = String(max_length=128)
    prompt_cache_key = String(max_length=1024)
    chat_template_kwargs = TemplateKwargs(default=dict)

    def validate(self, body: dict) -> dict:
        continued = body.keys() & {"conversation", "previous_response_id"}
        if "input" not in body and not continued:
            raise missing("input")
        if len(continued) == 2:
            raise InvalidRequest(ONE_PAST, "conversation", "mutually_exclusive_parameters")
        body["text"], body["response_format"] = body.get(
            "text", ({"format": {"type": "text"}}, None)
        )
        if body["background"] and not body["store"]:
            message = "'background' requires 'store' to be true."
            raise InvalidRequest(message, "background", "invalid_value")
        only_format(body)
        body["tool_choice_echo"] = self.initial_data.get("tool_choice") or "auto"
        return body
