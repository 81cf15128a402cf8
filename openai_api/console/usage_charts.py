"""Usage by the day and by the key, as bars."""

from dataclasses import dataclass
from datetime import timedelta

from django.db.models import F, QuerySet, Sum

from openai_api.console.charts import BarChart, bar_chart, share

NUM_DAYS = 30
NUM_KEYS = 5  # with a colour of their own
TOKENS = F("num_prompt_tokens") + F("num_completion_tokens")


@dataclass(frozen=True)
class KeyTotal:
    """A line of the legend. `kind` numbers the colour."""

    kind: int
    name: str
    num_requests: int
    num_tokens: int
    fill: float


@dataclass(frozen=True)
class UsageCharts:
    requests: BarChart
    tokens: BarChart
    keys: list[KeyTotal]
    first_day: str
    last_day: str


def usage_charts(rows: QuerySet) -> UsageCharts | None:
    """The newest days of these rows of usage; None if there are none."""
    rows = rows.order_by()
    last_day = rows.order_by("-day").values_list("day", flat=True).first()
    if last_day is None:
        return None
    first_day = last_day - timedelta(days=NUM_DAYS - 1)
    rows = rows.filter(day__gte=first_day)
    totals = list(
        rows.values("key", "key__name")
        .annotate(requests=Sum("num_requests"), tokens=Sum(TOKENS))
        .order_by("-tokens", "-requests")
    )
    keys = legend(totals)
    kinds = {total["key"]: min(kind, NUM_KEYS) for kind, total in enumerate(totals)}
    days = [first_day + timedelta(days=i) for i in range(NUM_DAYS)]
    names = [str(day) for day in days]
    requests, tokens = ([[0] * NUM_DAYS for _ in keys] for _ in range(2))
    for key, day, num_requests, num_tokens in rows.values_list(
        "key", "day", "num_requests", TOKENS
    ):
        index = (day - first_day).days
        requests[kinds[key]][index] += num_requests
        tokens[kinds[key]][index] += num_tokens
    named = [key.name for key in keys]
    return UsageCharts(
        bar_chart(names, list(zip(named, requests, strict=True))),
        bar_chart(names, list(zip(named, tokens, strict=True))),
        keys,
        names[0],
        names[-1],
    )


def legend(totals: list[dict]) -> list[KeyTotal]:
    """The keys that used most, then all others together."""
    most = max((total["tokens"] for total in totals), default=0)
    own = [
        (total["key__name"] or "no key", total["requests"], total["tokens"])
        for total in totals[:NUM_KEYS]
    ]
    if others := totals[NUM_KEYS:]:
        sums = [sum(total[name] for total in others) for name in ("requests", "tokens")]
        most = max(most, sums[1])
        own.append((f"{len(others)} others", *sums))
    return [
        KeyTotal(kind, name, num_requests, num_tokens, share(num_tokens, most))
        for kind, (name, num_requests, num_tokens) in enumerate(own)
    ]
