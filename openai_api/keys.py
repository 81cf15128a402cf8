"""Who is asking: the one place that finds a key by its secret, for HTTP and WebSocket alike.

The keys are few and are kept in memory, all of them. So a request costs no query, and a thousand
wrong secrets cost none either. What this process changes counts at once, what another one changes
within seconds.
"""

import re
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple

from django.db import transaction
from django.db.models import Q
from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver
from django.utils.timezone import now

from openai_api.database import read
from openai_api.errors import Unauthorized
from openai_api.models import ApiKey

MAX_AGE_S = 3.0
TOUCH_INTERVAL = timedelta(minutes=1)  # "last used" is no more exact than this

clock = time.monotonic

_version = 0  # grows with each change that this process knows of
_known: "Known | None" = None
_loading = threading.Lock()


class Known(NamedTuple):
    """All keys, by what may be shown of their secrets, as they were at a time."""

    by_prefix: Mapping[str, list[ApiKey]]
    version: int
    loaded_at: float


async def refresh() -> None:
    """To be awaited before the functions below are asked, which then need no database."""
    if not _is_fresh():
        await read(_load)


async def exist() -> bool:
    """Whether there are keys, so that each request needs one.

    Also if none of them is valid any more: a key that expires must not open the door to everyone.
    """
    await refresh()
    return bool(_all().by_prefix)


def identify(headers: Mapping[str, str]) -> ApiKey | None:
    """The key of a request, None if there are no keys at all. Raises Unauthorized."""
    if not (by_prefix := _all().by_prefix):
        return None
    if (secret := secret_in(headers)) is None:
        raise Unauthorized(MISSING)
    for key in by_prefix.get(secret[: ApiKey.PREFIX_LEN], ()):
        if key.is_of(secret) and key.state == "active":
            return key
    raise Unauthorized(INCORRECT.format(masked(secret)), code="invalid_api_key")


def secret_in(headers: Mapping[str, str]) -> str | None:
    """What the caller shows as a key; the names of the headers are in lower case."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("api-key") or headers.get("x-api-key") or None


def masked(secret: str) -> str:
    """Enough for its owner to recognise it; of a short text, or a strange one, nothing."""
    is_plain = re.fullmatch(r"[\w-]{20,}", secret, re.ASCII)
    return f"{secret[:5]}***{secret[-2:]}" if is_plain else "***"


def touch(key: ApiKey) -> None:
    """Note that the key was used. Called in the writing thread."""
    at = now()
    if key.last_used_at is None or at - key.last_used_at >= TOUCH_INTERVAL:
        key.last_used_at = at  # of the copy in memory: the next minute's requests need no query
        before = Q(last_used_at=None) | Q(last_used_at__lt=at - TOUCH_INTERVAL / 2)
        ApiKey.objects.filter(before, pk=key.pk).update(last_used_at=at)


@receiver([post_save, post_delete], sender=ApiKey)
def forget(**kwargs) -> None:
    """Load the keys anew: now, and when others can see what is being changed."""
    outdate()
    transaction.on_commit(outdate)


def outdate() -> None:
    """What is in memory holds no longer."""
    global _version
    _version += 1


def _all() -> Known:
    if _known is None:
        raise RuntimeError("the keys have not been loaded: await keys.refresh() first")
    return _known


def _is_fresh() -> bool:
    return (
        _known is not None and _known.version == _version and clock() - _known.loaded_at < MAX_AGE_S
    )


def _load() -> None:
    """Of many requests that find the keys outdated, one loads them."""
    global _known
    with _loading:
        while not _is_fresh():
            version, loaded_at, by_prefix = _version, clock(), defaultdict(list)
            for key in ApiKey.objects.all():
                by_prefix[key.prefix].append(key)
            _known = Known(dict(by_prefix), version, loaded_at)


MISSING = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header "
    "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
)
INCORRECT = (
    "Incorrect API key provided: {}. The operator of this server can make one with "
    "`manage.py apikey create`."
)
