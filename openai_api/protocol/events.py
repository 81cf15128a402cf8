"""Segments to Responses API events, in the order that the SDK's accumulator demands."""

import copy
import time
from collections.abc import Callable, Iterator
from itertools import count

from openai_api.answers import Answer, Segment
from openai_api.protocol.ids import new_id
from openai_api.protocol.logprobs import chat_logprobs
from openai_api.sealed import seal
from openai_api.tools import NO_TOOLS, ToolUse, custom_input

Fields = tuple[str, dict]  # an event's type, and what it says beside where


class MessageItem:
    """The assistant's text."""

    id_prefix, event = "msg", "response.output_text"
    fields = {"type": "message", "role": "assistant"}

    def __init__(self) -> None:
        self.text, self.logprobs = "", []

    def added(self) -> dict:
        return {**copy.deepcopy(self.fields), "status": "in_progress", "content": []}

    def begin(self) -> Iterator[Fields]:
        yield "response.content_part.added", {"content_index": 0, "part": self.part()}

    def push(self, text: str, logprobs: list[dict]) -> Iterator[Fields]:
        self.text += text
        self.logprobs += logprobs
        if text or logprobs:
            extra = self.extra(logprobs)
            yield f"{self.event}.delta", {"content_index": 0, "delta": text, **extra}

    def end(self) -> Iterator[Fields]:
        extra = self.extra(self.logprobs)
        yield f"{self.event}.done", {"content_index": 0, "text": self.text, **extra}
        yield "response.content_part.done", {"content_index": 0, "part": self.part()}

    def final(self) -> dict:
        return {"content": [self.part()]}

    def part(self) -> dict:
        logprobs = list(self.logprobs)
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": logprobs}

    def extra(self, logprobs: list[dict]) -> dict:
        return {"logprobs": logprobs}


class ReasoningItem(MessageItem):
    """The thoughts of a reasoning model, as raw text: there is no summariser."""

    id_prefix, event = "rs", "response.reasoning_text"
    fields = {"type": "reasoning", "summary": []}

    def part(self) -> dict:
        return {"type": "reasoning_text", "text": self.text}

    def extra(self, logprobs: list[dict]) -> dict:
        return {}


class CallItem:
    """A call of a function; its arguments come as the model writes them."""

    id_prefix, event = "fc", "response.function_call_arguments"

    def __init__(self, call_id: str, name: str, namespace: str | None = None) -> None:
        self.head = {"call_id": call_id, "name": name}
        if namespace is not None:
            self.head["namespace"] = namespace
        self.arguments = ""

    def added(self) -> dict:
        return {"type": "function_call", "status": "in_progress", **self.head, "arguments": ""}

    def begin(self) -> Iterator[Fields]:
        yield from ()

    def push(self, text: str, logprobs: list[dict]) -> Iterator[Fields]:
        self.arguments += text
        if text:
            yield f"{self.event}.delta", {"delta": text}

    def end(self) -> Iterator[Fields]:
        yield f"{self.event}.done", {"name": self.head["name"], "arguments": self.arguments}

    def final(self) -> dict:
        return {"arguments": self.arguments}


class CustomCallItem(CallItem):
    """A call of a custom tool; its input is a string in the arguments, known when those end."""

    id_prefix, event = "ctc", "response.custom_tool_call_input"

    def added(self) -> dict:
        return {"type": "custom_tool_call", "status": "in_progress", **self.head, "input": ""}

    def push(self, text: str, logprobs: list[dict]) -> Iterator[Fields]:
        self.arguments += text
        yield from ()

    def end(self) -> Iterator[Fields]:
        text = custom_input(self.arguments)
        yield f"{self.event}.delta", {"delta": text}
        yield f"{self.event}.done", {"input": text}

    def final(self) -> dict:
        return {"input": custom_input(self.arguments)}


KINDS = {
    "message": "text",
    "reasoning": "reasoning",
    "function_call": "call",
    "custom_tool_call": "call",
}


def item_of(output: dict) -> MessageItem | CallItem:
    """The item that is being written, from how it was announced."""
    kind = output["type"]
    if KINDS[kind] == "call":
        item_class = CustomCallItem if kind == "custom_tool_call" else CallItem
        return item_class(output["call_id"], output["name"], output.get("namespace"))
    return ReasoningItem() if kind == "reasoning" else MessageItem()


class ResponseEvents:
    """The events of one response: the only owner of its indexes, ids and sequence numbers.

    `resource` is the Response resource at the beginning; it grows with every event and is the
    final one after `finish`. Knows no I/O: SSE, WebSocket, database and JSON all read from here.
    """

    def __init__(
        self,
        resource: dict,
        logprobs_of: Callable[[Segment], list[dict]] | None = None,
        use: ToolUse = NO_TOOLS,
        *,
        seal_thoughts: bool = False,
    ) -> None:
        self.resource, self._use, self._seal_thoughts = resource, use, seal_thoughts
        self._numbers = count()
        self._logprobs_of = logprobs_of or (lambda segment: [])
        self._kind = ""
        self._item: MessageItem | CallItem | None = None
        self.begun = False

    @classmethod
    def resumed(cls, resource: dict, past: list[dict], *args, **kwargs):
        """The builder as it was after its `past` events; `resource` as in the first of them."""
        events = cls(resource | {"output": [], "status": "in_progress"}, *args, **kwargs)
        events._numbers = count(len(past))
        events.begun = bool(past)
        for event in past:
            events._apply(event)
        return events

    @property
    def open_item(self) -> MessageItem | CallItem | None:
        return self._item

    def _apply(self, event: dict) -> None:
        kind = event["type"]
        if kind == "response.output_item.added":
            item = event["item"]
            self.resource["output"].append(item)
            if item["type"] in KINDS:
                self._kind, self._item = KINDS[item["type"]], item_of(item)
        elif kind == "response.output_item.done":
            self.resource["output"][-1] = event["item"]
            self._kind, self._item = "", None
        elif kind.endswith(".delta") and self._item is not None:
            list(self._item.push(event["delta"], event.get("logprobs", [])))

    def start(self) -> Iterator[dict]:
        self.begun = True
        yield self._lifecycle("response.created")
        if self.resource["status"] == "queued":
            yield self._lifecycle("response.queued")
            self.resource["status"] = "in_progress"
        yield self._lifecycle("response.in_progress")

    def add(self, output: dict) -> Iterator[dict]:
        """An item that is whole from the beginning."""
        self.resource["output"].append(output)
        for verb in ("added", "done"):
            yield self._event(
                f"response.output_item.{verb}",
                output_index=self._index,
                item=copy.deepcopy(output),
            )

    def push(self, segment: Segment) -> Iterator[dict]:
        if segment.kind == "call":
            yield from self._open(segment)
            return
        if segment.kind not in (self._kind, "arguments"):
            if not segment.text:  # tokens without text open nothing: no empty items
                return
            yield from self._open(segment)
        if self._item is not None:
            yield from self._told(self._item.push(segment.text, self._logprobs_of(segment)))

    def finish(self, status: str, *, is_cut: bool = False, **final) -> Iterator[dict]:
        """Close what is open and end: completed, incomplete, failed, or cancelled.

        `is_cut`: what is open is no whole item, however the response ends.

        There is no event for a cancelled response in the API; `response.incomplete` carries it.
        """
        item_status = "completed" if status == "completed" and not is_cut else "incomplete"
        if status == "failed":  # needs no closing events, only the partial output
            self._seal(item_status)
        else:
            yield from self._close(item_status)
        self.resource |= {"status": status, **final}
        if status == "completed":
            self.resource["completed_at"] = int(time.time())
        yield self._lifecycle(f"response.{'incomplete' if status == 'cancelled' else status}")

    def _open(self, segment: Segment) -> Iterator[dict]:
        yield from self._close("completed")
        self._kind, self._item = segment.kind, self._new_item(segment)
        output = {"id": new_id(self._item.id_prefix), **self._item.added()}
        self.resource["output"].append(output)
        yield self._event(
            "response.output_item.added", output_index=self._index, item=copy.deepcopy(output)
        )
        yield from self._told(self._item.begin())

    def _new_item(self, segment: Segment) -> MessageItem | CallItem:
        if segment.kind == "call":
            custom = segment.text in self._use.custom
            namespace, name = self._use.namespaces.get(segment.text, (None, segment.text))
            return (CustomCallItem if custom else CallItem)(new_id("call"), name, namespace)
        return ReasoningItem() if segment.kind == "reasoning" else MessageItem()

    def _close(self, status: str) -> Iterator[dict]:
        if self._item is None:
            return
        yield from self._told(self._item.end())
        output = self._seal(status)
        yield self._event(
            "response.output_item.done", output_index=self._index, item=copy.deepcopy(output)
        )

    def _seal(self, status: str) -> dict | None:
        """Give the open item its final form."""
        if self._item is None:
            return None
        output = self.resource["output"][-1]
        output |= {"status": status, **self._item.final()}
        if self._seal_thoughts and isinstance(self._item, ReasoningItem):
            output["encrypted_content"] = seal("reasoning", self._item.text)
        self._kind, self._item = "", None
        return output

    @property
    def _index(self) -> int:
        return len(self.resource["output"]) - 1

    def _told(self, events: Iterator[Fields]) -> Iterator[dict]:
        """Events of the item that is open."""
        for type_, fields in events:
            item_id = self.resource["output"][-1]["id"]
            yield self._event(type_, item_id=item_id, output_index=self._index, **fields)

    def _lifecycle(self, type_: str) -> dict:
        return self._event(type_, response=copy.deepcopy(self.resource))

    def _event(self, type_: str, **fields) -> dict:
        return {"type": type_, "sequence_number": next(self._numbers), **fields}


def response_usage(answer: Answer) -> dict:
    usage = answer.usage
    return {
        "input_tokens": usage.num_prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.num_cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.num_output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens},
        "total_tokens": usage.num_prompt_tokens + usage.num_output_tokens,
    }


def logprobs_of(answer: Answer) -> Callable[[Segment], list[dict]]:
    """Log probabilities in the shape of the events."""
    return lambda segment: chat_logprobs(answer.model.tokenizer, segment.logprobs)
