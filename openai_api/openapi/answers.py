"""What the API answers, as JSON Schema. Clients may rely on what is required; more may come."""

from openai_api.openapi.shapes import FLAG, TEXT, Schema, array, choice, obj, optional

COUNT: Schema = {"type": "integer", "minimum": 0}
ANY: Schema = {}

ERROR = obj(
    "error",
    error=obj(
        "message type param code",
        message=TEXT,
        type={**TEXT, "examples": ["invalid_request_error", "rate_limit_error", "server_error"]},
        param={"type": ["string", "null"], "description": "The field, such as messages[0].role."},
        code={"type": ["string", "null"]},
    ),
)
COMPLETION_USAGE = obj(
    "prompt_tokens completion_tokens total_tokens",
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    total_tokens=COUNT,
)
RESPONSE_USAGE = obj(
    "input_tokens output_tokens total_tokens",
    input_tokens=COUNT,
    output_tokens=COUNT,
    total_tokens=COUNT,
)
METADATA: Schema = {"type": ["object", "null"], "additionalProperties": TEXT}


def page(of: Schema) -> Schema:
    return obj(
        "object data first_id last_id has_more",
        object=choice("list"),
        data=array(of),
        first_id={"type": ["string", "null"]},
        last_id={"type": ["string", "null"]},
        has_more={"type": "boolean"},
    )


def deleted(kind: str) -> Schema:
    return obj("id object deleted", id=TEXT, object=choice(kind), deleted={"type": "boolean"})


MODEL = obj(
    "id object created owned_by",
    id=TEXT,
    object=choice("model"),
    created=COUNT,
    owned_by=TEXT,
    max_model_len=COUNT,
)
CHAT_MESSAGE = obj(
    "role content",
    role=choice("assistant"),
    content={"type": ["string", "null"]},
    reasoning_content={"type": ["string", "null"]},
    tool_calls=optional(array({"type": "object"})),
)
CHAT = obj(
    "id object created model choices usage",
    id=TEXT,
    object=choice("chat.completion"),
    created=COUNT,
    model=TEXT,
    choices=array(
        obj(
            "index message finish_reason",
            index=COUNT,
            message=CHAT_MESSAGE,
            finish_reason={"type": ["string", "null"]},
        )
    ),
    usage=COMPLETION_USAGE,
)
COMPLETION = obj(
    "id object created model choices usage",
    id=TEXT,
    object=choice("text_completion"),
    created=COUNT,
    model=TEXT,
    choices=array(obj("index text finish_reason", index=COUNT, text=TEXT)),
    usage=COMPLETION_USAGE,
)
OUTPUT_ITEM = obj("id type", id=TEXT, type=TEXT)
RESPONSE = obj(
    "id object created_at status model output usage error metadata",
    id=TEXT,
    object=choice("response"),
    created_at=COUNT,
    status=choice("queued", "in_progress", "completed", "incomplete", "failed", "cancelled"),
    model=TEXT,
    output=array(OUTPUT_ITEM),
    usage=optional(RESPONSE_USAGE),
    error=optional(obj("code message", code=TEXT, message=TEXT)),
    metadata=METADATA,
    store=FLAG,
    background=FLAG,
)
CONVERSATION = obj(
    "id object created_at metadata",
    id=TEXT,
    object=choice("conversation"),
    created_at=COUNT,
    metadata=METADATA,
)
ITEM = obj("id type", id=TEXT, type=TEXT)

ANSWERS: dict[str, Schema] = {
    "Error": ERROR,
    "Model": MODEL,
    "Models": obj("object data", object=choice("list"), data=array(MODEL)),
    "ChatCompletion": CHAT,
    "ChatCompletions": page(CHAT),
    "ChatMessages": page(obj("id role", id=TEXT, role=TEXT)),
    "ChatCompletionDeleted": deleted("chat.completion.deleted"),
    "Completion": COMPLETION,
    "Response": RESPONSE,
    "ResponseDeleted": deleted("response"),
    "InputTokens": obj(
        "object input_tokens", object=choice("response.input_tokens"), input_tokens=COUNT
    ),
    "Compaction": obj(
        "id object output usage",
        id=TEXT,
        object=choice("response.compaction"),
        output=array(OUTPUT_ITEM),
        usage=RESPONSE_USAGE,
    ),
    "Items": page(ITEM),
    "Item": ITEM,
    "Conversation": CONVERSATION,
    "ConversationDeleted": deleted("conversation.deleted"),
    "Tokens": obj(
        "count max_model_len tokens", count=COUNT, max_model_len=COUNT, tokens=array(COUNT)
    ),
    "Text": obj("prompt", prompt=TEXT),
    "Health": obj("status stage", status=TEXT, stage=TEXT),
    "Ready": obj("status model", status=choice("ready"), model=TEXT),
}
