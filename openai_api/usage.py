"""What each key uses, day by day. Called in the database's threads."""

from datetime import date

from django.db.models import F
from django.utils.timezone import now

from openai_api.answers import Usage as Used
from openai_api.models import Usage


def today() -> date:
    """The day of UTC, wherever the server stands."""
    return now().date()


def add(key_id: int | None, num_requests: int, used: Used) -> None:
    """One UPDATE; only a day's first request needs more."""
    row = {"key_id": key_id, "day": today()}
    if not _increase(row, num_requests, used):
        Usage.objects.bulk_create([Usage(**row)], ignore_conflicts=True)  # another server's, say
        _increase(row, num_requests, used)


def _increase(row: dict, num_requests: int, used: Used) -> int:
    return Usage.objects.filter(**row).update(
        num_requests=F("num_requests") + num_requests,
        num_prompt_tokens=F("num_prompt_tokens") + used.num_prompt_tokens,
        num_cached_tokens=F("num_cached_tokens") + used.num_cached_tokens,
        num_completion_tokens=F("num_completion_tokens") + used.num_output_tokens,
    )


def tokens_today(key_id: int) -> int:
    columns = ("num_prompt_tokens", "num_completion_tokens")
    row = Usage.objects.filter(key=key_id, day=today()).values_list(*columns).first()
    return sum(row or ())
