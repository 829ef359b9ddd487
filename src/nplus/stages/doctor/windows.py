"""Columns of journalled metrics, and windows of them: levels, rises and their noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Columns = Mapping[str, Sequence[float]]
"""Metrics by name, one value a step, in order; NaN where a step has none."""
WINDOW = 5
LEAST = 8
"""Steps from which on a change is judged."""
SIGMAS = 4.0
"""A run asks the same question at every update, so the answer has to be surer than 95%."""


def columns_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Columns of journalled metrics."""
    columns: dict[str, list[float]] = {}
    for count, metrics in enumerate(rows):
        append(columns, metrics, count)
    return columns


def append(columns: dict[str, list[float]], metrics: Mapping[str, Any], count: int) -> None:
    """Add the metrics of one step to columns of `count` steps."""
    for name in {*columns, *metrics}:
        value = metrics.get(name)
        number = math.nan if value is None else float(value)
        columns.setdefault(name, [math.nan] * count).append(number)


def known_values(column: Sequence[float]) -> list[float]:
    """Those that are finite."""
    return [x for x in column if math.isfinite(x)]


def known_of(columns: Columns, name: str, least: int) -> list[float] | None:
    """The known values of a metric; None where they are fewer than `least`."""
    known = known_values(columns.get(name, ()))
    return known if len(known) >= least else None


def mean_of(values: Sequence[float]) -> float:
    """The mean; there is at least one."""
    return sum(values) / len(values)


def lately(columns: Columns, name: str) -> float | None:
    """The mean of a metric's last `WINDOW` known values; None where there are fewer."""
    known = known_of(columns, name, WINDOW)
    return None if known is None else mean_of(known[-WINDOW:])


def noise(values: Sequence[float]) -> float:
    """Standard deviation around a slow trend: from the steps between neighbours, as von Neumann's
    ratio takes it."""
    steps = [(b - a) ** 2 for a, b in pairwise(values)]
    return math.sqrt(mean_of(steps) / 2) if steps else 0.0


def rise_of(values: Sequence[float], window: int = WINDOW) -> tuple[float, float]:
    """`(rise, standard error)` from the first window to the last."""
    window = min(window, len(values) // 2)
    rise = mean_of(values[-window:]) - mean_of(values[:window])
    return rise, noise(values) * math.sqrt(2 / window)
