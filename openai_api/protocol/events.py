"""Segments to Responses API events, in the order that the SDK's accumulator demands."""

import copy
import time
from collections.abc import Callable, Iterator
from itertools import count

from openai_api.answers import Answer, Segment
from openai_api.protocol.ids import new_id
from openai_api.protocol.logprobs import chat_logprobs


class MessageItem:
    """The assistant's text."""

    id_prefix, event = "msg", "response.output_text"
    fields = {"type": "message", "role": "assistant"}

    @staticmethod
    def part(text: str, logprobs: list[dict]) -> dict:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    @staticmethod
    def extra(logprobs: list[dict]) -> dict:
        return {"logprobs": logprobs}


class ReasoningItem:
    """The thoughts of a reasoning model, as raw text: there is no summariser."""

    id_prefix, event = "rs", "response.reasoning_text"
    fields = {"type": "reasoning", "summary": []}

    @staticmethod
    def part(text: str, logprobs: list[dict]) -> dict:
        return {"type": "reasoning_text", "text": text}

    @staticmethod
    def extra(logprobs: list[dict]) -> dict:
        return {}


ITEMS = {"text": MessageItem, "reasoning": ReasoningItem}


class ResponseEvents:
    """The events of one response: the only owner of its indexes, ids and sequence numbers.

    `resource` is the Response resource at the beginning; it grows with every event and is the
    final one after `finish`. Knows no I/O: SSE, WebSocket, database and JSON all read from here.
    """

    def __init__(
        self,
        resource: dict,
        logprobs_of: Callable[[Segment], list[dict]] | None = None,
    ) -> None:
        self.resource = resource
        self._numbers = count()
        self._logprobs_of = logprobs_of or (lambda segment: [])
        self._kind: str | None = None
        self.begun = False

    def start(self) -> Iterator[dict]:
        self.begun = True
        yield self._lifecycle("response.created")
        yield self._lifecycle("response.in_progress")

    def push(self, segment: Segment) -> Iterator[dict]:
        if segment.kind != self._kind:
            if not segment.text:  # tokens without text open nothing: no empty items
                return
            if self._kind is not None:
                yield from self._close("completed")
            yield from self._open(segment.kind)
        logprobs = self._logprobs_of(segment)
        self._text += segment.text
        self._logprobs += logprobs
        yield self._at("delta", delta=segment.text, **self._item.extra(logprobs))

    def finish(self, status: str, **final) -> Iterator[dict]:
        """Close what is open and end: completed, incomplete, failed, or cancelled.

        There is no event for a cancelled response in the API; `response.incomplete` carries it.
        """
        if self._kind is not None:
            item_status = "completed" if status == "completed" else "incomplete"
            if status == "failed":  # needs no closing events, only the partial output
                self._seal(item_status)
            else:
                yield from self._close(item_status)
        self.resource |= {"status": status, **final}
        if status == "completed":
            self.resource["completed_at"] = int(time.time())
        yield self._lifecycle(f"response.{'incomplete' if status == 'cancelled' else status}")

    def _open(self, kind: str) -> Iterator[dict]:
        self._kind, self._item = kind, ITEMS[kind]
        self._text, self._logprobs = "", []
        output = {
            "id": new_id(self._item.id_prefix),
            **copy.deepcopy(self._item.fields),
            "status": "in_progress",
            "content": [],
        }
        self.resource["output"].append(output)
        yield self._event(
            "response.output_item.added", output_index=self._index, item=copy.deepcopy(output)
        )
        yield self._part_event("response.content_part.added", self._item.part("", []))

    def _close(self, status: str) -> Iterator[dict]:
        part, output = self._seal(status)
        yield self._at("done", text=self._text, **self._item.extra(self._logprobs))
        yield self._part_event("response.content_part.done", part)
        yield self._event(
            "response.output_item.done", output_index=self._index, item=copy.deepcopy(output)
        )

    def _seal(self, status: str) -> tuple[dict, dict]:
        """Give the open item its final form: its part and itself."""
        self._kind = None
        output = self.resource["output"][-1]
        part = self._item.part(self._text, self._logprobs)
        output |= {"status": status, "content": [part]}
        return part, output

    @property
    def _index(self) -> int:
        return len(self.resource["output"]) - 1

    def _at(self, verb: str, **fields) -> dict:
        return self._content_event(f"{self._item.event}.{verb}", **fields)

    def _part_event(self, type_: str, part: dict) -> dict:
        return self._content_event(type_, part=part)

    def _content_event(self, type_: str, **fields) -> dict:
        item_id = self.resource["output"][-1]["id"]
        return self._event(
            type_, item_id=item_id, output_index=self._index, content_index=0, **fields
        )

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
