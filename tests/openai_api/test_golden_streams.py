"""Whole streams of real requests against sequences that the SDK's own accumulators accept."""

import json
import typing
from dataclasses import dataclass, field

import pytest
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent

from inference import service
from tests.helpers import FAILURE, scripted_engine
from tests.openai_api.golden import NAMES, golden
from tests.openai_api.wire import DONE, Reins, event_of, exchange, is_step

EVENTS = typing.get_args(typing.get_args(ResponseStreamEvent)[0])
CLASSES = {typing.get_args(cls.model_fields["type"].annotation)[0]: cls for cls in EVENTS}

HEAD = '<tool_call>\n{"name": "get_weather", "arguments": '
TAIL = "}\n</tool_call>"
NOTHING = "<|endoftext|>"  # a token that shows no text
ID_KEYS, TIMES = ("id", "item_id", "call_id"), ("created", "created_at", "completed_at")


@dataclass
class Case:
    """A request, and what the model answers: of each choice the tokens, one for each step."""

    answers: list[list[str]]
    fields: dict = field(default_factory=dict)
    num_silent: int = 0  # steps that no event comes from
    echo: dict = field(default_factory=dict)  # of the request, where the golden one was another


WEATHER = golden("resp_tools")[0]["response"]["tools"]
LOOSE_WEATHER = [WEATHER[0] | {"strict": False}]
FUNCTION = {key: value for key, value in WEATHER[0].items() if key not in ("type", "description")}
CHAT_WEATHER = [{"type": "function", "function": FUNCTION}]
CALLS = [HEAD, '{"city":', f'"Paris"}}{TAIL}\n', HEAD, f'{{"city":"Rome"}}{TAIL}']
THOUGHT = ["<think>Let ", "me", "</think>Hi"]
CASES = {
    "chat_n2": Case([[NOTHING, "b", NOTHING], ["a", NOTHING]], {"n": 2}),
    "chat_reasoning": Case([THOUGHT]),
    "chat_text": Case([["Hel", "lo"]]),
    "chat_tools": Case([CALLS], {"tools": CHAT_WEATHER, "tool_choice": "required"}),
    "resp_background": Case([["bg"]], {"background": True}),
    "resp_failed": Case([["par", FAILURE]]),
    "resp_incomplete": Case([["cut", *[NOTHING] * 15]], {"max_output_tokens": 16}, num_silent=15),
    "resp_incomplete_call": Case(
        [[*HEAD[:14], HEAD[14:], '{"city":"Pa']],
        {"tools": LOOSE_WEATHER, "max_output_tokens": 16},
        num_silent=14,
        echo={"tools": LOOSE_WEATHER},  # where a schema is kept to, what it forces comes by itself
    ),
    "resp_reasoning_text": Case([THOUGHT], {"reasoning": {"effort": "low"}}),
    "resp_text": Case([["Hello", " world"]]),
    "resp_tools": Case([CALLS], {"tools": WEATHER}),
}


@pytest.fixture
def reins():
    reins = Reins()
    yield reins
    reins.let_go()


@pytest.fixture
def engine(name, reins):
    answers = iter(["".join(answer) for answer in CASES[name].answers])
    words = {word for answer in CASES[name].answers for word in answer if len(word) > 1}
    engine = scripted_engine(
        lambda prompt: next(answers), words=words - {NOTHING}, before_step=reins.before_step
    )
    reins.hold(engine)
    service.install(engine)
    yield engine
    service.install(None)
    reins.let_go()
    engine.close()


def test_every_golden_sequence_is_here():
    assert sorted(CASES) == NAMES


@pytest.mark.parametrize("name", CASES)
async def test_a_stream_is_the_golden_sequence(client, engine, reins, name):
    """One write for each event, framed to the byte; the events equal as JSON.

    The order of an object's keys is no part of the contract, which keys there are is. Ids are
    numbered as they appear, of times only counts whether they are there, and of usage, which the
    golden sequences have invented, which numbers it has.
    """
    is_chat = name.startswith("chat")
    writes = await stream_of(name, reins)
    sent = [event_of(write) for write in writes[:-1]]

    assert writes == [*map(frame, sent), DONE]
    assert plain(sent) == plain(of_this_server(golden(name), CASES[name]))
    for event in sent:
        cls = ChatCompletionChunk if is_chat else CLASSES[event["type"]]
        cls.model_validate_json(json.dumps(event), strict=True)


async def stream_of(name: str, reins: Reins) -> list[bytes]:
    """The model makes a step when what it said in its last one has arrived."""
    case = CASES[name]
    body = {"model": "m", "stream": True, **case.fields}
    if name.startswith("chat"):
        path = "/v1/chat/completions"
        body |= {"messages": [{"role": "user", "content": "Hi"}]}
        body |= {"stream_options": {"include_usage": True}}
    else:
        path, body = "/v1/responses", body | {"input": "Hi"}
    writes = []
    async with exchange(path, body) as answer:
        reins.allow(case.num_silent + 1)
        assert await answer.status() == 200
        async for write in answer.writes():
            if is_step(write):
                reins.allow()
            writes.append(write)
    return writes


def frame(event: dict) -> bytes:
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    name = "" if "choices" in event else f"event: {event['type']}\n"
    return f"{name}data: {text}\n\n".encode()


def of_this_server(events: list[dict], case: Case) -> list[dict]:
    """The golden sequence with what this server says differently, and may."""
    for event in events:
        if "choices" in event:
            for choice in event["choices"]:
                complete_choice(choice)
            if event["usage"]:
                complete_usage(event["usage"])
        else:
            hold_back_space(event)
            if "response" in event:
                event["response"] |= case.echo
                complete_response(event["response"])
    return events


def complete_choice(choice: dict) -> None:
    """With vLLM's `stop_reason`, and a refusal's absence in all first deltas, not in some."""
    hold_back_space(choice["delta"])
    if "role" in choice["delta"]:
        choice["delta"].setdefault("refusal", None)
    if choice["finish_reason"]:
        choice["stop_reason"] = None


def complete_usage(usage: dict) -> None:
    names = ("audio_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens")
    usage["prompt_tokens_details"]["audio_tokens"] = 0
    usage["completion_tokens_details"] |= dict.fromkeys(names, 0)


def complete_response(response: dict) -> None:
    """With this server's words for a failure, and what was generated until then."""
    if response["error"]:
        response["error"]["message"] = "The server had an error while processing your request."
        response["usage"] = golden("resp_text")[-1]["response"]["usage"]


def hold_back_space(delta: dict) -> None:
    """White space that may be the last of a thought is said with what follows it."""
    for key in ("delta", "reasoning", "reasoning_content"):
        if delta.get(key) in ("Let ", "me"):
            delta[key] = {"Let ": "Let", "me": " me"}[delta[key]]


def plain(value, ids: dict | None = None, key: str = ""):
    """The same with ids, times and usage that can be compared."""
    ids = {} if ids is None else ids
    if key == "usage" and value:
        return numbers_of(value)
    if isinstance(value, dict):
        return {name: plain(entry, ids, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry, ids, key) for entry in value]
    if key in ID_KEYS:
        kind = value.replace("-", "_").split("_")[0]
        return ids.setdefault(value, f"{kind} {len(ids)}")
    return value and "a time" if key in TIMES else value


def numbers_of(value):
    """Which numbers are there."""
    if isinstance(value, dict):
        return {key: numbers_of(entry) for key, entry in value.items()}
    return type(value)
