"""Geometry of the console's charts, which templates draw as SVG. Pure: numbers in, numbers out."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

WIDTH, HEIGHT = 300, 48  # of a sparkline, in the units of its own view box
PAD = 2  # so that a line at the edge is not cut in half


@dataclass(frozen=True)
class Line:
    """One course of values. A gap in it makes several strokes."""

    kind: str
    strokes: list[str]  # points of polylines
    areas: list[str]  # points of polygons, down to the base line


def sparkline(
    courses: Sequence[tuple[str, Sequence[float | None]]], num_slots: int, top: float = 0.0
) -> list[Line]:
    """The courses on one scale, the newest value at the right edge.

    The scale begins at zero and reaches at least to `top`.
    """
    values = [value for _, course in courses for value in course if value is not None]
    highest = max([top, *values]) or 1.0
    return [_line(kind, course, num_slots, highest) for kind, course in courses]


def _line(kind: str, course: Sequence[float | None], num_slots: int, highest: float) -> Line:
    step, first = WIDTH / max(num_slots - 1, 1), num_slots - len(course)
    points = [
        None
        if value is None
        else (round((first + i) * step, 1), round(HEIGHT - PAD - value / highest * _ROOM, 1))
        for i, value in enumerate(course)
    ]
    runs = [list(run) for is_gap, run in groupby(points, lambda p: p is None) if not is_gap]
    runs = [run if len(run) > 1 else [(run[0][0] - 1, run[0][1]), *run] for run in runs]
    base = HEIGHT - PAD
    areas = [[(run[0][0], base), *run, (run[-1][0], base)] for run in runs]
    return Line(kind, [_text(run) for run in runs], [_text(area) for area in areas])


_ROOM = HEIGHT - 2 * PAD


def _text(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def share(value: float | None, whole: float, width: int = 100) -> float:
    """How far a bar of `width` reaches; what is there at all can be seen."""
    if not value or whole <= 0:
        return 0.0
    return round(min(max(value / whole * width, 1.0), width), 1)


@dataclass(frozen=True)
class Timing:
    """A request's time as a bar of 100 units: until its first token, and from then on."""

    first: float
    rest: float


def timing(first_token_s: float | None, duration_s: float | None, longest_s: float) -> Timing:
    """Beside a request that took `longest_s`."""
    whole = share(duration_s, longest_s)
    first = min(whole, (first_token_s or 0.0) / longest_s * 100) if longest_s else 0.0
    return Timing(round(first, 1), round(whole - first, 1))


def nice_top(highest: float) -> float:
    """The next of 1, 2, 5, 10, 20, ...: where an axis may end."""
    if highest <= 0:
        return 1.0
    unit = 10 ** math.floor(math.log10(highest))
    return next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= highest)


@dataclass(frozen=True)
class Part:
    """A piece of a stacked bar. `kind` numbers its series."""

    kind: int
    label: str
    value: int
    y: float
    height: float


@dataclass(frozen=True)
class Bar:
    """One day; with `x` and `width` of its slot, and of the bar in its middle."""

    label: str
    total: int
    x: float
    width: float
    slot_x: float
    slot_width: float
    parts: list[Part]


@dataclass(frozen=True)
class BarChart:
    """Stacked bars, one for each label, and lines at whole parts of the scale."""

    bars: list[Bar]
    lines: list[tuple[float, float]]  # (y, value)
    width: int
    height: int
    total: int


def bar_chart(
    labels: Sequence[str],
    series: Sequence[tuple[str, Sequence[int]]],
    width: int = 600,
    height: int = 160,
) -> BarChart:
    """`series` are (name, a value for each label), the first at the bottom."""
    totals = [sum(values[i] for _, values in series) for i in range(len(labels))]
    top = nice_top(max(totals, default=0))
    slot = width / max(len(labels), 1)
    bars = []
    for i, label in enumerate(labels):
        parts, y = [], float(height)
        for kind, (name, values) in enumerate(series):
            if values[i]:
                size = values[i] / top * height
                y -= size
                parts.append(Part(kind, name, values[i], round(y, 2), round(size, 2)))
        x = round((i + 0.15) * slot, 2)
        bars.append(
            Bar(
                label, totals[i], x, round(0.7 * slot, 2), round(i * slot, 2), round(slot, 2), parts
            )
        )
    lines = [(round(height * (1 - part), 2), top * part) for part in (0.0, 0.5, 1.0)]
    return BarChart(bars, lines, width, height, sum(totals))
