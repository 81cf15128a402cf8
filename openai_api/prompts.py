"""A validated body to what the engine wants: token ids and SamplingParams.

Everything that can be wrong with a prompt is found here, before any header is sent.
"""

import asyncio
from collections.abc import Iterable

from django.conf import settings

from inference.errors import InvalidPrompt, PromptTooLong
from inference.request import ModelInfo, SamplingParams
from inference.text import chat_template
from openai_api.errors import ContextTooLong, InvalidRequest, ModelNotFound

# No tokenizer here needs more characters for one token than this; a longer prompt is refused
# before it costs seconds of tokenizing.
MAX_CHARS_PER_TOKEN = 64
LARGE_PROMPT = 64 * 1024  # characters beyond which tokenizing leaves the event loop


def served_names(model: ModelInfo) -> tuple[str, ...]:
    return settings.API.served_model_name or (model.name,)


def check_model(model: ModelInfo, name: str) -> None:
    if name not in served_names(model):
        raise ModelNotFound(
            f"The model `{name[:200]}` does not exist or you do not have access to it."
        )


async def chat_prompt(
    model: ModelInfo, messages: list[dict], body: dict, param: str = "messages"
) -> list[int]:
    """Messages to token ids. Raises InvalidRequest or ContextTooLong naming `param`."""
    kwargs = thinking_kwargs(body) | body["chat_template_kwargs"]
    try:
        text = chat_template.render(model.tokenizer, messages, kwargs)
    except InvalidPrompt as exc:
        raise InvalidRequest(str(exc), param) from exc
    return await tokenize(model, text, param, add_special_tokens=False)


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


def check_prompt(engine, token_ids: list[int], param: str) -> None:
    """The engine's own check, told with the name of the field."""
    try:
        engine.check_prompt(token_ids)
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
    choice: int = 0,
) -> SamplingParams:
    """The body's sampling fields over the model's defaults. Choice i of a seed is seed + i."""
    defaults = dict(model.generation_defaults)
    chosen = {name: body[name] for name in SAMPLED if body.get(name) is not None}
    check_token_ids(model, "logit_bias", body["logit_bias"])
    check_token_ids(model, "stop_token_ids", body["stop_token_ids"])
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
