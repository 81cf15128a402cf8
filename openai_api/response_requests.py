"""From a checked body of the Responses API to a row and a choice, ready to be run."""

import asyncio
import math
import secrets
from dataclasses import dataclass, field, replace

from inference.request import ModelInfo, SamplingParams
from inference.service import get_engine
from openai_api import conversations
from openai_api import response_rows as rows
from openai_api.answers import Answer, Choice
from openai_api.compaction import after_compaction, kept_messages, summarise
from openai_api.database import read
from openai_api.errors import ContextTooLong, InvalidRequest
from openai_api.limits import Lease
from openai_api.models import StoredResponse
from openai_api.prompts import chat_prompt, sampling_params, seed_of
from openai_api.protocol.ids import new_response_id
from openai_api.protocol.items import check_calls, to_messages, without_orphans
from openai_api.runs import LOGPROBS
from openai_api.serializers.responses import Reasoning, TextFormat
from openai_api.structured import constraint_of
from openai_api.tools import ToolUse, response_tool_use

TRIGGER = "compaction_trigger"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A response that can be begun: nothing about it is wrong."""

    body: dict
    row: StoredResponse
    choice: Choice
    use: ToolUse
    items: list[dict]  # the whole conversation so far

    first_items: list[dict] = field(default_factory=list)  # of the output: a compaction
    lease: Lease = field(default_factory=Lease)

    @property
    def run_options(self) -> dict:
        return {"include": self.body["include"], "first_items": self.first_items}

    def as_warm_up(self) -> "Prepared":
        """The same, only to be read by the model: what follows finds it in the prefix cache."""
        params = replace(self.choice.params, max_tokens=0)
        return replace(self, choice=replace(self.choice, params=params))

    def answer(self, engine, generated=()) -> Answer:
        """Queue it. Raises what the engine's checks raise."""
        return Answer(engine, self.choice, self.body, chat=True, use=self.use, generated=generated)


def with_seed(body: dict) -> dict:
    """The body with a seed of its own, if neither it nor the server's settings have one."""
    if seed_of(body, 0) is not None:
        return body
    return body | {"seed": secrets.randbits(63)}


async def prepare(
    model: ModelInfo,
    body: dict,
    owner: int | None,
    context: list[dict] | None = None,
    lease: Lease | None = None,
) -> Prepared:
    """Raises InvalidRequest or ContextTooLong naming the field.

    `context` holds the items that came before, if the caller knows them. Without a lease, by which
    it would be counted, nothing is generated, and so nothing compacted.
    """
    context, items, position = await conversation_so_far(body, owner, context)
    context = _within(model.max_model_len, context, body)
    check_calls(context + items)
    if body["background"]:
        body = with_seed(body)
    body = _configured(body, context + items)
    use = response_tool_use(body, context + items)
    before, rest, first_items = *_told(context, items), []
    is_trigger = bool(items) and items[-1]["type"] == TRIGGER
    prompt = await _prompt(model, body, before + rest, use)
    if lease and before and (is_trigger or len(prompt) > _threshold(body)):
        first_items = [await summarise(get_engine(), body, before, lease)]
        before = kept_messages(before) + first_items
        prompt = await _prompt(model, body, before + rest, use)
    constraint = await constraint_of(model, body, prompt, use)
    params = sampling_params(
        model,
        body,
        max_tokens=body.get("max_output_tokens"),
        logprobs=body["top_logprobs"] if LOGPROBS in body["include"] else None,
    )
    row = _row(body, params, items, position)
    row.key_id = owner
    choice = Choice(prompt, params, constraint=constraint)
    prepared = Prepared(body, row, choice, use, before + rest, first_items, lease or Lease())
    return prepared.as_warm_up() if is_trigger else prepared


def _row(
    body: dict, params: SamplingParams, items: list[dict], position: int | None
) -> StoredResponse:
    return StoredResponse(
        id=body.get("request_id") or new_response_id(),
        previous_id=body.get("previous_response_id"),
        conversation_id=body.get("conversation"),
        conversation_position=position,
        model=body["model"],
        request=request_echo(body, params),
        input=items,
        background=body["background"],
        status=StoredResponse.Status.QUEUED if body["background"] else "in_progress",
    )


def _told(context: list[dict], items: list[dict]) -> tuple[list[dict], list[dict]]:
    """What still counts of what came before, and of the request's own items.

    Raises InvalidRequest for a trigger that is not the last item.
    """
    kinds = [item["type"] for item in items]
    if TRIGGER in kinds[:-1]:
        raise InvalidRequest(f"'{TRIGGER}' must be the last item.", "input", "invalid_value")
    if TRIGGER in kinds:
        return after_compaction(context + items), []
    if "compaction" in kinds:
        return [], after_compaction(context + items)
    return after_compaction(context), items


async def conversation_so_far(
    body: dict, owner: int | None, context: list[dict] | None = None
) -> tuple[list[dict], list[dict], int | None]:
    """What came before, the request's own items, and the key of a conversation's last item."""
    items, position = body.get("input", []), None
    if context is None:
        context, position = await _context(body, owner)
    if any(item["type"] == "item_reference" for item in items):
        items = await read(rows.referenced, items, context, "input", owner)
    conversations.refuse_known((), items, "input")
    return context, items, position


def _within(max_items: int, context: list[dict], body: dict) -> list[dict]:
    """What may fit of what came before: an item is a token at least. Raises ContextTooLong.

    Nothing else runs while a chain of a million items is looked through, again and again.
    """
    if len(context) <= max_items:
        return context
    if body["truncation"] != "auto":
        message = f"The conversation has {len(context)} items, more than fit into the context."
        raise ContextTooLong(message, "input")
    return without_orphans(context[-max_items:])


async def _context(body: dict, owner: int | None) -> tuple[list[dict], int | None]:
    if (conversation_id := body.get("conversation")) is None:
        return await read(rows.chain_items, body.get("previous_response_id"), owner), None
    context, position = await read(conversations.context, conversation_id, owner)
    known = (item["id"] for item in context)
    conversations.refuse_known(known, body.get("input", []), "input")
    return context, position


async def _prompt(model: ModelInfo, body: dict, items: list[dict], use: ToolUse) -> list[int]:
    """Token ids of a conversation; with `truncation: auto` without what does not fit of it."""

    async def rendered(num_dropped: int) -> list[int]:
        messages = to_messages(without_orphans(items[num_dropped:]), body.get("instructions"))
        if not messages:
            raise InvalidRequest("There is nothing to answer.", "input", "empty_array")
        return await chat_prompt(model, messages, body, "input", use.tools)

    if body["truncation"] != "auto":
        return await rendered(0)
    reserved = min(body.get("max_output_tokens") or 1, model.max_model_len // 2)
    low, high = 0, max(len(items) - 1, 0)  # the last item always stays
    while low < high:
        middle = (low + high) // 2
        try:
            fits = len(await rendered(middle)) <= model.max_model_len - reserved
        except ContextTooLong:
            fits = False
        await asyncio.sleep(0)  # between looks at a long conversation others have their turn
        low, high = (low, middle) if fits else (middle + 1, high)
    return await rendered(low)


def _threshold(body: dict) -> float:
    """Tokens beyond which a conversation is compacted first."""
    entries = [entry.get("compact_threshold") for entry in body["context_management"]]
    return min((entry for entry in entries if entry is not None), default=math.inf)


def _configured(body: dict, items: list[dict]) -> dict:
    """The body with what items of the conversation have changed: the last of each kind counts."""
    for item in items:
        if item["type"] != "configuration_update":
            continue
        if (reasoning := item.get("reasoning")) is not None:
            effort = Reasoning().check("input", reasoning)["effort"]
            body = body | {"reasoning": (body.get("reasoning") or {}) | {"effort": effort}}
        if (text := item.get("text")) is not None:
            echo, form = TextFormat().check("input", text)
            body = body | {"text": body["text"] | echo, "response_format": form}
    return body


def request_echo(body: dict, params) -> dict:
    """The part of the Response resource that repeats the request, in effect and not as sent."""
    echo = {name: body.get(name) for name in ECHOED}
    return echo | {
        "background": body["background"],
        "parallel_tool_calls": body["parallel_tool_calls"],
        "reasoning": body.get("reasoning") or {"effort": None, "summary": None},
        "service_tier": "default",
        "store": body["store"],
        "temperature": params.temperature,
        "text": body["text"],
        "tool_choice": body["tool_choice_echo"],
        "tools": body["tools"],
        "top_logprobs": body["top_logprobs"],
        "top_p": params.top_p,
        "truncation": body["truncation"],
        "metadata": body["metadata"],
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
    }


ECHOED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "user",
)
