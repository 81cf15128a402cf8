"""How much a key may do: requests and tokens in a minute, requests at a time, tokens in a day.

The day's tokens are those of the usage table. Everything else is counted in this process's memory:
of several processes on one database, each gives a key its whole minute.
"""

import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterable

from openai_api import usage
from openai_api.answers import Answer, Choice
from openai_api.database import read
from openai_api.errors import LimitReached, QuotaExceeded
from openai_api.models import ApiKey

MINUTE_S = 60.0
USUAL_ANSWER = 256  # tokens, expected where the request sets no limit; the end corrects it

clock = time.monotonic

_lock = threading.Lock()  # background responses end in another thread


class Meter:
    """What was used of a limit per minute: it drains evenly, so that after a minute all is free."""

    def __init__(self) -> None:
        self._used, self._at = 0.0, clock()

    def used(self, limit: int) -> float:
        at = clock()
        self._used = max(self._used - (at - self._at) * limit / MINUTE_S, 0.0)
        self._at = at
        return self._used

    def add(self, limit: int, amount: float) -> None:
        """May go beyond the limit: a debt, to be waited for. Less than nothing was never used."""
        self._used = max(self.used(limit) + amount, 0.0)

    def wait_s(self, limit: int, amount: int) -> float:
        """Seconds until there is room for so much more; 0 if there is."""
        missing = self.used(limit) + amount - limit
        return max(round(missing * MINUTE_S / limit, 6), 0.0)


class Account:
    """What the requests of one key use."""

    def __init__(self) -> None:
        self.requests, self.tokens = Meter(), Meter()
        self.leases: set[Lease] = set()

    @property
    def num_active(self) -> int:
        return sum(lease.is_active for lease in self.leases)

    @property
    def num_reserved(self) -> int:
        return sum(lease.num_reserved for lease in self.leases)


_accounts: defaultdict[int, Account] = defaultdict(Account)


class Lease:
    """A request that is being answered, from its admission until it is known what it has used.

    Several may hold it: a background response outlives its request. The last one to end it counts.
    """

    def __init__(self, key: ApiKey | None = None) -> None:
        self.answers: list[Answer] = []
        self.summaries: list[Answer] = []  # which the model wrote for itself, before it answered
        self.num_reserved = 0
        self._key, self._num_used, self._num_holders = key, 0, 1

    @property
    def is_active(self) -> bool:
        """Not if all is said: whoever reads the last event may ask again, and is not too early."""
        return not (self.answers and all(answer.is_over for answer in self.answers))

    def reserve(self, num_tokens: int) -> None:
        """Take so many tokens of the minute, until `end` tells how many it were.

        What summaries have used comes on top. Raises LimitReached.
        """
        if self._key is None:
            return
        num_tokens += sum(summary.usage.num_tokens for summary in self.summaries)
        with _lock:
            if limit := self._key.tokens_per_minute:
                more = num_tokens - self.num_reserved
                _check_tokens(self._key, limit, more)
                _accounts[self._key.pk].tokens.add(limit, more)
            self.num_reserved = num_tokens

    def hold(self) -> None:
        with _lock:
            self._num_holders += 1

    def end(self, num_tokens: int = 0) -> None:
        """One of its holders has used so many tokens, and lets go."""
        if self._key is None:
            return
        with _lock:
            self._num_used += num_tokens
            self._num_holders -= 1
            account = _accounts[self._key.pk]
            if self._num_holders or self not in account.leases:
                return
            account.leases.remove(self)
            if limit := self._key.tokens_per_minute:
                account.tokens.add(limit, self._num_used - self.num_reserved)


async def admit(key: ApiKey | None) -> Lease:
    """Let a request begin. Raises LimitReached or QuotaExceeded, and then counts nothing."""
    if key is None:
        return Lease()
    num_today = await read(usage.tokens_today, key.pk) if key.tokens_per_day else 0
    with _lock:
        account, lease = _accounts[key.pk], Lease(key)
        if key.tokens_per_day and num_today + account.num_reserved >= key.tokens_per_day:
            raise QuotaExceeded()
        _check_concurrent(key, account)
        if key.tokens_per_minute:
            _check_tokens(key, key.tokens_per_minute, 0)  # there may be a debt
        if key.requests_per_minute:
            _take_request(key, key.requests_per_minute, account.requests)
        account.leases.add(lease)
    return lease


def estimate(choices: Iterable[Choice], max_model_len: int) -> int:
    """Tokens that the choices will need: each prompt once, and what the answers may become."""
    prompts, total = {}, 0
    for choice in choices:
        num_prompt = prompts[choice.prompt_index] = len(choice.prompt_token_ids)
        wanted = choice.params.max_tokens
        total += min(USUAL_ANSWER if wanted is None else wanted, max_model_len - num_prompt)
    return total + sum(prompts.values())


def headers(key: ApiKey) -> dict[str, str]:
    """OpenAI's headers: what is left of each minute, and when all of it will be free again."""
    found = {}
    with _lock:
        account = _accounts[key.pk]
        for kind, limit, meter in (
            ("requests", key.requests_per_minute, account.requests),
            ("tokens", key.tokens_per_minute, account.tokens),
        ):
            if limit:
                used = meter.used(limit)
                found[f"x-ratelimit-limit-{kind}"] = str(limit)
                found[f"x-ratelimit-remaining-{kind}"] = str(max(math.floor(limit - used), 0))
                found[f"x-ratelimit-reset-{kind}"] = duration(used * MINUTE_S / limit)
    return found


def duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 1s, 6m0s."""
    if 0 < seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _check_concurrent(key: ApiKey, account: Account) -> None:
    limit = key.concurrent_requests
    if limit and (num_active := account.num_active) >= limit:
        raise _reached(key, "requests", "concurrent requests", limit, num_active, 1, 1.0)


def _take_request(key: ApiKey, limit: int, meter: Meter) -> None:
    used, wait_s = meter.used(limit), meter.wait_s(limit, 1)
    if wait_s:
        raise _reached(key, "requests", "requests per min (RPM)", limit, used, 1, wait_s)
    meter.add(limit, 1)


def _check_tokens(key: ApiKey, limit: int, num_tokens: int) -> None:
    """Raise LimitReached if so many more do not fit into the minute."""
    if num_tokens > limit:
        raise LimitReached(
            "tokens",
            f"Request too large for key '{key}' on tokens per min (TPM): Limit {limit}, Requested "
            f"{num_tokens}. The input or output tokens must be reduced in order to run "
            "successfully.",
        )
    meter = _accounts[key.pk].tokens
    used, wait_s = meter.used(limit), meter.wait_s(limit, num_tokens)
    if wait_s:
        kind = "tokens per min (TPM)"
        raise _reached(key, "tokens", kind, limit, used, num_tokens, wait_s)


def _reached(
    key: ApiKey, type_: str, kind: str, limit: int, used: float, wanted: int, wait_s: float
) -> LimitReached:
    return LimitReached(
        type_,
        f"Rate limit reached for key '{key}' on {kind}: Limit {limit}, Used {math.ceil(used)}, "
        f"Requested {wanted}. Please try again in {duration(wait_s)}.",
        wait_s,
    )
