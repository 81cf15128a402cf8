"""What the first page of the admin shows: how the server does, what it is at, what it has done.

One template makes the moving part of the page, for the first answer, for those who poll it and for
those who get it over a WebSocket.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser
from django.db import connection
from django.db.models import F
from django.template.loader import render_to_string

from openai_api import history, runs
from openai_api.console.charts import Line, share, sparkline, timing
from openai_api.console.formats import duration, number, size_in_bytes, spoken
from openai_api.console.samples import Quantiles, Sample, sampler
from openai_api.history import Record
from openai_api.models import RequestLog, Usage
from openai_api.runs import Run
from openai_api.usage import today

TEMPLATE = "console/live.html"
NUM_RUNNING = 50
NUM_LAST = 20
NUM_KEYS = 5
FRESH_S = 1.0  # several who look at it at the same time see the same


class Sight(NamedTuple):
    """What somebody may see, and do."""

    requests: bool = False
    usage: bool = False
    abort: bool = False


def sight_of(user: AbstractBaseUser) -> Sight:
    names = ("view_requestlog", "view_usage", "abort_requestlog")
    return Sight(*(user.has_perm(f"openai_api.{name}") for name in names))


@dataclass(frozen=True)
class Tile:
    """A figure and its last minutes. `fill` is how much of a limit is used, in percent."""

    title: str
    value: str
    unit: str
    note: str
    lines: list[Line]
    fill: float | None = None
    is_bad: bool = False


@dataclass(frozen=True)
class Running:
    """A request, or a response in the background, that this process is at."""

    id: str
    endpoint: str
    key: str
    state: str
    num_prompt_tokens: int
    num_tokens: int
    age_s: float
    tokens_per_s: float | None
    is_logged: bool  # has a row of its own in the history


def context(sight: Sight) -> dict:
    running = all_running() if sight.requests else []
    return {
        "sight": sight,
        "tiles": tiles(list(sampler.samples)),
        "running": running[:NUM_RUNNING],
        "num_more": max(len(running) - NUM_RUNNING, 0),
        "last": last_requests() if sight.requests else (),
        "keys": top_keys() if sight.usage else (),
        "facts": facts(),
        "engine": sampler.engine,
    }


_rendered: dict[Sight, tuple[float, str]] = {}


def fragment(sight: Sight) -> str:
    """The moving part of the page as HTML."""
    at, html = _rendered.get(sight, (0.0, ""))
    if not html or time.monotonic() - at > FRESH_S:
        html = render_to_string(TEMPLATE, context(sight))
        _rendered[sight] = time.monotonic(), html
    return html


def tiles(samples: Sequence[Sample]) -> list[Tile]:
    engine = settings.ENGINE
    return [
        _rate_tile("Generation", "tok/s", samples, "generation_per_s"),
        _rate_tile("Prompts", "tok/s", samples, "prompt_per_s"),
        _queue_tile("Running", samples, "num_running", engine.max_num_seqs),
        _queue_tile("Waiting", samples, "num_waiting", engine.max_num_queued_reqs),
        _percent_tile("KV cache", "of its blocks in use", samples, "kv_cache_usage", is_full=True),
        _percent_tile("Prefix hits", "of prompt tokens", samples, "hit_rate"),
        _quantile_tile("First token", samples, "first_token_s"),
        _quantile_tile("Between tokens", samples, "between_tokens_s"),
        _rate_tile("Requests", "/min", samples, "ended_per_min"),
        _error_tile(samples),
    ]


def _course(samples: Sequence[Sample], name: str) -> list:
    return [getattr(sample, name) for sample in samples]


def _rate_tile(title: str, unit: str, samples: Sequence[Sample], name: str) -> Tile:
    value, course = getattr(sampler.latest, name), _course(samples, name)
    return Tile(title, number(value), unit, f"peak {peak(course)}", _spark(("a", course)))


def _queue_tile(title: str, samples: Sequence[Sample], name: str, limit: int) -> Tile:
    value, lines = getattr(sampler.latest, name), _spark(("a", _course(samples, name)))
    return Tile(title, number(value), "", f"of {limit:,}", lines, share(value, limit))


def _percent_tile(
    title: str, note: str, samples: Sequence[Sample], name: str, *, is_full: bool = False
) -> Tile:
    """`is_full`: whether it says how much of something is used up."""
    value, lines = getattr(sampler.latest, name), _spark(("a", _course(samples, name)), top=1.0)
    shown = "–" if value is None else f"{value * 100:.0f}"
    return Tile(title, shown, "%", note, lines, share(value, 1) if is_full else None)


def _error_tile(samples: Sequence[Sample]) -> Tile:
    now, names = sampler.latest, ("errors_per_min", "refused_per_min")
    errors, refused = (_course(samples, name) for name in names)
    note, lines = f"{number(now.refused_per_min)} × 429", _spark(("bad", errors), ("b", refused))
    is_bad = now.errors_per_min > 0
    return Tile("Errors", number(now.errors_per_min), "/min", note, lines, is_bad=is_bad)


def _spark(*courses: tuple[str, list[float | None]], top: float = 0.0) -> list[Line]:
    return sparkline(courses, sampler.samples.maxlen or 1, top)


def _quantile_tile(title: str, samples: Sequence[Sample], name: str) -> Tile:
    now: Quantiles | None = getattr(sampler.latest, name)
    p50, p95 = ([q and q[i] for q in _course(samples, name)] for i in range(2))
    value, unit = duration(now and now.p50)
    note = "p50 · p95 " + " ".join(duration(now and now.p95)).strip()
    return Tile(title, value, unit, note, _spark(("b", p95), ("a", p50)))


def peak(values: Sequence[float | None]) -> str:
    return number(max((value for value in values if value is not None), default=0))


def all_running() -> list[Running]:
    """Oldest first."""
    found = [_running(record) for record in list(history.running.values())]
    found += [_in_background(run) for run in runs.in_background()]
    return sorted(found, key=lambda running: -running.age_s)


def _running(record: Record) -> Running:
    row, pace = record.row, record.between_tokens_s
    return Running(
        record.id,
        row.endpoint,
        str(row.key or ""),
        state_of(record.answers),
        sum(answer.usage.num_prompt_tokens for answer in record.answers),
        record.num_tokens,
        record.elapsed_s,
        1 / pace if pace else None,
        is_logged=True,
    )


def _in_background(run: Run) -> Running:
    usage, age_s = run.answer.usage, time.time() - run.row.created_at.timestamp()
    return Running(
        run.row.pk,
        "in the background",
        str(run.row.key or ""),
        state_of([run.answer]),
        usage.num_prompt_tokens,
        usage.num_output_tokens,
        age_s,
        None,
        is_logged=False,
    )


def state_of(answers: Sequence) -> str:
    if not answers:
        return "preparing"
    begun = any(answer.timing.first_token_at is not None for answer in answers)
    return "generating" if begun else "waiting"


def abort(id_: str, who: str) -> bool:
    """End what runs under this id. False if nothing does."""
    if (record := history.running.get(id_)) is not None:
        return record.abort(who)
    for run in runs.in_background():
        if run.row.pk == id_:
            run.cancel()
            return True
    return False


def last_requests() -> list[RequestLog]:
    rows = list(RequestLog.objects.select_related("key")[:NUM_LAST])
    longest_s = max((row.duration_s or 0 for row in rows), default=0)
    for row in rows:
        row.timing = timing(row.time_to_first_token_s, row.duration_s, longest_s)
    return rows


def top_keys() -> list[Usage]:
    used = F("num_prompt_tokens") + F("num_completion_tokens")
    rows = Usage.objects.filter(day=today()).select_related("key").annotate(num_tokens=used)
    found = list(rows.order_by("-num_tokens")[:NUM_KEYS])
    for row in found:
        row.fill = share(row.num_tokens, found[0].num_tokens)
    return found


def facts() -> list[tuple[str, str]]:
    engine = sampler.engine
    status = engine.status if engine is not None else None
    is_ready = status is not None and status.state == "ready"
    return [
        ("Model", engine.model.name if is_ready else "–"),
        ("Engine", "–" if status is None else "ready" if is_ready else status.stage),
        ("Engine restarts", str(engine.stats.num_restarts) if engine is not None else "–"),
        ("Uptime", spoken(sampler.uptime_s)),
        ("Database", size_of_database()),
        ("Version", settings.VERSION),
    ]


def size_of_database() -> str:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_database_size(current_database())")
            size = cursor.fetchone()[0]
    else:
        name = str(connection.settings_dict["NAME"])
        paths = [Path(name + suffix) for suffix in ("", "-wal")]
        size = sum(path.stat().st_size for path in paths if path.is_file())
    return size_in_bytes(size)
