"""Valid requests that between them use every parameter, to be made hostile by `fuzz`."""

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 9, "pattern": "^[a-z]+$"},
        "size": {"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.5},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 1, None]}, "maxItems": 3},
        "next": {"$ref": "#/$defs/node"},
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"node": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
}
FUNCTION = {"name": "f", "description": "Does it", "parameters": SCHEMA, "strict": True}
TOOL = {"type": "function", "function": FUNCTION}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": 'start: "a" | "b"'}
CUSTOM = {"type": "custom", "custom": {"name": "c", "format": {"type": "text"}}}
USER = {"role": "user", "content": "Hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
MESSAGES = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    USER | {"name": "ann"},
    {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"},
    {"role": "tool", "tool_call_id": "call_1", "content": "42"},
    {"role": "user", "content": [{"type": "text", "text": "Und? 🎉"}]},
]
SAMPLING = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": 1.5, "7": -100},
    "seed": 1,
    "stop": ["\n\n", "STOP"],
    "stop_token_ids": [3],
    "min_tokens": 1,
    "ignore_eos": False,
    "bad_words": ["word"],
    "skip_special_tokens": True,
    "include_stop_str_in_output": False,
    "cache_salt": "s",
    "priority": 1,
    "user": "me",
    "service_tier": "auto",
}
GENERATION = {
    "n": 2,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "stream_interval": 2,
    "return_token_ids": True,
    "truncate_prompt_tokens": 50,
    "truncation_side": "left",
    "echo": True,
}
JSON_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
ITEMS = [
    {"role": "user", "content": "Hi"},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes"}]},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "42"},
    {"type": "custom_tool_call", "call_id": "c2", "name": "c", "input": "x"},
    {"type": "custom_tool_call_output", "call_id": "c2",
     "output": [{"type": "input_text", "text": "y"}]},
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "q"}},
    {"role": "user", "content": [{"type": "input_text", "text": "Und?"}]},
]  # fmt: skip
RESPONSE_TOOLS = [
    {"type": "function", **FUNCTION},
    {"type": "custom", "name": "c", "format": GRAMMAR},
    {"type": "web_search"},
    {"type": "namespace", "name": "ns", "tools": [{"type": "function", "name": "g"}]},
]
CHAT = {"messages": [USER], "max_tokens": 3}
TEXT = {"prompt": "Hi", "max_tokens": 3}
RESPONSE = {"input": "Hi", "max_output_tokens": 3}

CHATS = [
    CHAT | {"messages": MESSAGES, "store": True, "metadata": {"a": "b"}},
    CHAT | SAMPLING | GENERATION,
    CHAT | {"tools": [TOOL, CUSTOM], "tool_choice": "auto", "parallel_tool_calls": True},
    CHAT | {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    CHAT | {"functions": [FUNCTION], "function_call": {"name": "f"}},
    CHAT | {"response_format": JSON_FORMAT, "reasoning_effort": "low"},
    CHAT | {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " ?"}},
    CHAT | {"guided_regex": "[a-z]{1,5}(x|y)*"},
    CHAT | {"logprobs": True, "top_logprobs": 3, "prompt_logprobs": 1, "logprob_token_ids": [1]},
    CHAT | {"chat_template_kwargs": {"enable_thinking": False}, "documents": [{"text": "x"}]},
    CHAT | {"messages": [*MESSAGES, {"role": "assistant", "content": "So"}],
            "continue_final_message": True, "add_generation_prompt": False, "echo": True},
]  # fmt: skip
TEXTS = [
    TEXT | SAMPLING | GENERATION,
    TEXT | {"prompt": ["a", "b"], "best_of": 2, "logprobs": 2, "prompt_logprobs": 1},
    TEXT | {"prompt": [[1, 2], [3]], "echo": True, "allowed_token_ids": [1, 2, 3]},
    TEXT | {"structured_outputs": {"grammar": 'root ::= "a" | "b" root'}},
    TEXT | {"structured_outputs": {"choice": ["yes", "no"]}, "suffix": ""},
    TEXT | {"guided_json": '{"type": "object"}', "add_special_tokens": False},
]
FIELDS = {
    "instructions": "Be brief.",
    "store": True,
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 2,
    "truncation": "auto",
    "max_tool_calls": 1,
    "metadata": {"a": "b"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "context_management": [{"type": "compaction", "compact_threshold": 300}],
    "request_id": "resp_1",
}
RESPONSES = [
    RESPONSE | FIELDS | SAMPLING,
    RESPONSE | {"input": ITEMS, "stream": True},
    RESPONSE | {"tools": RESPONSE_TOOLS, "tool_choice": "auto", "store": False},
    RESPONSE | {"tools": RESPONSE_TOOLS, "tool_choice": {"type": "function", "name": "f"}},
    RESPONSE | {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
    RESPONSE | {"background": True, "stream": True},
    RESPONSE | {"previous_response_id": "resp_x"},
    RESPONSE | {"conversation": {"id": "conv_x"}},
    RESPONSE | {"input": [*ITEMS, {"type": "item_reference", "id": "msg_1"}]},
    RESPONSE | {"input": [{"type": "compaction", "encrypted_content": "x"}, *ITEMS]},
]
METADATA = [{"metadata": {"a": "b", "c": "d" * 100}}]

# A body may also be for an object that exists; its path names what kind: see `fuzz.Ids`.
PAYLOADS = {
    "/v1/chat/completions": CHATS,
    "/v1/chat/completions/{chat}": METADATA,
    "/v1/completions": TEXTS,
    "/v1/responses": RESPONSES,
    "/v1/responses/input_tokens": RESPONSES,
    "/v1/responses/compact": RESPONSES,
    "/v1/responses/{response}/cancel": [{}],
    "/v1/conversations": [{"items": ITEMS, "metadata": {"a": "b"}}],
    "/v1/conversations/{conversation}": METADATA,
    "/v1/conversations/{conversation}/items": [{"items": ITEMS}],
    "/tokenize": [
        {"prompt": "Hi", "add_special_tokens": True, "return_token_strs": True},
        {"messages": MESSAGES, "tools": [TOOL], "add_generation_prompt": True},
    ],
    "/detokenize": [{"tokens": [1, 2, 3]}],
}
