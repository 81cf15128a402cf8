"""Segments to text completions; the same shape serves as chunk and as whole."""

import codecs
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

from inference.request import TokenLogprob
from inference.text.detokenizer import special_token_ids
from openai_api.answers import Answer, Segment
from openai_api.interleave import follow
from openai_api.protocol.chat import usage
from openai_api.protocol.ids import new_id
from openai_api.protocol.logprobs import finite, prompt_logprobs, spelled, token_bytes


class CompletionChunks:
    """The chunks of one text completion; choices are numbered prompt by prompt.

    `echoes` holds, for each prompt, the text that stands before its answers. Of `best_of` answers
    to a prompt, `collect` keeps the n likeliest.
    """

    def __init__(self, body: dict, answers: list[Answer], echoes: list[str] | None = None) -> None:
        self.answers = answers
        self._body, self._echoes = body, echoes
        self._with_logprobs = body.get("logprobs") is not None
        self._with_usage = bool(body["stream_options"].get("include_usage"))
        self._tells_tokens = self._with_logprobs or body["return_token_ids"]
        self._running_usage = bool(body["stream_options"].get("continuous_usage_stats"))
        self._tokenizer = answers[0].model.tokenizer
        self._begun: set[int] = set()
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
                if index not in self._begun:
                    self._begun.add(index)
                    if (first := self._first(index)) is not None:
                        yield first
                if segment is None:
                    yield self._finish(index)
                elif segment.text or self._tells_tokens:
                    yield self._delta(index, segment)
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
        if self._body.get("prompt_logprobs") is not None:
            for choice, answer in zip(choices, self.answers, strict=True):
                choice["prompt_logprobs"] = prompt_logprobs(
                    self._tokenizer, answer.prompt_logprobs or [], self._body["prompt_logprobs"]
                )
        choices = self._best(choices)
        return self.head | {"choices": choices, "usage": usage(self.answers)}

    def _best(self, choices: list[dict]) -> list[dict]:
        """The n choices of each prompt with the highest log probability per token."""
        num_wanted = self._body["n"]

        def mean_logprob(choice: dict) -> float:
            answer = self.answers[choice["index"]]
            return answer.sum_of_logprobs / max(answer.usage.num_output_tokens, 1)

        best_of = self._body.get("best_of") or num_wanted
        if best_of == num_wanted:
            return choices
        groups = [choices[i : i + best_of] for i in range(0, len(choices), best_of)]
        best = [sorted(group, key=mean_logprob, reverse=True)[:num_wanted] for group in groups]
        kept = [choice for group in best for choice in group]
        return [choice | {"index": index} for index, choice in enumerate(kept)]

    def _first(self, index: int) -> dict | None:
        """The echo of the prompt, and its ids if asked for."""
        answer, fields = self.answers[index], {}
        text = self._echo(index)
        if self._body["return_token_ids"]:
            fields["prompt_token_ids"] = answer.prompt_token_ids
        if self._echoes is None and not fields:
            return None
        if self._echoes is not None and self._with_logprobs:
            fields["logprobs"] = self._prompt_columns(answer)
        return self._chunk(index, text, **fields)

    def _echo(self, index: int) -> str:
        return self._echoes[self.answers[index].prompt_index] if self._echoes else ""

    def _prompt_columns(self, answer: Answer) -> dict:
        columns = _no_logprobs()
        offsets = Offsets(self._tokenizer, self._echo(self.answers.index(answer)))
        entries = answer.prompt_logprobs or []
        for token_id, entry in zip(answer.prompt_token_ids, entries, strict=True):
            self._add_entry(columns, token_id, entry, offsets.before(token_id))
        return columns

    def _delta(self, index: int, segment: Segment) -> dict:
        fields: dict = {}
        if self._body["return_token_ids"]:
            fields["token_ids"] = [token.token_id for token in segment.tokens]
        if self._with_logprobs:
            columns, start = _no_logprobs(), len(self._echo(index))
            for token in segment.tokens:
                if token.logprob is not None:
                    offset = start + token.offset
                    self._add_entry(columns, token.token_id, token.logprob, offset)
            fields["logprobs"] = columns
        return self._chunk(index, segment.text, **fields)

    def _add_entry(
        self, columns: dict, token_id: int, entry: TokenLogprob | None, offset: int
    ) -> None:
        """One row of the legacy columns. Nothing comes before a prompt's first token."""

        def shown(token_id: int) -> str:
            as_ids = self._body["return_tokens_as_token_ids"]
            return spelled(self._tokenizer, token_id, as_ids=as_ids)

        token, top = shown(token_id), None
        if entry is not None:
            num_top = len(entry.top) if self._body["logprob_token_ids"] else self._body["logprobs"]
            top = {shown(id_): finite(logprob) for id_, logprob in entry.top[:num_top]}
            top[token] = finite(entry.logprob)
        columns["tokens"].append(token)
        columns["token_logprobs"].append(None if entry is None else finite(entry.logprob))
        columns["top_logprobs"].append(top)
        columns["text_offset"].append(offset)

    def _finish(self, index: int) -> dict:
        answer = self.answers[index]
        return self._chunk(
            index, "", finish_reason=answer.finish_reason, stop_reason=answer.stop_reason
        )

    def _chunk(self, index: int, text: str, **fields) -> dict:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None} | fields
        chunk = self.head | {"choices": [choice]}
        if self._running_usage:
            return chunk | {"usage": usage(self.answers)}
        return chunk | {"usage": None} if self._with_usage else chunk


class Offsets:
    """Where each token of a prompt begins, in characters; a token may be half a character."""

    def __init__(self, tokenizer, text: str) -> None:
        self._tokenizer, self._text = tokenizer, text
        self._special = special_token_ids(tokenizer)
        self._num_chars = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def before(self, token_id: int) -> int:
        start = self._num_chars
        raw = token_bytes(self._tokenizer, token_id)
        # special tokens are in a text where somebody wrote them, and not where they were added
        if token_id not in self._special or self._text.startswith(raw.decode(), start):
            self._num_chars += len(self._decoder.decode(raw))
        return start


def _no_logprobs() -> dict[str, list]:
    return {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}


def _add(whole: dict, chunk: dict) -> None:
    whole["text"] += chunk["text"]
    if chunk["logprobs"]:
        for column, values in chunk["logprobs"].items():
            whole["logprobs"][column] += values
    if "prompt_token_ids" in chunk:
        whole["prompt_token_ids"] = chunk["prompt_token_ids"]
    if "token_ids" in chunk:
        whole["token_ids"] = whole.get("token_ids", []) + chunk["token_ids"]
    if chunk["finish_reason"]:
        whole |= {key: chunk[key] for key in ("finish_reason", "stop_reason")}
