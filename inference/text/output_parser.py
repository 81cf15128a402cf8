"""What kind of text a model is writing: its thoughts, or its answer."""

from typing import Any, NamedTuple

OPEN, CLOSE = "<think>", "</think>"


class Piece(NamedTuple):
    kind: str  # "reasoning" or "text"
    text: str


class ReasoningParser:
    """Splits the `<think>` families' text into reasoning and answer, one piece at a time.

    Text that might be the beginning of a marker is held back until the next piece or `flush`.
    White space around the markers belongs to neither side. Only a marker at the very beginning
    opens: a model that writes about `<think>` later is not thinking.
    """

    def __init__(self, prompt: str) -> None:
        inside = prompt.rstrip().endswith(OPEN)
        self._state = self._reasoning if inside else self._start
        self._held, self._strip = "", inside

    @property
    def in_reasoning(self) -> bool:
        return self._state == self._reasoning

    def add(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while self._held and self._state(pieces):
            pass
        return pieces

    def flush(self) -> list[Piece]:
        kind = "reasoning" if self.in_reasoning else "text"
        text, self._held = self._held, ""
        return [Piece(kind, text)] if text else []

    def _start(self, pieces: list[Piece]) -> bool:
        text = self._held.lstrip()
        if text.startswith(OPEN):
            self._held, self._state, self._strip = text[len(OPEN) :], self._reasoning, True
            return True
        if OPEN.startswith(text):
            return False
        self._state = self._text
        return True

    def _reasoning(self, pieces: list[Piece]) -> bool:
        if self._strip:
            self._held = self._held.lstrip()
            self._strip = not self._held
        before, marker, after = self._held.partition(CLOSE)
        if marker:
            self._emit(pieces, "reasoning", before.rstrip())
            self._held, self._state, self._strip = after, self._text, True
            return True
        safe = len(before) - _num_held_back(before)
        self._emit(pieces, "reasoning", before[:safe])
        self._held = before[safe:]
        return False

    def _text(self, pieces: list[Piece]) -> bool:
        if self._strip:
            self._held = self._held.lstrip()
            self._strip = not self._held
        self._emit(pieces, "text", self._held)
        self._held = ""
        return False

    @staticmethod
    def _emit(pieces: list[Piece], kind: str, text: str) -> None:
        if text:
            pieces.append(Piece(kind, text))


class PlainParser:
    """The parser of a model that does not think: everything is text."""

    in_reasoning = False

    def add(self, text: str) -> list[Piece]:
        return [Piece("text", text)] if text else []

    def flush(self) -> list[Piece]:
        return []


def make_parser(tokenizer: Any, prompt_tail: list[int]) -> ReasoningParser | PlainParser:
    """The parser for what follows these tokens, judged by the model's own chat template."""
    if CLOSE not in str(getattr(tokenizer, "chat_template", None) or ""):
        return PlainParser()
    return ReasoningParser(tokenizer.decode(prompt_tail))


def _num_held_back(text: str) -> int:
    """Length of the end of `text` that could belong to a closing marker: it, and space before."""
    size = next(
        (n for n in range(min(len(CLOSE) - 1, len(text)), 0, -1) if CLOSE.startswith(text[-n:])), 0
    )
    before = text[: len(text) - size]
    return size + len(before) - len(before.rstrip())
