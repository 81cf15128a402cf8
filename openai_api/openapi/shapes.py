"""The shapes of those fields that are no scalars: what their checkers take, as JSON Schema."""

from typing import Any

from openai_api.serializers.chat import MESSAGE, Documents, Messages, TemplateKwargs
from openai_api.serializers.completions import Prompt
from openai_api.serializers.fields import Metadata
from openai_api.serializers.formats import (
    GUIDED,
    GuidedChoice,
    GuidedGrammar,
    GuidedJson,
    GuidedRegex,
    ResponseFormat,
    StructuredOutputs,
)
from openai_api.serializers.items import ITEMS, ROLES, Item
from openai_api.serializers.responses import (
    ContextManagement,
    ConversationId,
    Input,
    Reasoning,
    TextFormat,
)
from openai_api.serializers.sampling import LogitBias, StreamOptions
from openai_api.serializers.tools import (
    HOSTED,
    MAX_TOOLS,
    FunctionCall,
    Functions,
    ResponseTools,
    ToolChoice,
    Tools,
)

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": ["boolean", "null"]}
OBJECT: Schema = {"type": "object"}
TOKEN_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
NAME: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}


def obj(required: str = "", /, **properties: Schema) -> Schema:
    """An object of these properties, of which those named are required; others may be there."""
    schema: Schema = {"type": "object", "properties": properties}
    return schema | {"required": required.split()} if required else schema


def array(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


def any_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def choice(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def optional(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


PART = any_of(
    obj("type text", type=choice("text", "input_text", "output_text", "reasoning_text"), text=TEXT),
    obj("type refusal", type=choice("refusal"), refusal=TEXT),
)
CONTENT = any_of(TEXT, array(PART))
ARGUMENTS = {**TEXT, "description": "A JSON object, as text."}
CALL = any_of(
    obj("function", id=TEXT, type=choice("function"), function=obj("name", name=TEXT)),
    obj("type custom", id=TEXT, type=choice("custom"), custom=obj("name input", input=TEXT)),
)
MESSAGE_OF = {
    "assistant": obj(
        "role",
        role=choice("assistant"),
        content=optional(CONTENT),
        tool_calls=optional(array(CALL)),
        reasoning_content=optional(TEXT),
    ),
    "tool": obj("role content tool_call_id", role=choice("tool"), content=CONTENT,
                tool_call_id=TEXT),
}  # fmt: skip
MESSAGES = array(
    {
        "oneOf": [
            MESSAGE_OF.get(role, obj("role content", role=choice(role), content=CONTENT, name=TEXT))
            for role in MESSAGE.checkers
        ]
    },
    minItems=1,
)
FUNCTION = obj("name", name=NAME, description=optional(TEXT), parameters=optional(OBJECT),
               strict=FLAG)  # fmt: skip
CUSTOM_FORMAT = any_of(
    obj("type", type=choice("text")),
    obj("type syntax definition", type=choice("grammar"), syntax=choice("lark", "regex"),
        definition={**TEXT, "maxLength": 65_536}),
)  # fmt: skip
CUSTOM = obj("name", name=NAME, description=optional(TEXT), format=optional(CUSTOM_FORMAT))
HOSTED_TOOL = obj("type", type={**TEXT, "pattern": f"^({'|'.join(HOSTED)})(_.*)?$"}) | {
    "description": "A tool that only OpenAI runs: left out of the prompt, or refused."
}


def tagged(kind: str, shape: Schema) -> Schema:
    """The shape with its type beside the other fields."""
    properties = {"type": choice(kind), **shape["properties"]}
    return obj(" ".join(["type", *shape["required"]]), **properties)


JSON_SCHEMA = obj("name", name=NAME, schema=OBJECT, strict=FLAG, description=TEXT)
TAGS = obj(
    "structures triggers",
    structures=array(obj("begin end", begin=TEXT, end=TEXT, schema=OBJECT), minItems=1),
    triggers=array(TEXT, maxItems=64),
)
PLAIN = obj("type", type=choice("text", "json_object"))
GUIDED_SHAPES = {
    "json": any_of(OBJECT, TEXT),
    "regex": {**TEXT, "maxLength": 16_384},
    "choice": array({**TEXT, "minLength": 1, "maxLength": 4_096}, minItems=1, maxItems=1_000),
    "grammar": {**TEXT, "maxLength": 65_536},
    "json_object": {"type": "boolean"},
    "structural_tag": any_of(TAGS, TEXT),
}
ITEM = any_of(
    obj("role content", type=choice("message"), role=choice(*ROLES), content=CONTENT),
    obj("type", type=choice(*ITEMS)),
    obj("id", id=TEXT),
    obj("type", type={"type": "string", "pattern": "_call(_output)?$"}),
)
EFFORT = choice("none", "minimal", "low", "medium", "high", "xhigh", "max")
MODES = choice("none", "auto", "required")
ALLOWED = obj("mode tools", mode=choice("auto", "required"), tools=array(OBJECT))

SHAPES: dict[type, Schema] = {
    Messages: MESSAGES,
    Documents: array({"type": "object", "additionalProperties": TEXT}),
    TemplateKwargs: {
        "type": "object",
        "additionalProperties": {"type": ["boolean", "number", "string"]},
    },
    Prompt: any_of(
        TEXT, TOKEN_IDS, array(any_of(TEXT, TOKEN_IDS), minItems=1),
    ),
    Metadata: {
        "type": "object",
        "maxProperties": 16,
        "propertyNames": {"maxLength": 64},
        "additionalProperties": {"type": "string", "maxLength": 512},
    },
    LogitBias: {
        "type": "object",
        "maxProperties": 1024,
        "propertyNames": {"pattern": "^[0-9]{1,10}$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "description": "Token ids, in decimal digits, and how much likelier they become.",
    },
    StreamOptions: obj(include_usage=FLAG, continuous_usage_stats=FLAG, include_obfuscation=FLAG),
    Tools: array(
        any_of(
            obj("type function", type=choice("function"), function=FUNCTION),
            obj("type custom", type=choice("custom"), custom=CUSTOM),
            HOSTED_TOOL,
        ),
        maxItems=MAX_TOOLS,
    ),
    ResponseTools: array(
        any_of(
            tagged("function", FUNCTION),
            tagged("custom", CUSTOM),
            obj("type name", type=choice("namespace"), name=NAME, tools=array(OBJECT)),
            HOSTED_TOOL,
        ),
        maxItems=MAX_TOOLS,
    ),
    Functions: array(FUNCTION, maxItems=MAX_TOOLS),
    ToolChoice: any_of(
        MODES,
        obj("type", type=choice("function", "custom"), name=NAME, function=OBJECT, custom=OBJECT),
        obj("type", type=choice("allowed_tools"), allowed_tools=ALLOWED, **ALLOWED["properties"]),
    ),
    FunctionCall: any_of(choice("none", "auto"), obj("name", name=NAME)),
    ResponseFormat: any_of(
        PLAIN,
        obj("type json_schema", type=choice("json_schema"), json_schema=JSON_SCHEMA),
        tagged("structural_tag", TAGS),
    ),
    StructuredOutputs: obj(
        **{kind: GUIDED_SHAPES[kind] for kind in GUIDED},
        whitespace_pattern={**TEXT, "maxLength": 256},
        disable_any_whitespace={"type": "boolean"},
    ) | {"description": "Exactly one of the forms."},
    GuidedJson: GUIDED_SHAPES["json"],
    GuidedRegex: GUIDED_SHAPES["regex"],
    GuidedChoice: GUIDED_SHAPES["choice"],
    GuidedGrammar: GUIDED_SHAPES["grammar"],
    Input: any_of(TEXT, array(ITEM)),
    Item: ITEM,
    TextFormat: obj(
        format=optional(any_of(PLAIN, tagged("json_schema", JSON_SCHEMA))),
        verbosity=optional(choice("low", "medium", "high")),
    ),
    Reasoning: obj(
        effort=optional(EFFORT), summary=optional(choice("auto", "concise", "detailed"))
    ),
    ConversationId: any_of(TEXT, obj("id", id=TEXT)),
    ContextManagement: array(
        obj(
            "type",
            type=choice("compaction"),
            compact_threshold=optional({"type": "integer", "minimum": 1}),
        )
    ),
}  # fmt: skip
