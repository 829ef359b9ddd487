"""From measured numbers to a choice: no clock, no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from nplus.config.tuning import Alternative

MARGIN = 0.03
"""What a way must gain to be taken instead of one that stands before it."""
WORST = 1.25
"""No work may take so many times as long as with the default, whatever other work gains."""
ERRORS = 4.0
"""A precision may err so many times as much as `highest`: sums in another order do, fewer digits
err some hundred times as much."""

Cell = Sequence[Alternative]
"""The ways of one piece of work."""


def choose(
    cells: Sequence[Cell],
    default: str,
    *,
    refused: Collection[str] = (),
    among: Collection[str] | None = None,
    margin: float = MARGIN,
) -> tuple[str, str]:
    """The way to take over all `cells`, and why.

    A way's figure is the geometric mean of its ratios to the default. The ways are gone through
    in their order, the default first; one is taken for another where it gains more than `margin`
    and more than the rounds of either were apart, and no work suffers by WORST.
    """
    names = [way.name for way in cells[0] if among is None or way.name in among]
    allowed = [name for name in names if name not in refused and name != default]
    taken, slow = default, []
    for name in allowed:
        if max(_each(cells, name)) > WORST:
            slow.append(name)
        elif 1 - overall(cells, name) / overall(cells, taken) > max(
            margin, _apart(cells, name), _apart(cells, taken)
        ):
            taken = name
    if taken != default:
        return taken, f"{1 / overall(cells, taken):.2f} times as fast as {default}"
    gains = {name: 1 - overall(cells, name) for name in allowed if name not in slow}
    best = max(gains, key=lambda name: gains[name], default="")
    if best and gains[best] > 0:
        asked = max(margin, _apart(cells, best))
        return default, f"{best} gains {gains[best]:.1%}, which is less than {asked:.0%}"
    mixed = [name for name in slow if overall(cells, name) < 1]
    if mixed:
        worst = max(_each(cells, mixed[0]))
        return default, f"{mixed[0]} takes {worst:.1f} times as long for some of the work"
    return default, "the fastest" if allowed else "nothing else to take"


def overall(cells: Sequence[Cell], name: str) -> float:
    """The geometric mean of a way's ratios."""
    ratios = _each(cells, name)
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def refused_precisions(errors: Mapping[str, float], base: str = "highest") -> dict[str, str]:
    """The precisions whose error is more than ERRORS times that of `base`, each with the reason."""
    bound = ERRORS * errors[base]
    return {
        name: f"errs {error / errors[base]:,.0f} times as much as {base}"
        for name, error in errors.items()
        if not error <= bound
    }


def _way(cell: Cell, name: str) -> Alternative:
    return next(way for way in cell if way.name == name)


def _each(cells: Sequence[Cell], name: str) -> list[float]:
    return [_way(cell, name).ratio for cell in cells]


def _apart(cells: Sequence[Cell], name: str) -> float:
    """How far a way's rounds were apart, on average over the cells."""
    return sum(_way(cell, name).spread for cell in cells) / len(cells)
