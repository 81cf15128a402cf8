"""The thought before an answer, and how long it may get."""

from collections import deque
from dataclasses import dataclass
from typing import Any

from inference.text.syntax import Reasoning

_MAX_CHARACTER = 4  # bytes, and so tokens, of one character


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """What may come before the answer: a thought that is open already, or could be opened."""

    reasoning: Reasoning
    is_open: bool
    max_tokens: int | None = None


class ThinkingBudget:
    """Counts the tokens of a thought, and ends it when there are too many."""

    def __init__(self, thought: Thought, tokenizer: Any) -> None:
        self._reasoning, self._tokenizer = thought.reasoning, tokenizer
        self._left = thought.max_tokens or 0
        closing = thought.reasoning.close
        if not thought.reasoning.anywhere:
            closing = f"\n{closing}\n\n"
        self._closing = deque(tokenizer.encode(closing, add_special_tokens=False))
        self._inside: bool | None = True if thought.is_open else None  # None: not begun yet
        self._recent: list[int] = []
        self._is_amid = False

    def forced_token(self) -> int | None:
        """The token that must come next because the budget is used up, if it is."""
        due = self._left <= 0 and not (self._is_amid and self._left > -_MAX_CHARACTER)
        return self._closing[0] if self._inside and due and self._closing else None

    def advance(self, token_id: int) -> None:
        """Count a token."""
        if self._inside is False:
            return
        if self.forced_token() is not None:
            self._closing.popleft()
            self._inside = bool(self._closing)
            return
        self._recent = [*self._recent[-15:], token_id]
        text = self._tokenizer.decode(self._recent)
        self._is_amid = text.endswith("\ufffd")  # in the middle of a character
        if self._inside:
            self._left -= 1
            self._inside = self._reasoning.close not in text
        elif self._reasoning.open in text:
            self._inside, self._recent = True, []
        elif not self._reasoning.open.startswith(text.strip()[: len(self._reasoning.open)]):
            self._inside = False
