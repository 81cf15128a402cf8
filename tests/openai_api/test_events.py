"""The event and chunk builders by themselves; for whole sequences see test_golden_streams."""

import copy

from inference.request import ModelInfo
from openai_api.answers import Segment, Usage
from openai_api.protocol.chat import ChatChunks
from openai_api.protocol.events import ResponseEvents
from openai_api.tools import NO_TOOLS
from tests.openai_api.golden import golden


class Told:
    """An answer that is known in advance."""

    model = ModelInfo(
        name="m",
        tokenizer=None,
        max_model_len=100,
        vocab_size=100,
        eos_token_ids=frozenset(),
        generation_defaults={},
        fingerprint="fp_1",
        created=0,
    )
    prompt_index, stop_reason, calls = 0, None, None
    tool_use, is_called = NO_TOOLS, False

    def __init__(self, *segments: tuple[str, str], finish_reason: str = "stop") -> None:
        self._segments, self.finish_reason = segments, finish_reason
        self.usage = Usage(10, 0, 5, 0)

    async def begun(self) -> None:
        pass

    async def segments(self):
        for kind, text in self._segments:
            yield Segment(kind, text)

    def abort(self) -> None:
        pass


def test_a_cancelled_response_ends_as_incomplete():
    events = ResponseEvents(copy.deepcopy(golden("resp_text")[0]["response"]))
    sent = [*events.start(), *events.push(Segment("text", "Hel"))]
    details = {"reason": "cancelled"}
    sent += events.finish("cancelled", incomplete_details=details, usage=None)

    assert sent[-1]["type"] == "response.incomplete"
    assert sent[-1]["response"]["status"] == "cancelled"
    assert [e["sequence_number"] for e in sent] == list(range(len(sent)))


def test_nothing_said_leaves_no_empty_item():
    events = ResponseEvents(copy.deepcopy(golden("resp_text")[0]["response"]))
    sent = [*events.start(), *events.push(Segment("text", "")), *events.finish("completed")]

    assert [e["type"].split(".")[-1] for e in sent] == ["created", "in_progress", "completed"]
    assert sent[-1]["response"]["output"] == []


BODY = {
    "model": "m",
    "logprobs": False,
    "stream_options": {"include_usage": True},
    "return_token_ids": False,
}


async def test_several_choices_begin_in_order_and_finish_once_each():
    answers = [Told(("text", "b")), Told(("text", "a"), finish_reason="length")]
    chunks = [chunk async for chunk in ChatChunks(BODY, answers).stream()]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]

    assert [c["index"] for c in choices[:2]] == [0, 1]
    assert all("role" in c["delta"] for c in choices[:2])
    finished = {c["index"]: c["finish_reason"] for c in choices if c["finish_reason"]}
    assert finished == {0: "stop", 1: "length"}
    assert sum(bool(c["finish_reason"]) for c in choices) == 2
    assert chunks[-1]["usage"]["completion_tokens"] == 10
    assert chunks[-1]["usage"]["prompt_tokens"] == 10  # one prompt, however many choices


async def test_a_whole_completion_is_its_chunks_added_up():
    answer = Told(("reasoning", "Let "), ("reasoning", "me"), ("text", "Hi"))
    whole = await ChatChunks(BODY, [answer]).collect()
    message = whole["choices"][0]["message"]

    assert whole["object"] == "chat.completion"
    assert (message["reasoning"], message["content"]) == ("Let me", "Hi")
    assert message["reasoning_content"] == "Let me"
