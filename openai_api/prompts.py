"""A validated body to what the engine wants: token ids and SamplingParams.

Everything that can be wrong with a prompt is found here, before any header is sent.
"""

import asyncio
from collections.abc import Iterable

from django.conf import settings

from inference.errors import InvalidPrompt, PromptTooLong
from inference.request import ModelInfo, SamplingParams
from inference.text import chat_template
from inference.text.syntax import template_of
from openai_api.errors import (
    ContextTooLong,
    InvalidRequest,
    ModelNotAllowed,
    ModelNotFound,
    UnsupportedParameter,
)
from openai_api.models import ApiKey

# No tokenizer here needs more characters for one token than this; a longer prompt is refused
# before it costs seconds of tokenizing.
MAX_CHARS_PER_TOKEN = 64
LARGE_PROMPT = 64 * 1024  # characters beyond which tokenizing leaves the event loop


def served_names(model: ModelInfo) -> tuple[str, ...]:
    return settings.API.served_model_name or (model.name,)


def owned(body: dict, owner: int | None) -> dict:
    """The body with its owner, for whose turn it is, and with a salt that no other key has.

    A prefix found in the cache tells what was said, and so does how long the first token takes.
    """
    body = body | {"owner": owner_name(owner)}
    if settings.API.prefix_cache_scope == "global":
        return body
    return body | {"cache_salt": f"{owner or 'nobody'}:{body['cache_salt']}"}


def owner_name(owner: int | None) -> str:
    """As the engine knows it; without keys all are one, and nobody."""
    return "" if owner is None else str(owner)


def allowed_names(model: ModelInfo, key: ApiKey | None) -> tuple[str, ...]:
    return tuple(name for name in served_names(model) if key is None or key.allows(name))


def check_model(model: ModelInfo, name: str, key: ApiKey | None) -> None:
    """Raises ModelNotFound or ModelNotAllowed."""
    if name not in served_names(model):
        raise ModelNotFound(
            f"The model `{name[:200]}` does not exist or you do not have access to it."
        )
    if key is not None and not key.allows(name):
        raise ModelNotAllowed(f"Your API key may not use the model `{name}`.")


def any_model(model: ModelInfo, key: ApiKey | None) -> str:
    """A name for those who give none. Raises ModelNotAllowed."""
    if not (names := allowed_names(model, key)):
        raise ModelNotAllowed("Your API key may not use this server's model.")
    return names[0]


async def chat_prompt(
    model: ModelInfo,
    messages: list[dict],
    body: dict,
    param: str = "messages",
    tools: Iterable[dict] = (),
) -> list[int]:
    """Messages to token ids. Raises InvalidRequest or ContextTooLong naming `param`."""
    options = template_options(model, body) | ({"tools": list(tools)} if tools else {})
    try:
        text = chat_template.render(model.tokenizer, messages, options)
    except InvalidPrompt as exc:
        raise InvalidRequest(str(exc), param) from exc
    special = body.get("add_special_tokens", False)
    return await tokenize(model, text, param, add_special_tokens=special)


def template_options(model: ModelInfo, body: dict) -> dict:
    """What the body wants of the chat template. Raises InvalidRequest for what it cannot do."""
    names = ("add_generation_prompt", "continue_final_message", "chat_template", "documents")
    options = {name: body[name] for name in names if body.get(name) is not None}
    template = options.get("chat_template") or template_of(model.tokenizer)
    if options.get("documents") and "documents" not in template:
        message = "This model's chat template takes no documents."
        raise InvalidRequest(message, "documents", "unsupported_parameter")
    return thinking_kwargs(body) | body["chat_template_kwargs"] | options


def thinking_kwargs(body: dict) -> dict:
    """What templates of reasoning models understand: on, off, and how much."""
    effort = body.get("reasoning_effort") or (body.get("reasoning") or {}).get("effort")
    if effort is None:
        return {}
    return {"enable_thinking": effort != "none", "reasoning_effort": effort}


async def tokenize(
    model: ModelInfo, text: str, param: str, *, add_special_tokens: bool
) -> list[int]:
    """Text to token ids; long texts in a thread. Raises what `check_prompt` raises."""
    if len(text) > model.max_model_len * MAX_CHARS_PER_TOKEN:
        raise ContextTooLong(
            f"This model's maximum context length is {model.max_model_len} tokens. However, your "
            f"prompt has {len(text)} characters.",
            param,
        )

    def encode() -> list[int]:
        return chat_template.encode(model.tokenizer, text, add_special_tokens=add_special_tokens)

    return await asyncio.to_thread(encode) if len(text) > LARGE_PROMPT else encode()


def truncated(model: ModelInfo, token_ids: list[int], body: dict, max_tokens: int | None):
    """What `truncate_prompt_tokens` leaves; -1 leaves as much as there is room for."""
    if (limit := body.get("truncate_prompt_tokens")) is None:
        return token_ids
    if limit == -1:
        limit = max(model.max_model_len - (1 if max_tokens is None else max_tokens), 1)
    return token_ids[-limit:] if body["truncation_side"] == "left" else token_ids[:limit]


FILL_IN_THE_MIDDLE = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("<PRE>", "<SUF>", "<MID>"),
)


def fill_in_the_middle(model: ModelInfo, prefix: str, suffix: str) -> str:
    """A prompt for what belongs between the two. Raises UnsupportedParameter."""
    vocabulary = model.tokenizer.get_vocab()
    for begin, hole, end in FILL_IN_THE_MIDDLE:
        if all(token in vocabulary for token in (begin, hole, end)):
            return f"{begin}{prefix}{hole}{suffix}{end}"
    message = "Unsupported parameter: this model cannot fill in the middle, so takes no 'suffix'."
    raise UnsupportedParameter(message, "suffix")


def check_prompt(engine, token_ids: list[int], param: str, max_tokens: int | None = None) -> None:
    """The engine's own check, told with the name of the field."""
    try:
        engine.check_prompt(token_ids, max_tokens)
    except PromptTooLong as exc:
        raise ContextTooLong(str(exc), param) from exc
    except InvalidPrompt as exc:
        raise InvalidRequest(str(exc), param) from exc


def sampling_params(
    model: ModelInfo,
    body: dict,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    choice: int = 0,
) -> SamplingParams:
    """The body's sampling fields over the model's defaults. Choice i of a seed is seed + i."""
    defaults = dict(model.generation_defaults)
    chosen = {name: body[name] for name in SAMPLED if body.get(name) is not None}
    check_token_ids(model, "logit_bias", body["logit_bias"])
    check_token_ids(model, "stop_token_ids", body["stop_token_ids"])
    check_token_ids(model, "logprob_token_ids", body.get("logprob_token_ids", ()))
    if (allowed := body.get("allowed_token_ids")) is not None:
        check_token_ids(model, "allowed_token_ids", allowed)
        if not allowed:
            message = "Invalid 'allowed_token_ids': no token would be left."
            raise InvalidRequest(message, "allowed_token_ids", "empty_array")
    values = defaults | chosen
    values["top_k"] = max(int(values.get("top_k", 0)), 0)
    return SamplingParams(
        **values,
        logit_bias=body["logit_bias"],
        bad_token_ids=bad_token_ids(model, body["bad_words"]),
        allowed_token_ids=None if allowed is None else tuple(allowed),
        min_tokens=body["min_tokens"],
        max_tokens=max_tokens,
        ignore_eos=body["ignore_eos"],
        stop_token_ids=frozenset(body["stop_token_ids"]),
        seed=seed_of(body, choice),
        logprobs=logprobs,
        logprob_token_ids=tuple(body.get("logprob_token_ids", ())),
        prompt_logprobs=prompt_logprobs,
    )


SAMPLED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


def seed_of(body: dict, choice: int) -> int | None:
    seed = body.get("seed")
    if seed is None:
        seed = settings.ENGINE.seed
    return None if seed is None else seed + choice


def bad_token_ids(model: ModelInfo, words: list[str]) -> tuple[tuple[int, ...], ...]:
    """The token sequences that spell each word, at the beginning of a text and after a space."""
    spelled = {
        tuple(chat_template.encode(model.tokenizer, variant, add_special_tokens=False))
        for word in words
        if word.strip()
        for variant in (word, " " + word.lstrip())
    }
    return tuple(sorted(ids for ids in spelled if ids))


def check_token_ids(model: ModelInfo, param: str, token_ids: Iterable[int]) -> None:
    if wrong := [token for token in token_ids if token >= model.vocab_size]:
        raise InvalidRequest(
            f"Invalid '{param}': token id {wrong[0]} is outside the vocabulary "
            f"of {model.vocab_size}.",
            param,
            "invalid_value",
        )


def check_choices(param: str, number: int) -> None:
    """Many choices cost as much as many requests, so their number has its own limit."""
    if number > (limit := settings.API.max_choices):
        raise InvalidRequest(
            f"Invalid '{param}': integer above maximum value. Expected a value <= {limit}, "
            f"but got {number} instead.",
            param,
            "integer_above_max_value",
        )
