"""Segments to chat completion chunks; a whole completion is its chunks added up."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing

from openai_api.answers import Answer, Segment, follow, total_usage
from openai_api.protocol.ids import new_id
from openai_api.protocol.logprobs import chat_logprobs


class ChatChunks:
    """The chunks of one chat completion with one or several choices.

    The only owner of its ids and of the order: a role chunk for every choice, then deltas, then
    exactly one finishing chunk for each, then usage if asked for.
    """

    def __init__(self, body: dict, answers: list[Answer]) -> None:
        self.answers = answers
        self._with_logprobs = body["logprobs"]
        self._with_usage = bool(body["stream_options"].get("include_usage"))
        self._tokenizer = answers[0].model.tokenizer
        self.head = {
            "id": body.get("request_id") or new_id("chatcmpl", "-"),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": body["model"],
            "system_fingerprint": answers[0].model.fingerprint,
        }

    async def stream(self) -> AsyncIterator[dict]:
        for index in range(len(self.answers)):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})
        async with aclosing(follow(self.answers)) as segments:
            async for index, segment in segments:
                yield self._delta(index, segment) if segment else self._finish(index)
        if self._with_usage:
            yield self.head | {"choices": [], "usage": usage(self.answers)}

    async def collect(self) -> dict:
        """The whole completion."""
        choices = [_Choice() for _ in self.answers]
        async with aclosing(self.stream()) as chunks:
            async for chunk in chunks:
                for choice in chunk["choices"]:
                    choices[choice["index"]].add(choice)
        return self.head | {
            "object": "chat.completion",
            "service_tier": "default",
            "choices": [c.to_dict(i, self._with_logprobs) for i, c in enumerate(choices)],
            "usage": usage(self.answers),
        }

    def _delta(self, index: int, segment: Segment) -> dict:
        delta = {"content": segment.text}
        if segment.kind == "reasoning":
            delta = {"reasoning_content": segment.text, "reasoning": segment.text}
        logprobs = None
        if self._with_logprobs:
            entries = chat_logprobs(self._tokenizer, segment.logprobs)
            logprobs = {"content": entries, "refusal": None}
        return self._chunk(index, delta, logprobs=logprobs)

    def _finish(self, index: int) -> dict:
        answer = self.answers[index]
        return self._chunk(
            index, {}, finish_reason=answer.finish_reason, stop_reason=answer.stop_reason
        )

    def _chunk(self, index: int, delta: dict, **fields) -> dict:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        chunk = self.head | {"choices": [choice | fields]}
        return chunk | {"usage": None} if self._with_usage else chunk


class _Choice:
    """One choice of a whole completion, growing chunk by chunk."""

    def __init__(self) -> None:
        self.content, self.reasoning = "", None
        self.logprobs: list[dict] = []
        self.final: dict = {}

    def add(self, choice: dict) -> None:
        delta = choice["delta"]
        self.content += delta.get("content", "")
        if "reasoning" in delta:
            self.reasoning = (self.reasoning or "") + delta["reasoning"]
        if choice["logprobs"]:
            self.logprobs += choice["logprobs"]["content"]
        if choice["finish_reason"]:
            self.final = {key: choice[key] for key in ("finish_reason", "stop_reason")}

    def to_dict(self, index: int, with_logprobs: bool) -> dict:
        logprobs = {"content": self.logprobs, "refusal": None} if with_logprobs else None
        message = {
            "role": "assistant",
            "content": self.content,
            "refusal": None,
            "annotations": [],
            "reasoning_content": self.reasoning,
            "reasoning": self.reasoning,
        }
        return {"index": index, "message": message, "logprobs": logprobs, **self.final}


def usage(answers: list[Answer]) -> dict:
    total = total_usage(answers)
    return {
        "prompt_tokens": total.num_prompt_tokens,
        "completion_tokens": total.num_output_tokens,
        "total_tokens": total.num_prompt_tokens + total.num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": total.num_cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": total.num_reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
