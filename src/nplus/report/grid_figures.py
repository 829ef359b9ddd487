"""Figures of a grid: effects as a forest plot, and win rate against model size."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nplus.report.collect import number
from nplus.report.figures import (
    AXIS,
    BLUE,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PAPER,
    STYLE,
    VARIABLES,
    WIDTH,
    Panel,
    inline,
)
from nplus.report.tables import DASH

PRINTED = {
    INK: "#1b2227",
    AXIS: "#5d6a73",
    GRID: "#dce1e5",
    PAPER: "#ffffff",
    BLUE: "#0072b2",
    ORANGE: "#c75000",
    GREEN: "#00805f",
}
"""The page's light colours, for a picture outside it."""
SERIES = {"sft": ("SFT", ORANGE), "ppo": ("PPO", BLUE), "dpo": ("DPO", GREEN)}
ACCURACIES = {
    "accuracy": ("agrees with the labels", BLUE),
    "gold_accuracy": ("with the gold order", GREEN),
    "swap_accuracy": ("true over swapped fact", ORANGE),
}
ASIDE = (0.955, 1.0, 1.047)
"""Series stand beside each other, in shares of the parameters, so that intervals do not overlap."""
PITCH = 58
"""Points of height of a forest's row."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of the tables: `scale` turns stored values into `unit`."""

    key: str
    short: str
    title: str
    unit: str
    scale: float = 1.0
    digits: int = 2


MEASURES = (
    Measure("win_rate", "win rate", "Win rate against the references", "points", 100, 1),
    Measure("kl", "KL", "KL from SFT", "nats per response"),
    Measure("length", "tokens", "Response length", "tokens"),
    Measure("eos_rate", "EOS", "EOS rate", "points", 100, 1),
    Measure("greedy_length", "tokens, greedy", "Length, near-greedy", "tokens"),
)


def style(name: str, **changes: Any) -> AbstractContextManager[None]:
    """matplotlib set to the page's style, with the ids of figure `name`."""
    found: dict[Any, Any] = {**STYLE, "svg.hashsalt": name, **changes}
    return matplotlib.rc_context(found)


def signed(effect: Mapping[str, Any] | None, measure: Measure, sign: str = "+") -> str:
    """`+1.3 [-0.4, +3.0]`; without bounds where there is one seed, a dash where there is none.

    `sign=""` leaves the plus signs out, for what is not a difference.
    """
    value, low, high = ends(effect, measure.scale)
    if value is None:
        return DASH
    form = f"{sign}.{measure.digits}f"
    return f"{value:{form}}" + (
        "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"
    )


def around(effect: Mapping[str, Any] | None, measure: Measure, sign: str = "+") -> str:
    """`+1.3 ± 1.7`: the interval's longer half."""
    value, low, high = ends(effect, measure.scale)
    if value is None:
        return DASH
    text = f"{value:{sign}.{measure.digits}f}"
    if low is None or high is None:
        return text
    return f"{text} ± {max(value - low, high - value):.{measure.digits}f}"


def ends(
    row: Mapping[str, Any] | None, scale: float = 1.0, keys: tuple[str, str] = ("low", "high")
) -> tuple[float | None, float | None, float | None]:
    """`(value, low, high)` times `scale`; None for what is absent or not finite."""
    found = [number((row or {}).get(key)) for key in ("value", *keys)]
    value, low, high = (None if x is None or not np.isfinite(x) else x * scale for x in found)
    return value, low, high


def forest(
    conditions: Sequence[Mapping[str, Any]],
    measure: Measure,
    axis: str = "difference to the baseline",
) -> Panel:
    """Effects on one measure, a row a condition, around the line of no effect."""
    name = f"forest-{measure.key}"
    height = PITCH * len(conditions) + 52
    with style(name):
        figure = Figure(figsize=(WIDTH, height / 72))
        ax = figure.add_axes((0.02, 40 / height, 0.96, 1 - 46 / height))
        low, high = _range(conditions, measure)
        ax.set(xlim=(low, high), ylim=(len(conditions) * PITCH + 4, 0), yticks=[])
        ax.set_xlabel(f"{axis}, {measure.unit}")
        ax.spines["left"].set_visible(False)
        ax.grid(visible=False)
        for index, row in enumerate(conditions):
            _row(ax, row, measure, index * PITCH)
        note = "Dot and thick line: mean and 95% t interval over seeds; ticks: single seeds."
        if measure.key == "win_rate":
            note += " Thin line: bootstrap over seeds and posts."
        return Panel(name, measure.title, note, inline(figure, name))


def _range(conditions: Sequence[Mapping[str, Any]], measure: Measure) -> tuple[float, float]:
    """Limits that hold every bound, every seed and 0, with a margin."""
    seen = [0.0]
    for row in conditions:
        effect = row.get(measure.key)
        for keys in (("low", "high"), ("boot_low", "boot_high")):
            seen += [x for x in ends(effect, measure.scale, keys) if x is not None]
        seen += [measure.scale * x for x in (effect or {}).get("per_seed") or ()]
    margin = 0.04 * (max(seen) - min(seen)) or 1.0
    return min(seen) - margin, max(seen) + margin


def _row(ax: Axes, row: Mapping[str, Any], measure: Measure, top: float) -> None:
    effect = row.get(measure.key)
    left, right = ax.get_xlim()
    ax.vlines(0, top + 33, top + PITCH, color=AXIS, linewidth=1.4)
    ax.text(left, top + 14, str(row["name"]), weight="bold")
    ax.text(left, top + 28, signed(effect, measure))
    y = top + 43
    value, low, high = ends(effect, measure.scale)
    if effect is None or value is None:
        ax.text(right, top + 28, "no result", color=ORANGE, ha="right")
        return
    seeds = [measure.scale * x for x in effect["per_seed"]]
    ax.plot(seeds, [y + 7] * len(seeds), "|", color=AXIS, markersize=5, clip_on=False)
    _, boot_low, boot_high = ends(effect, measure.scale, ("boot_low", "boot_high"))
    if boot_low is not None and boot_high is not None:
        ax.plot([boot_low, boot_high], [y + 4] * 2, color=ORANGE, linewidth=1.2)
    if low is not None and high is not None:
        ax.plot([low, high], [y, y], color=BLUE, linewidth=2.4, solid_capstyle="round")
    ax.plot(value, y, "o", markersize=7, color=BLUE, clip_on=False)


def scaling(data: Mapping[str, Any]) -> Panel:
    """Win rate above, reward-model accuracy below, against parameters; colours as on the page."""
    name = "scaling"
    colours = {colour: colour for colour in VARIABLES}
    with style(name):
        svg = inline(_scaling(data, colours, (2 * WIDTH, 6.4)), name)
    note = "Small dots: single seeds. Large dots and line: their mean, with a 95% t interval over"
    return Panel(name, "Win rate and reward model against size", f"{note} seeds.", svg)


def scaling_picture(data: Mapping[str, Any], kind: str) -> bytes:
    """The same as a file of its own on white: `svg` (text as outlines) or `png`."""
    changes = {k: PRINTED[v] for k, v in STYLE.items() if isinstance(v, str) and v in PRINTED}
    out = io.BytesIO()
    with style("scaling", **changes, **{"svg.fonttype": "path", "savefig.facecolor": "#ffffff"}):
        figure = _scaling(data, PRINTED, (7.6, 6.2))
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(out, format=kind, dpi=160, metadata=metadata)
    return out.getvalue()


def _scaling(
    data: Mapping[str, Any], colours: Mapping[str, str], size: tuple[float, float]
) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    for group, ax, series in (("win_rate", upper, SERIES), ("reward_model", lower, ACCURACIES)):
        for (key, (label, stand_in)), aside in zip(series.items(), ASIDE, strict=True):
            _series(ax, data, (group, key), label, colours[stand_in], aside)
        ax.axhline(50, color=colours[AXIS], linewidth=1.2, dashes=(4, 3))
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="best", handlelength=1.2)
    upper.set_ylabel("wins against the references, %")
    upper.set_ylim(0, 100)
    lower.set_ylabel("reward model accuracy, %")
    lower.set_ylim(40, 100)
    _sizes(lower, upper, data, colours)
    return figure


def _series(
    ax: Axes,
    data: Mapping[str, Any],
    where: tuple[str, str],
    label: str,
    colour: str,
    aside: float,
) -> None:
    """One policy's or accuracy's seeds, means and intervals, at `aside` times the parameters."""
    group, key = where
    seeds = [
        (aside * p["parameters"], 100 * p[group][key]) for p in data["points"] if key in p[group]
    ]
    if not seeds:
        return
    ax.plot(*zip(*seeds, strict=True), "o", color=colour, alpha=0.45, markersize=4, mew=0)
    rows = [s for s in data["sizes"] if key in s[group]]
    x = [aside * row["parameters"] for row in rows]
    ax.plot(x, [100 * row[group][key]["value"] for row in rows], "-o", color=colour, label=label)
    for at, row in zip(x, rows, strict=True):
        _, low, high = ends(row[group][key], 100)
        if low is not None and high is not None:
            ax.plot([at, at], [low, high], color=colour, linewidth=1.3, alpha=0.7)


def _sizes(lower: Axes, upper: Axes, data: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    """A log axis with a tick a size; where runs have failed a cross, and how many below."""
    lower.set_xscale("log")
    places = [row["parameters"] for row in data["sizes"]]
    lower.set_xlim(min(places) / 1.5, max(places) * 1.5)
    labels = [f"{row['size']}\n{row['parameters']:,.0f}" for row in data["sizes"]]
    for index, row in enumerate(data["sizes"]):
        if row["failed"]:
            labels[index] += f"\n{len(row['failed'])} of {row['asked']} failed"
            upper.plot(row["parameters"], 2, "x", color=colours[ORANGE], markersize=8)
    lower.set_xticks(places, labels)
    lower.minorticks_off()
    lower.set_xlabel("parameters")
