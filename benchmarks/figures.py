"""Numbers of many runs made into few: percentiles, medians with their range, ratios, tables."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """A median, and how far the runs lay apart."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 1) -> str:
        """`12.3 (11.9-14.0)`; without the range where all are equal."""
        middle, low, high = (f"{value:,.{digits}f}" for value in self)
        return middle if low == high else f"{middle} ({low}-{high})"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Between the two nearest values in proportion; None if there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return low + (high - low) * (position - math.floor(position))


def ratio(values: dict[int, float], base: dict[int, float]) -> Spread | None:
    """Of what was measured in the same round; None if there is no common round.

    Rounds are minutes apart and the machine changes; within one the two ran in turn.
    """
    ratios = [values[key] / base[key] for key in values if base.get(key)]
    return spread(ratios) if ratios else None


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that can be read as it is: first column left, numbers right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return f"| {' | '.join([f'{first[0]:<{first[1]}}', *(f'{c:>{w}}' for c, w in others)])} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(heads), f"| {' | '.join(rule)} |", *map(line, rows)])
