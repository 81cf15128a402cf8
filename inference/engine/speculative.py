"""Guessing the next tokens from what stood there before, so that one run can check several.

Prompt lookup: where the last few tokens occurred before, what followed then may follow now. Source:
A. Saxena, "Prompt Lookup Decoding", 2023. A guess changes no answer: every position is sampled as
it would be without guesses, and the first token that differs ends what is taken over.
"""

from inference.engine.sequence import Lookup, Sequence

SIZES = (4, 2)  # of the n-grams that are looked for, the longest first
MAX_PAUSE = 128  # tokens without a guess, where guesses failed


class NgramProposer:
    """Drafts of at most `max_draft` tokens, and `max_rows` rows in one batch, drafts included.

    Rows cost little as long as reading the weights takes longer than the arithmetic; beyond that
    a wrong guess would delay everybody.
    """

    def __init__(self, max_draft: int, max_rows: int) -> None:
        self.max_draft, self.max_rows = max_draft, max_rows
        self.num_draft_tokens = self.num_accepted_tokens = 0

    def may_guess(self, num_running: int) -> bool:
        """Whether a batch of so many sequences has room for guesses."""
        return self.max_draft > 0 and self.max_rows // max(num_running, 1) > 1

    def propose(self, seq: Sequence, num_running: int) -> list[int]:
        """What may follow; empty where a grammar restricts it, or the last token is not known."""
        room = min(self.max_draft, self.max_rows // num_running - 1)
        room = min(room, seq.max_tokens - seq.num_output_tokens - 1)
        is_free = seq.constraint is None and not seq.num_output_placeholders
        if room < 1 or seq.num_pending_tokens != 1 or not is_free:
            return []
        lookup = seq.lookup
        index(lookup, seq.token_ids)
        if lookup.pause:
            lookup.pause -= 1
            return []
        return find(lookup, seq.token_ids, min(room, lookup.num_guessed))

    def learn(self, seq: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Guess more after a hit, less after a miss, and pause longer after each failure."""
        self.num_draft_tokens += num_drafted
        self.num_accepted_tokens += num_accepted
        lookup = seq.lookup
        if num_accepted == num_drafted:
            lookup.num_guessed = min(2 * lookup.num_guessed, self.max_draft)
            lookup.backoff = 1
        else:
            lookup.num_guessed = max(num_accepted, 1)
        if not num_accepted:
            lookup.pause = lookup.backoff
            lookup.backoff = min(2 * lookup.backoff, MAX_PAUSE)


def index(lookup: Lookup, token_ids: list[int]) -> None:
    """Note for every n-gram what comes after its latest occurrence."""
    for end in range(lookup.num_indexed, len(token_ids)):
        for size in SIZES:
            if end >= size:
                lookup.followers[tuple(token_ids[end - size : end])] = end
    lookup.num_indexed = len(token_ids)


def find(lookup: Lookup, token_ids: list[int], num_tokens: int) -> list[int]:
    """The tokens after the latest occurrence of the longest known n-gram at the end."""
    for size in SIZES:
        position = lookup.followers.get(tuple(token_ids[-size:]))
        if position is not None:
            period = len(token_ids) - position
            # what goes beyond the end repeats itself
            return [token_ids[position + i % period] for i in range(num_tokens)]
    return []
