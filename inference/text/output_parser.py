"""What kind of text a model is writing: its thoughts, its answer, or calls of functions."""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import regex

from inference.text.parameters import properties_of, typed
from inference.text.syntax import Calls, Reasoning

Pattern = Any  # the regex module's; it brings no types


class Piece(NamedTuple):
    """`kind` is "reasoning", "text", "call" (`text` is the name of the function whose call begins)
    or "arguments" (JSON text of the call that began last)."""

    kind: str
    text: str


class Unclear(Exception):
    """What is held back may become one thing or another: the next piece will tell."""


class JsonEnd:
    """Finds where a JSON object, array or string ends that comes in pieces."""

    def __init__(self) -> None:
        self._depth, self._in_string, self._escaped = 0, False, False

    def find(self, text: str) -> int | None:
        """The index after the value's last character, or None if it goes on."""
        for index, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif char == "\\" and self._in_string:
                self._escaped = True
            elif char == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += (char in "{[") - (char in "}]")
            if self._depth <= 0 and not self._in_string and char in '}]"':
                return index + 1
        return None


class OutputParser:
    """Splits a model's text into pieces, as it comes.

    Text that might be the beginning of a marker is held back until the next piece or `flush`.
    White space around markers belongs to neither side. What opens like a call and turns out to be
    none stays text.

    Our own, and not transformers' ResponseParser: that one gives out a call's arguments only when
    the call has ended, raises where a model writes broken JSON, and cannot tell a grammar how a
    call has to be written.
    """

    def __init__(
        self,
        *,
        reasoning: Reasoning | None,
        calls: Calls | None = None,
        prompt: str = "",
        tools: Iterable[dict[str, Any]] = (),
    ) -> None:
        self._calls = calls
        self._patterns = _compile(reasoning, calls)
        self._schemas = {t["function"]["name"]: properties_of(t["function"]) for t in tools}
        self._held, self._strip = "", False
        self._gap = ""  # white space before what may be a call
        self._name = self._arguments = self._key = ""
        self._num_searched = 0
        self._json = JsonEnd()
        self.num_complete_calls = 0
        self._state: Callable[[list[Piece]], None] = self._first
        if reasoning is not None and prompt.rstrip().endswith(reasoning.open):
            self._enter(self._thought)

    @property
    def in_reasoning(self) -> bool:
        return self._state == self._thought

    @property
    def in_call(self) -> bool:
        """Whether a call has begun whose arguments are not whole."""
        writing = (self._json_arguments, self._raw_arguments, self._xml_arguments, self._xml_value)
        return self._state in writing

    def add(self, text: str) -> list[Piece]:
        """The pieces that this text makes certain."""
        self._held += text
        pieces: list[Piece] = []
        while self._held:
            try:
                self._state(pieces)
            except Unclear:
                break
        return pieces

    def flush(self) -> list[Piece]:
        """What was held back, at the end. Nothing of an unfinished call becomes text."""
        pieces: list[Piece] = []
        held = self._gap + self._held
        if self._state == self._head and self._held.lstrip()[:1] != "{":
            pass  # a call that was cut before its name
        elif self._state in (self._thought, self._first, self._begin, self._text, self._head):
            self._emit(pieces, "reasoning" if self.in_reasoning else "text", held)
        elif self._state == self._whole and not self._whole_call(self._held, pieces):
            self._emit(pieces, "text", held)
        elif self._state == self._raw_arguments:
            self._emit(pieces, "arguments", held)
        self._held = ""
        return pieces

    # The states. Each takes what it can from `_held`, or lets another one go on. Raises Unclear.

    def _first(self, pieces: list[Piece]) -> None:
        """The very beginning, the only place where most models open a thought."""
        if self._take(self._patterns.opening):
            self._enter(self._thought)
        else:
            self._state = self._begin

    def _begin(self, pieces: list[Piece]) -> None:
        """The beginning of an answer, or of what follows a call: a call may stand there bare."""
        self._state = self._head if self._match(self._patterns.bare) else self._text

    def _thought(self, pieces: list[Piece]) -> None:
        if self._until(self._patterns.closing, "reasoning", pieces):
            self._enter(self._begin)

    def _text(self, pieces: list[Piece]) -> None:
        match = self._until(self._patterns.watch, "text", pieces)
        if match and match.lastgroup == "call":
            self._gap = match.group()[: match.start("call") - match.start()]
            self._held = match["call"] + self._held
            self._state = self._head
        elif match:
            self._enter(self._thought if match.lastgroup == "thought" else self._text)

    def _head(self, pieces: list[Piece]) -> None:
        match = self._match(self._patterns.head)
        if match and not self._is_plain_json(match["name"]):
            self._held = self._held[match.end() :]
            self._begin_call(match["name"].strip(), pieces)
        elif self._match(self._patterns.whole_head):
            self._state = self._whole
        else:
            self._no_call(pieces)

    def _is_plain_json(self, name: str) -> bool:
        """A bare object is an answer in JSON, and no call, if it names no tool."""
        return name not in self._schemas and self._held.lstrip()[:1] == "{"

    def _whole(self, pieces: list[Piece]) -> None:
        """Something unusual: a call whose keys come in another order, or none."""
        match = self._patterns.whole.search(self._held)
        if not match:
            raise Unclear
        if self._whole_call(self._held[: match.start()], pieces):
            self._held = self._held[match.end() :]
            self._enter(self._begin)
        else:
            self._no_call(pieces)

    def _json_arguments(self, pieces: list[Piece]) -> None:
        if not self._arguments:
            self._held = self._held.lstrip()
            if self._take(_NULL):
                self._end_call("{}", pieces)
                return
            if self._held[0] not in '{"':
                self._state = self._raw_arguments
                return
        end = self._json.find(self._held)
        text, self._held = self._held[:end], self._held[end:] if end else ""
        is_object = self._arguments or text.startswith("{")
        if end:
            self._end_call(text if is_object else _load(text) or "{}", pieces)
        elif is_object:
            self._add_arguments(text, pieces)
        else:  # an object written as a string is read when it is whole
            self._held, self._json = text, JsonEnd()
            raise Unclear

    def _raw_arguments(self, pieces: list[Piece]) -> None:
        """Arguments that are no JSON are passed on, but make no complete call."""
        if self._until(self._patterns.tail, "arguments", pieces):
            self._enter(self._begin)

    def _xml_arguments(self, pieces: list[Piece]) -> None:
        if match := self._take(_PARAMETER):
            self._key, self._num_searched = match["key"], 0
            self._state = self._xml_value
        else:
            self._take(_END_OF_FUNCTION)
            self._end_call("}" if self._arguments else "{}", pieces)

    def _xml_value(self, pieces: list[Piece]) -> None:
        end = self._held.find(_END_OF_PARAMETER, self._num_searched)
        if end < 0:
            self._num_searched = max(0, len(self._held) - len(_END_OF_PARAMETER))
            raise Unclear
        text, self._held = self._held[:end], self._held[end + len(_END_OF_PARAMETER) :]
        text = text.removeprefix("\n").removesuffix("\n")
        value = typed(text, self._schemas.get(self._name, {}).get(self._key))
        comma = ", " if self._arguments else "{"
        key, value = json.dumps(self._key), json.dumps(value, ensure_ascii=False)
        self._add_arguments(f"{comma}{key}: {value}", pieces)
        self._state = self._xml_arguments

    def _tail(self, pieces: list[Piece]) -> None:
        match = self._take(self._patterns.tail)
        if match and match.groupdict().get("more"):
            self._state = self._head
        else:
            self._enter(self._begin)

    # What the states have in common.

    def _enter(self, state: Callable[[list[Piece]], None]) -> None:
        """Go on after a marker, without the white space that follows it."""
        self._state, self._strip = state, True

    def _match(self, pattern: Pattern) -> Any:
        """The pattern's match with the beginning of what is held. Raises Unclear."""
        match = pattern and pattern.match(self._held, partial=True)
        if match and match.partial:
            raise Unclear
        return match

    def _take(self, pattern: Pattern) -> Any:
        """The same, taken away."""
        if match := self._match(pattern):
            self._held = self._held[match.end() :]
        return match

    def _until(self, pattern: Pattern, kind: str, pieces: list[Piece]) -> Any:
        """Emit what certainly comes before the pattern. Its match, taken away, once it is whole."""
        if pattern is NOTHING:
            self._emit(pieces, kind, self._held)
            self._held = ""
            return None
        match = pattern.search(self._held, partial=True)
        start, end = match.span() if match else (len(self._held), len(self._held))
        self._emit(pieces, kind, self._held[:start])
        if match and not match.partial:
            self._held = self._held[end:]
            return match
        self._held = self._held[start:]
        if self._held:
            raise Unclear
        return None

    def _emit(self, pieces: list[Piece], kind: str, text: str) -> None:
        if self._strip:
            text = text.lstrip()
            self._strip = not text
        if text:
            pieces.append(Piece(kind, text))

    def _begin_call(self, name: str, pieces: list[Piece]) -> None:
        pieces.append(Piece("call", name))
        self._gap, self._strip = "", False
        self._name, self._arguments, self._json = name, "", JsonEnd()
        is_xml = self._calls is not None and self._calls.is_xml
        self._state = self._xml_arguments if is_xml else self._json_arguments

    def _add_arguments(self, text: str, pieces: list[Piece]) -> None:
        self._arguments += text
        if text:
            pieces.append(Piece("arguments", text))

    def _end_call(self, text: str, pieces: list[Piece]) -> None:
        """Emit the end of the arguments."""
        self._add_arguments(text, pieces)
        # if that is no JSON, the caller gets what the model wrote, but it is no call to carry out
        with suppress(ValueError, RecursionError):
            json.loads(self._arguments)
            self.num_complete_calls += 1
        self._state = self._tail

    def _whole_call(self, text: str, pieces: list[Piece]) -> bool:
        """Emit the call that a marker and a JSON object make up; False if they do not."""
        call = _load(text[text.find("{") :]) if "{" in text else None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return False
        arguments = call.get("arguments", call.get("parameters")) or {}
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        self._begin_call(call["name"], pieces)
        self._end_call(arguments, pieces)
        return True

    def _no_call(self, pieces: list[Piece]) -> None:
        """Its first character is text, and so it is no marker any more."""
        self._emit(pieces, "text", self._gap + self._held[0])
        self._gap, self._held, self._state = "", self._held[1:], self._text


NOTHING = regex.compile("(?!)")  # to watch for


class _Patterns(NamedTuple):
    opening: Pattern
    closing: Pattern
    watch: Pattern  # whatever may interrupt a text, as groups "call", "thought", "noise"
    bare: Pattern
    head: Pattern
    tail: Pattern
    whole: Pattern
    whole_head: Pattern


@lru_cache(maxsize=32)
def _compile(reasoning: Reasoning | None, calls: Calls | None) -> _Patterns:
    def pattern(syntax: Reasoning | Calls | None, name: str) -> Pattern:
        text = getattr(syntax, name, "")
        return regex.compile(text) if text else None

    anywhere = reasoning is not None and reasoning.anywhere
    noise = [part.noise for part in (reasoning, calls) if part is not None and part.noise]
    groups = {
        "call": calls.marker if calls else "",
        "thought": reasoning.opening if reasoning and anywhere else "",
        "noise": "|".join(noise),
    }
    watch = "|".join(f"(?P<{name}>{text})" for name, text in groups.items() if text)
    return _Patterns(
        opening=pattern(reasoning, "opening"),
        closing=pattern(reasoning, "closing"),
        watch=regex.compile(rf"\s{{0,16}}(?:{watch})") if watch else NOTHING,
        **{name: pattern(calls, name) for name in ("bare", "head", "tail", "whole", "whole_head")},
    )


_PARAMETER = regex.compile(r"\s*<parameter=(?P<key>[^>\n]+)>")
_END_OF_PARAMETER = "</parameter>"
_END_OF_FUNCTION = regex.compile(r"\s*</function>")
_NULL = regex.compile("null|None")


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
