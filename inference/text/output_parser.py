"""What kind of text a model is writing: its thoughts, its answer, or calls of functions."""

import json
from collections.abc import Callable, Iterable
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
        self._state: Callable[[list[Piece]], bool] = self._first
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
        while self._held and self._state(pieces):
            pass
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

    # The states. Each takes what it can from `_held`; True if another state has to go on.

    def _first(self, pieces: list[Piece]) -> bool:
        """The very beginning, the only place where most models open a thought."""
        match = self._patterns.opening and self._patterns.opening.match(self._held, partial=True)
        if match and match.partial:
            return False
        if match:
            self._held = self._held[match.end() :]
            return self._enter(self._thought)
        return self._begin(pieces)

    def _begin(self, pieces: list[Piece]) -> bool:
        """The beginning of an answer, or of what follows a call: a call may stand there bare."""
        match = self._patterns.bare and self._patterns.bare.match(self._held, partial=True)
        if match and match.partial:
            self._state = self._begin
            return False
        self._state = self._head if match else self._text
        return True

    def _thought(self, pieces: list[Piece]) -> bool:
        if self._until(self._patterns.closing, "reasoning", pieces):
            return self._enter(self._begin)
        return False

    def _text(self, pieces: list[Piece]) -> bool:
        match = self._until(self._patterns.watch, "text", pieces)
        if not match:
            return False
        if match.lastgroup == "call":
            self._gap = match.group()[: match.start("call") - match.start()]
            self._held = match["call"] + self._held
            self._state = self._head
            return True
        return self._enter(self._thought if match.lastgroup == "thought" else self._text)

    def _head(self, pieces: list[Piece]) -> bool:
        match = self._patterns.head.match(self._held, partial=True)
        if match and match.partial:
            return False
        if match and not self._is_plain_json(match["name"]):
            self._held = self._held[match.end() :]
            self._begin_call(match["name"].strip(), pieces)
            return True
        whole = self._patterns.whole_head
        match = whole and whole.match(self._held, partial=True)
        if match and match.partial:
            return False
        if match:
            self._state = self._whole
        else:
            self._no_call(pieces)
        return True

    def _is_plain_json(self, name: str) -> bool:
        """A bare object is an answer in JSON, and no call, if it names no tool."""
        return name not in self._schemas and self._held.lstrip()[:1] == "{"

    def _whole(self, pieces: list[Piece]) -> bool:
        """Something unusual: a call whose keys come in another order, or none."""
        match = self._patterns.whole.search(self._held)
        if not match:
            return False
        text, self._held = self._held[: match.start()], self._held[match.end() :]
        if self._whole_call(text, pieces):
            return self._enter(self._begin)
        self._held = text + match.group() + self._held
        self._no_call(pieces)
        return True

    def _json_arguments(self, pieces: list[Piece]) -> bool:
        if not self._arguments:
            self._held = self._held.lstrip()
            if match := _NULL.match(self._held, partial=True):
                if match.partial:
                    return False
                self._held = self._held[match.end() :]
                self._add_arguments("{}", pieces)
                return self._end_call()
            if self._held and self._held[0] not in '{"':
                self._state = self._raw_arguments
                return True
        end = self._json.find(self._held)
        text, self._held = self._held[:end], self._held[end:] if end else ""
        if self._arguments or text.startswith("{"):
            self._add_arguments(text, pieces)
            return self._end_call() if end else False
        if not end:  # an object written as a string is read when it is whole
            self._held, self._json = text, JsonEnd()
            return False
        self._add_arguments(_load(text) or "{}", pieces)
        return self._end_call()

    def _raw_arguments(self, pieces: list[Piece]) -> bool:
        """Arguments that are no JSON are passed on, but make no complete call."""
        if self._until(self._patterns.tail, "arguments", pieces):
            return self._enter(self._begin)
        return False

    def _xml_arguments(self, pieces: list[Piece]) -> bool:
        if match := _PARAMETER.match(self._held, partial=True):
            if match.partial:
                return False
            self._key, self._num_searched = match["key"], 0
            self._held, self._state = self._held[match.end() :], self._xml_value
            return True
        match = _END_OF_FUNCTION.match(self._held, partial=True)
        if match and match.partial:
            return False
        self._held = self._held[match.end() :] if match else self._held
        self._add_arguments("}" if self._arguments else "{}", pieces)
        return self._end_call()

    def _xml_value(self, pieces: list[Piece]) -> bool:
        end = self._held.find(_END_OF_PARAMETER, self._num_searched)
        if end < 0:
            self._num_searched = max(0, len(self._held) - len(_END_OF_PARAMETER))
            return False
        text, self._held = self._held[:end], self._held[end + len(_END_OF_PARAMETER) :]
        text = text.removeprefix("\n").removesuffix("\n")
        value = typed(text, self._schemas.get(self._name, {}).get(self._key))
        comma = ", " if self._arguments else "{"
        key, value = json.dumps(self._key), json.dumps(value, ensure_ascii=False)
        self._add_arguments(f"{comma}{key}: {value}", pieces)
        self._state = self._xml_arguments
        return True

    def _tail(self, pieces: list[Piece]) -> bool:
        match = self._patterns.tail.match(self._held, partial=True)
        if match and match.partial:
            return False
        if match:
            self._held = self._held[match.end() :]
        if match and match.groupdict().get("more"):
            self._state = self._head
            return True
        return self._enter(self._begin)

    # What the states have in common.

    def _enter(self, state: Callable[[list[Piece]], bool]) -> bool:
        """Go on after a marker, without the white space that follows it."""
        self._state, self._strip = state, True
        return True

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

    def _end_call(self) -> bool:
        try:
            json.loads(self._arguments)
            self.num_complete_calls += 1
        except (ValueError, RecursionError):
            pass  # the caller gets what the model wrote, but it is no call to carry out
        self._state = self._tail
        return True

    def _whole_call(self, text: str, pieces: list[Piece]) -> bool:
        """Emit the call that a marker and a JSON object make up; False if they do not."""
        call = _load(text[text.find("{") :]) if "{" in text else None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return False
        arguments = call.get("arguments", call.get("parameters")) or {}
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        self._begin_call(call["name"], pieces)
        self._add_arguments(arguments, pieces)
        return self._end_call()

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
    def pattern(text: str) -> Pattern:
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
        opening=pattern(reasoning.opening if reasoning else ""),
        closing=pattern(reasoning.closing if reasoning else ""),
        watch=pattern(rf"\s{{0,16}}(?:{watch})") if watch else NOTHING,
        bare=pattern(calls.bare if calls else ""),
        head=pattern(calls.head if calls else ""),
        tail=pattern(calls.tail if calls else ""),
        whole=pattern(calls.whole if calls else ""),
        whole_head=pattern(calls.whole_head if calls else ""),
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
