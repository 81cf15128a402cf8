"""Segments to text completions; the same shape serves as chunk and as whole."""

import codecs
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

from openai_api.answers import Answer, Segment, follow
from openai_api.protocol.chat import usage
from openai_api.protocol.ids import new_id
from openai_api.protocol.logprobs import finite, readable, token_bytes


class Offset:
    """Where each token of a text begins, in characters; a token may be half a character."""

    def __init__(self) -> None:
        self._num_chars = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def before(self, raw: bytes) -> int:
        start = self._num_chars
        self._num_chars += len(self._decoder.decode(raw))
        return start


class CompletionChunks:
    """The chunks of one text completion; choices are numbered prompt by prompt."""

    def __init__(self, body: dict, answers: list[Answer]) -> None:
        self.answers = answers
        self._with_logprobs = body.get("logprobs") is not None
        self._with_usage = bool(body["stream_options"].get("include_usage"))
        self._tokenizer = answers[0].model.tokenizer
        self._offsets = [Offset() for _ in answers]
        self.head = {
            "id": body.get("request_id") or new_id("cmpl", "-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": body["model"],
            "system_fingerprint": answers[0].model.fingerprint,
        }

    async def stream(self) -> AsyncIterator[dict]:
        async with aclosing(follow(self.answers)) as segments:
            async for index, segment in segments:
                yield self._delta(index, segment) if segment else self._finish(index)
        if self._with_usage:
            yield self.head | {"choices": [], "usage": usage(self.answers)}

    async def collect(self) -> dict:
        """The whole completion."""
        choices = [
            {"index": i, "text": "", "logprobs": _no_logprobs() if self._with_logprobs else None}
            for i in range(len(self.answers))
        ]
        async with aclosing(self.stream()) as chunks:
            async for chunk in chunks:
                for choice in chunk["choices"]:
                    _add(choices[choice["index"]], choice)
        return self.head | {"choices": choices, "usage": usage(self.answers)}

    def _delta(self, index: int, segment: Segment) -> dict:
        logprobs = self._logprobs(index, segment) if self._with_logprobs else None
        return self._chunk(index, segment.text, logprobs=logprobs)

    def _logprobs(self, index: int, segment: Segment) -> dict:
        """The legacy columns. `text_offset` counts characters from the start of the choice."""
        columns = _no_logprobs()
        for entry in segment.logprobs:
            raw = token_bytes(self._tokenizer, entry.token_id)
            token = readable(raw)
            top = {readable(token_bytes(self._tokenizer, t)): finite(p) for t, p in entry.top}
            columns["tokens"].append(token)
            columns["token_logprobs"].append(finite(entry.logprob))
            columns["top_logprobs"].append(top | {token: finite(entry.logprob)})
            columns["text_offset"].append(self._offsets[index].before(raw))
        return columns

    def _finish(self, index: int) -> dict:
        answer = self.answers[index]
        return self._chunk(
            index, "", finish_reason=answer.finish_reason, stop_reason=answer.stop_reason
        )

    def _chunk(self, index: int, text: str, **fields) -> dict:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None} | fields
        chunk = self.head | {"choices": [choice]}
        return chunk | {"usage": None} if self._with_usage else chunk


def _no_logprobs() -> dict[str, list]:
    return {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}


def _add(whole: dict, chunk: dict) -> None:
    whole["text"] += chunk["text"]
    if chunk["logprobs"]:
        for column, values in chunk["logprobs"].items():
            whole["logprobs"][column] += values
    if chunk["finish_reason"]:
        whole |= {key: chunk[key] for key in ("finish_reason", "stop_reason")}
