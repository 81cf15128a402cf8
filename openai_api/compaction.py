"""Long conversations made short: a summary by the model itself takes the place of old items.

The summary travels as a sealed `compaction` item. What comes before such an item is forgotten, but
for the user's last messages, which are kept word for word.
"""

from inference.request import ModelInfo
from openai_api.answers import Answer, Choice
from openai_api.limits import Lease, estimate
from openai_api.prompts import chat_prompt, sampling_params
from openai_api.protocol.ids import new_id
from openai_api.protocol.items import to_messages
from openai_api.sealed import seal

MAX_SUMMARY_TOKENS = 512
NUM_KEPT_MESSAGES = 3
INSTRUCTIONS = (
    "Summarise the conversation below for somebody who has to go on with it: the task, what was "
    "decided and found out, names, numbers and files that matter, and what is still open. Write "
    "the summary and nothing else."
)


def after_compaction(items: list[dict]) -> list[dict]:
    """The items that still count: from the last compaction on, with the messages it kept."""
    last = max((i for i, item in enumerate(items) if item["type"] == "compaction"), default=None)
    if last is None:
        return items
    return [*kept_messages(items[:last]), *items[last:]]


def kept_messages(items: list[dict]) -> list[dict]:
    """The user's last messages."""
    messages = [item for item in items if item.get("role") == "user"]
    return messages[-NUM_KEPT_MESSAGES:]


async def summarise(engine, body: dict, items: list[dict], lease: Lease) -> dict:
    """The compaction item that stands for these items. The lease has the answer behind it.

    Raises what the engine raises. Of a conversation beyond the context, the end is read.
    """
    model: ModelInfo = engine.model
    prompt = await _prompt(model, body, items)
    params = sampling_params(model, body, max_tokens=MAX_SUMMARY_TOKENS)
    choice = Choice(prompt, params)
    lease.reserve(estimate([choice], model.max_model_len))
    answer = Answer(engine, choice, body, chat=True)
    lease.summaries.append(answer)  # it counts from now on, whatever becomes of the request
    text = ""
    async for segment in answer.segments():
        text += segment.text if segment.kind == "text" else ""
    summary = seal("compaction", text.strip())
    return {"id": new_id("cmp"), "type": "compaction", "encrypted_content": summary}


async def _prompt(model: ModelInfo, body: dict, items: list[dict]) -> list[int]:
    transcript = "\n\n".join(_told(message) for message in to_messages(items, None))
    room = max(model.max_model_len - MAX_SUMMARY_TOKENS, model.max_model_len // 2)
    while True:
        messages = [
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": transcript},
        ]
        prompt = await chat_prompt(model, messages, body | {"reasoning": {"effort": "none"}})
        if len(prompt) < room or len(transcript) < 64:
            return prompt
        transcript = transcript[-int(len(transcript) * 0.9 * room / len(prompt)) :]


def _told(message: dict) -> str:
    calls = "".join(
        f" [calls {call['function']['name']} with {call['function']['arguments']}]"
        for call in message.get("tool_calls", ())
    )
    return f"{message['role'].capitalize()}: {message['content']}{calls}"
