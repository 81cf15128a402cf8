"""Token ids to text that is safe to show: whole characters, and nothing of a stop string.

Every incremental class here has the same two verbs: feed it a piece, and flush it at the end.
"""

from collections.abc import Iterable, Set
from functools import lru_cache
from typing import Any

# More context than any tokenizer looks at to decide on spaces before the first new token.
_CONTEXT = 8
_MAX_PENDING = 32  # no character has that many bytes: what is still unclear never will be clear
_INCOMPLETE = "\ufffd"


class Detokenizer:
    """Turns the tokens of one answer into text, never splitting a character.

    Decodes a short window twice, without and with the new token, and takes the difference; a
    window that ends in the middle of a character waits. This two-offset method is TGI's; it
    needs only `decode` and so works for every tokenizer, at a cost that does not grow.

    Of the special tokens, only those in `keep` are shown; None shows all of them.
    """

    def __init__(
        self, tokenizer: Any, prompt_token_ids: list[int], *, keep: Set[int] | None = frozenset()
    ) -> None:
        self._tokenizer, self._skip = tokenizer, keep is not None and not keep
        self._dropped = special_token_ids(tokenizer) - keep if keep else frozenset()
        self._window = list(prompt_token_ids[-_CONTEXT:])
        self._num_read = len(self._window)  # of the window: their text has been given out
        self._prefix = self._decode(self._window)

    def add(self, token_id: int) -> str:
        """The text that became certain with this token; often empty."""
        if token_id in self._dropped:
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        unclear = len(text) <= len(self._prefix) or text.endswith(_INCOMPLETE)
        if unclear and len(self._window) - self._num_read < _MAX_PENDING:
            return ""
        return self._emit(text)

    def flush(self) -> str:
        """What is left at the end: an unfinished character shows as U+FFFD."""
        text = self._decode(self._window)
        return self._emit(text) if len(text) > len(self._prefix) else ""

    def _emit(self, text: str) -> str:
        new = text[len(self._prefix) :]
        self._window = self._window[self._num_read :]
        self._num_read = len(self._window)
        self._prefix = self._decode(self._window)
        return new

    def _decode(self, token_ids: list[int]) -> str:
        return decode(self._tokenizer, token_ids, skip_special_tokens=self._skip)


def decode(tokenizer: Any, token_ids: list[int], *, skip_special_tokens: bool) -> str:
    """What the tokens say, spaces as they are: tidied, a text would not begin with its beginning.

    A fast tokenizer is asked itself: what transformers does around it takes ten times as long.
    """
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        return str(backend.decode(token_ids, skip_special_tokens=skip_special_tokens))
    return str(
        tokenizer.decode(
            token_ids,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
    )


@lru_cache(maxsize=4)
def special_token_ids(tokenizer: Any) -> frozenset[int]:
    """The tokens that `skip_special_tokens` leaves out."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(id_ for id_, token in added if token.special) | set(tokenizer.all_special_ids)


class StopStrings:
    """Watches text for stop strings that may be spread over any number of pieces.

    Text that could be the beginning of one is held back. The match that ends first wins, and of
    those the longest, so that the cut does not depend on how the text was split.
    """

    def __init__(self, stop: Iterable[str], *, include: bool = False) -> None:
        self._stop = [s for s in stop if s]
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def add(self, text: str) -> str:
        """The part of the text so far that certainly belongs to the answer."""
        if not self._stop:
            return text
        self._held += text
        if match := self._find():
            end, self.matched = match
            keep = end if self._include else end - len(self.matched)
            text, self._held = self._held[:keep], ""
            return text
        hold = self._num_held_back()
        text, self._held = self._held[: len(self._held) - hold], self._held[-hold:] if hold else ""
        return text

    def flush(self) -> str:
        """What was held back, once it is certain that no stop string follows."""
        text, self._held = self._held, ""
        return text

    def _find(self) -> tuple[int, str] | None:
        ends = [
            (start + len(s), -len(s), s) for s in self._stop if (start := self._held.find(s)) >= 0
        ]
        if not ends:
            return None
        end, _, stop = min(ends)
        return end, stop

    def _num_held_back(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max(len(s) for s in self._stop) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-size:]
            if any(s.startswith(tail) for s in self._stop):
                return size
        return 0
