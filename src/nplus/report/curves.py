"""Several algorithms along their way: win rate against KL, and against the rollouts used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nplus.report.collect import number
from nplus.report.figures import AXIS, BLUE, GREEN, INK, ORANGE, PURPLE, ROSE, WIDTH, Panel, inline
from nplus.report.grid_figures import style

Row = Mapping[str, Any]
LOOKS = (
    (BLUE, "o", "-"),
    (ORANGE, "s", "-"),
    (GREEN, "^", "-"),
    (PURPLE, "D", "-"),
    (ROSE, "v", "-"),
    (BLUE, "P", "--"),
    (ORANGE, "X", "--"),
    (GREEN, "*", "--"),
)
"""Colour, marker and line of each algorithm, in their order."""


def curve_panels(data: Mapping[str, Any]) -> list[Panel]:
    """Win rate against KL and against rollouts; none where nothing was kept along the way."""
    curves, best_of = data.get("curves") or (), data.get("best_of") or ()
    if not curves:
        return []
    return [_against_kl(curves, best_of), _against_rollouts(curves, best_of)]


def _against_kl(curves: Sequence[Row], best_of: Sequence[Row]) -> Panel:
    name = "study-win-rate-by-kl"
    with style(name):
        figure, ax = _axes()
        for curve, (colour, marker, line) in zip(curves, LOOKS, strict=False):
            x, y = _values(curve["points"], "kl"), _wins(curve["points"])
            ax.plot(x, y, line, color=colour, marker=marker, markersize=5, label=curve["label"])
        if best_of:
            x, y = _values(best_of, "kl"), _wins(best_of)
            ax.plot(x, y, ":", color=INK, marker=".", label="best of n")
            for row, at, win in zip(best_of, x, y, strict=True):
                place = {"xytext": (-5, 2), "textcoords": "offset points", "ha": "right"}
                ax.annotate(str(row["n"]), (at, win), color=INK, **place)
        ax.set_xlabel("KL from SFT, nats per response")
        _legend(figure, ax)
        note = (
            "Mean over seeds, sampled; a marker each time the policy was judged. Of best-of-n (n "
            "at each dot) the most that KL can be."
        )
        return Panel(name, "Win rate against distance", note, inline(figure, name))


def _against_rollouts(curves: Sequence[Row], best_of: Sequence[Row]) -> Panel:
    name = "study-win-rate-by-rollouts"
    with style(name):
        figure, ax = _axes()
        for curve, (colour, marker, line) in zip(curves, LOOKS, strict=False):
            points = curve["points"]
            x, y = [row["rollouts"] for row in points], _wins(points)
            ax.plot(x, y, line, color=colour, marker=marker, markersize=5, label=curve["label"])
            seeds = max(len(row["win_rate"]["per_seed"]) for row in points)
            for seed in range(seeds):
                each = [_nth(row["win_rate"]["per_seed"], seed) * 100 for row in points]
                ax.plot(x, each, line, color=colour, linewidth=0.6, alpha=0.35)
        if best_of:
            last, level = best_of[-1], _wins(best_of[-1:])[0]
            ax.axhline(level, color=INK, linestyle=":")
            ax.annotate(
                f"best of {last['n']}", (0, level), (2, 3), textcoords="offset points", color=INK
            )
        ax.set_xlabel("responses drawn and scored in training")
        _legend(figure, ax)
        note = "Mean over seeds, sampled; thin lines are single seeds."
        return Panel(name, "Win rate against rollouts", note, inline(figure, name))


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 330 / 72), layout="constrained")
    ax = figure.subplots()
    ax.set_ylabel("%")
    ax.axhline(50, color=AXIS, linewidth=0.8)
    return figure, ax


def _legend(figure: Figure, ax: Axes) -> None:
    """Below the axes, where no curve is."""
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _values(rows: Sequence[Row], key: str) -> list[float]:
    found = [number(row[key]["value"]) for row in rows]
    return [float("nan") if value is None else value for value in found]


def _wins(rows: Sequence[Row]) -> list[float]:
    return [100 * value for value in _values(rows, "win_rate")]


def _nth(values: Sequence[Any], index: int) -> float:
    found = number(values[index]) if index < len(values) else None
    return float("nan") if found is None else found
