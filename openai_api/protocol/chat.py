"""Segments to chat completion chunks; a whole completion is its chunks added up."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

from openai_api.answers import Answer, Segment, total_usage
from openai_api.interleave import follow
from openai_api.protocol.ids import new_call_id, new_id
from openai_api.protocol.logprobs import chat_logprobs, prompt_logprobs
from openai_api.tools import custom_input


class ChatChunks:
    """The chunks of one chat completion with one or several choices.

    The only owner of its ids and of the order: a role chunk for every choice, then deltas, then
    exactly one finishing chunk for each, then usage if asked for. `echo` is put before each answer.
    """

    def __init__(self, body: dict, answers: list[Answer], echo: str = "") -> None:
        self.answers = answers
        self._body, self._echo = body, echo
        self._with_logprobs = body["logprobs"]
        self._with_usage = bool(body["stream_options"].get("include_usage"))
        self._running_usage = bool(body["stream_options"].get("continuous_usage_stats"))
        self._calls = [_CallDeltas(answer) for answer in answers]
        self.head = {
            "id": body.get("request_id") or new_id("chatcmpl", "-"),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": body["model"],
            "system_fingerprint": answers[0].model.fingerprint,
        }

    async def stream(self) -> AsyncIterator[dict]:
        await self.answers[0].begun()  # until then a failure has a status
        for chunk in self._beginning():
            yield chunk
        async with aclosing(follow(self.answers)) as segments:
            async for index, segment in segments:
                for chunk in self._deltas(index, segment) if segment else self._ending(index):
                    yield chunk
        if self._with_usage:
            yield self.head | {"choices": [], "usage": usage(self.answers)}

    async def collect(self) -> dict:
        """The whole completion."""
        choices = [_Choice() for _ in self.answers]
        async with aclosing(self.stream()) as chunks:
            async for chunk in chunks:
                for choice in chunk["choices"]:
                    choices[choice["index"]].add(choice)
        return self.whole(choices)

    def whole(self, choices: "list[_Choice]") -> dict:
        """What the chunks of each choice add up to."""
        first = self.answers[0]
        completion = self.head | {
            "object": "chat.completion",
            "service_tier": "default",
            "choices": [c.to_dict(i, self._with_logprobs) for i, c in enumerate(choices)],
            "usage": usage(self.answers),
        }
        if self._body.get("prompt_logprobs") is not None:
            completion["prompt_logprobs"] = prompt_logprobs(
                first.model.tokenizer, first.prompt_logprobs or [], self._body["prompt_logprobs"]
            )
        if self._body["return_token_ids"]:
            completion["prompt_token_ids"] = first.prompt_token_ids
        return completion

    async def recorded(self, keep) -> AsyncIterator[dict]:
        """`stream`, and before its last chunk `await keep(completion)` with the whole of it."""
        choices = [_Choice() for _ in self.answers]
        num_open = len(choices)
        async with aclosing(self.stream()) as chunks:
            async for chunk in chunks:
                for choice in chunk["choices"]:
                    choices[choice["index"]].add(choice)
                    num_open -= choice["finish_reason"] is not None
                if not num_open and chunk["choices"]:
                    await keep(self.whole(choices))
                yield chunk

    def _beginning(self) -> Iterator[dict]:
        for index in range(len(self.answers)):
            content = None if self.answers[index].tool_use.required else ""
            role = {"role": "assistant", "content": content, "refusal": None}
            first = self._chunk(index, role)
            if index == 0 and self._body["return_token_ids"]:
                first["prompt_token_ids"] = self.answers[0].prompt_token_ids
            yield first
        if self._echo:
            for index in range(len(self.answers)):
                yield self._chunk(index, {"content": self._echo})

    def _deltas(self, index: int, segment: Segment) -> Iterator[dict]:
        fields = self._token_fields(segment)
        for delta in self._shown(index, segment):
            yield self._chunk(index, delta, **fields)
            fields = {}
        if fields and segment.tokens:  # which come without a text
            yield self._chunk(index, {}, **fields)

    def _shown(self, index: int, segment: Segment) -> Iterator[dict]:
        if segment.kind == "call":
            yield from self._calls[index].begin(segment.text)
        elif segment.kind == "arguments":
            yield from self._calls[index].arguments(segment.text)
        elif not segment.text:
            return
        elif segment.kind == "reasoning":
            yield {"reasoning_content": segment.text, "reasoning": segment.text}
        else:
            yield {"content": segment.text}

    def _token_fields(self, segment: Segment) -> dict:
        fields: dict = {}
        if self._with_logprobs:
            entries = chat_logprobs(
                self.answers[0].model.tokenizer,
                segment.logprobs,
                as_ids=self._body["return_tokens_as_token_ids"],
            )
            fields["logprobs"] = {"content": entries, "refusal": None}
        if self._body["return_token_ids"]:
            fields["token_ids"] = [token.token_id for token in segment.tokens]
        return fields

    def _ending(self, index: int) -> Iterator[dict]:
        answer = self.answers[index]
        for delta in self._calls[index].end():
            yield self._chunk(index, delta)
        yield self._chunk(
            index, {}, finish_reason=finish_reason(answer), stop_reason=answer.stop_reason
        )

    def _chunk(self, index: int, delta: dict, **fields) -> dict:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        chunk = self.head | {"choices": [choice | fields]}
        if self._running_usage:
            return chunk | {"usage": usage(self.answers)}
        return chunk | {"usage": None} if self._with_usage else chunk


def finish_reason(answer: Answer) -> str | None:
    """Calls that are whole end an answer as calls, unless the caller named the one to make.

    A cut is a cut, also in the middle of a call.
    """
    if answer.finish_reason == "length" or not answer.is_called:
        return answer.finish_reason
    if answer.tool_use.is_legacy:
        return "function_call"
    return "stop" if answer.tool_use.is_named else "tool_calls"


class _CallDeltas:
    """The deltas of one choice's calls: id, type and name once, then the arguments as they come."""

    def __init__(self, answer: Answer) -> None:
        self._answer, self._use = answer, answer.tool_use
        self._index, self._custom_arguments = -1, ""
        self._is_custom = False

    def begin(self, name: str) -> Iterator[dict]:
        yield from self.end()
        self._index += 1
        self._is_custom = name in self._use.custom
        if self._use.is_legacy:
            yield {"function_call": {"name": name, "arguments": ""}}
            return
        call = {"id": new_call_id(self._answer.calls)}
        if self._is_custom:
            yield self._call(call | {"type": "custom", "custom": {"name": name, "input": ""}})
        else:
            function = {"name": name, "arguments": ""}
            yield self._call(call | {"type": "function", "function": function})

    def arguments(self, text: str) -> Iterator[dict]:
        if self._use.is_legacy:
            yield {"function_call": {"arguments": text}}
        elif self._is_custom:  # its input is a string inside of them, known when they are whole
            self._custom_arguments += text
        else:
            yield self._call({"function": {"arguments": text}})

    def end(self) -> Iterator[dict]:
        """Whatever the call that was begun last still owes."""
        if self._custom_arguments:
            yield self._call({"custom": {"input": custom_input(self._custom_arguments)}})
        self._custom_arguments = ""

    def _call(self, fields: dict) -> dict:
        return {"tool_calls": [{"index": self._index, **fields}]}


class _Choice:
    """One choice of a whole completion, growing chunk by chunk."""

    def __init__(self) -> None:
        self.content, self.reasoning = "", None
        self.calls: list[dict] = []
        self.function_call: dict | None = None
        self.logprobs: list[dict] = []
        self.token_ids: list[int] | None = None
        self.final: dict = {}

    def add(self, choice: dict) -> None:
        delta = choice["delta"]
        self.content += delta.get("content") or ""
        if "reasoning" in delta:
            self.reasoning = (self.reasoning or "") + delta["reasoning"]
        for call in delta.get("tool_calls", ()):
            self._add_call(call)
        if call := delta.get("function_call"):
            self.function_call = self.function_call or {"name": call["name"], "arguments": ""}
            self.function_call["arguments"] += call["arguments"]
        if choice["logprobs"]:
            self.logprobs += choice["logprobs"]["content"]
        if "token_ids" in choice:
            self.token_ids = (self.token_ids or []) + choice["token_ids"]
        if choice["finish_reason"]:
            self.final = {key: choice[key] for key in ("finish_reason", "stop_reason")}

    def _add_call(self, delta: dict) -> None:
        if delta["index"] == len(self.calls):
            kind = delta["type"]
            self.calls.append({"id": delta["id"], "type": kind, kind: dict(delta[kind])})
            return
        call = self.calls[delta["index"]]
        for key, text in delta[call["type"]].items():
            call[call["type"]][key] += text

    def to_dict(self, index: int, with_logprobs: bool) -> dict:
        logprobs = {"content": self.logprobs, "refusal": None} if with_logprobs else None
        called = self.calls or self.function_call
        message = {
            "role": "assistant",
            "content": None if called and not self.content else self.content,
            "refusal": None,
            "annotations": [],
            "reasoning_content": self.reasoning,
            "reasoning": self.reasoning,
        }
        if self.calls:
            message["tool_calls"] = self.calls
        if self.function_call:
            message["function_call"] = self.function_call
        choice = {"index": index, "message": message, "logprobs": logprobs, **self.final}
        return choice if self.token_ids is None else choice | {"token_ids": self.token_ids}


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
