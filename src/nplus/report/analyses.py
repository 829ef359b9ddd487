"""The paper's analyses as figures: calibration, agreement, length, over-optimisation (D7 to H3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from nplus.report.collect import RunView, number
from nplus.report.figures import (
    AXIS,
    BLUE,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PAPER,
    STYLE,
    WIDTH,
    Dot,
    Panel,
    dots,
    inline,
    smooth,
)
from nplus.report.tables import (
    SPLITS,
    headline_rows,
    percent,
    plain,
    policy_name,
    split_name,
    system_name,
    ties,
)

Row = Mapping[str, Any]


# --- calibration (Detail D8) --------------------------------------------------------------------


def calibrations(evaluation: Row) -> list[Panel]:
    """Accuracy against margin of the reward model on each set of comparisons, and of DPO's implicit
    reward where there is one."""
    kinds = (("reward_model", "Reward model"), ("implicit_reward", "DPO's implicit reward"))
    return [
        _calibration(found, f"{title}, {SPLITS.get(found['name'], found['name'])}", f"{key}-{at}")
        for key, title in kinds
        for at, found in enumerate((evaluation.get(key) or {}).get("calibration") or ())
        if any(part["n"] for part in found["bins"])
    ]


def _calibration(found: Row, title: str, name: str) -> Panel:
    parts = [part for part in found["bins"] if part["n"]]
    last = found["bins"][-1]["to"]
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, 280 / 72), layout="constrained")
        top, low = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        margins = np.linspace(0, last, 100)
        top.plot(margins, 1 / (1 + np.exp(-margins)), color=AXIS, linewidth=1.4)
        at = np.array([(part["from"] + part["to"]) / 2 for part in parts])
        shift = 0.12 * (last / len(found["bins"]))
        _bars(top, at + shift, [part["control"] for part in parts], ORANGE, hollow=True)
        _bars(top, at - shift, parts, BLUE, hollow=False)
        lowest = min(part["low"] for part in (*parts, *(part["control"] for part in parts)))
        top.set(ylim=(min(0.45, lowest - 0.03), 1.02), ylabel="accuracy")
        top.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        low.bar(at, [part["n"] for part in parts], 0.8 * last / len(found["bins"]), color=GRID)
        low.set(xlabel="score difference of the two responses", ylabel="pairs", xlim=(0, last))
        low.grid(visible=False)
        svg = inline(figure, f"calibration-{name}")
    outside = f"; {plain(found['outside'], 0)} pairs lie outside" if found["outside"] else ""
    note = (
        f"Off by {percent(found['ece'])} on average, the control by {percent(found['control_ece'])}"
        f"{outside}."
    )
    return Panel(f"calibration-{name}", title, note, svg)


def _bars(ax: Axes, x: np.ndarray, rows: Sequence[Row], colour: str, *, hollow: bool) -> None:
    """Accuracies with their intervals, upright."""
    rates, lows, highs = (
        np.array([row[key] for row in rows]) for key in ("accuracy", "low", "high")
    )
    width, alpha = (1.0, 0.6) if hollow else (2.2, 1.0)
    ax.vlines(x, lows, highs, color=colour, linewidth=width, alpha=alpha)
    face = PAPER if hollow else colour
    shape, size = ("D", 3.6) if hollow else ("o", 5.5)
    ax.plot(
        x,
        rates,
        shape,
        markersize=size,
        markerfacecolor=face,
        markeredgecolor=colour,
        alpha=alpha,
        clip_on=False,
    )


# --- agreement (Detail D7) ----------------------------------------------------------------------


def agreement(evaluation: Row) -> Panel | None:
    """How often the reward model orders two responses as the judge does; hollow without ties."""
    rows = [r for r in evaluation.get("agreement") or () if number(r.get("rate")) is not None]
    rows = [r for r in rows if r.get("temperature") == _first(evaluation)]
    if not rows:
        return None
    drawn = [
        Dot(
            f"{policy_name(r)} against {system_name(r.get('opponent'))}",
            f"{split_name(r)}, n {plain(r.get('n'), 0)}, ties {ties(r)}",
            r,
            r.get("decided"),
        )
        for r in rows
    ]
    return Panel(
        "agreement",
        "Reward model and judge agree",
        f"Posts where both prefer the same response, temperature {_first(evaluation)}, 95% "
        "intervals. A tie of the judge counts as disagreeing; hollow: without its ties.",
        dots(drawn, {0.5: "50%"}, "agreement"),
    )


def _first(evaluation: Row) -> Any:
    return next(iter(evaluation.get("temperatures") or ()), None)


# --- length (Detail H3) -------------------------------------------------------------------------


def lengths(evaluation: Row) -> list[Panel]:
    """Win rate against the ratio of lengths, of the verdict's main comparisons."""
    rows = [
        row for row in headline_rows(evaluation) if (row.get("length_matched") or {}).get("bins")
    ]
    return [_length(row) for row in rows]


def _length(row: Row) -> Panel:
    matched = row["length_matched"]
    bins = matched["bins"]
    name = f"length-{row.get('policy')}-{row.get('opponent')}"
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, 230 / 72), layout="constrained")
        ax = figure.subplots()
        ax.axhline(0.5, color=AXIS, linewidth=1, dashes=(4, 3))
        ax.axvline(0, color=AXIS, linewidth=1, dashes=(4, 3))
        x = np.array([(part["from"] + part["to"]) / 2 for part in bins])
        rates, lows, highs = (np.array([part[k] for part in bins]) for k in ("rate", "low", "high"))
        ends = ([part["from"] for part in bins], [part["to"] for part in bins])
        ax.hlines(rates, *ends, color=BLUE, linewidth=1, alpha=0.5)
        ax.vlines(x, lows, highs, color=BLUE, linewidth=2.2)
        ax.plot(x, rates, "o", color=BLUE, markersize=5.5, clip_on=False)
        _trend(ax, matched, min(ends[0]), max(ends[1]))
        ax.set(xlabel="ln(our tokens / theirs)", ylabel="win rate", ylim=(-0.02, 1.02))
        ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100%"])
        svg = inline(figure, name)
    counts = [part["n"] for part in bins]
    size = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    slope = number(matched.get("slope"))
    word = "" if slope is None else f" It {'rises' if slope > 0 else 'falls'} with our length."
    note = (
        f"{split_name(row).capitalize()}, temperature {row.get('temperature')}: {len(bins)} bins "
        f"of {size} pairs with 95% intervals, and the logistic trend; hollow: at equal "
        f"length.{word}"
    )
    title = f"{policy_name(row)} against {system_name(row.get('opponent'))}, by length"
    return Panel(name, title, note, svg)


def _trend(ax: Axes, matched: Row, low: float, high: float) -> None:
    """The logistic curve, and its value at equal length with the interval."""
    rate, slope = number(matched.get("rate")), number(matched.get("slope"))
    if rate is None:
        return
    if slope is not None and 0 < rate < 1:
        x = np.linspace(min(low, 0.0), max(high, 0.0), 100)
        logit = math.log(rate / (1 - rate)) + slope * x
        ax.plot(x, 1 / (1 + np.exp(-logit)), color=ORANGE, linewidth=1.6)
    bounds = (number(matched.get("low")), number(matched.get("high")))
    if None not in bounds:
        ax.plot([0, 0], bounds, color=ORANGE, linewidth=1.4)
    ax.plot(0, rate, "D", markersize=6, markerfacecolor=PAPER, markeredgecolor=ORANGE, zorder=5)


# --- over-optimisation --------------------------------------------------------------------------


def over_optimisation(run: RunView) -> Panel | None:
    """Proxy and gold score against the square root of KL (Gao et al., 2022); None without both."""
    kl = run.curve(run.online, "objective/kl")
    kinds = (("objective/gold", "gold", GREEN), ("objective/scores", "proxy (reward model)", BLUE))
    drawn = [(found, label, c) for m, label, c in kinds if (found := run.curve(run.online, m))]
    if kl is None or not drawn:
        return None
    distance = dict(zip(kl.steps, np.sqrt(np.maximum(kl.values, 0.0)), strict=True))
    name = "over-optimisation"
    note = "Each dot an update, the square the first; the line is their running mean."
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, (70 + 135 * len(drawn)) / 72), layout="constrained")
        axes = np.atleast_1d(figure.subplots(len(drawn), sharex=True))
        for ax, (curve, label, colour) in zip(axes, drawn, strict=True):
            steps = [s for s in curve.steps if s in distance]
            known = dict(zip(curve.steps, curve.values, strict=True))
            x, y = np.array([distance[s] for s in steps]), np.array([known[s] for s in steps])
            if not len(x):
                continue
            ax.plot(x, y, "o", color=colour, markersize=2.6, alpha=0.45, markeredgewidth=0)
            line_x, line_y = smooth(x), smooth(y)
            ax.plot(line_x, line_y, color=colour, linewidth=1.8)
            ax.plot(x[0], y[0], "s", markersize=7, markerfacecolor=PAPER, markeredgecolor=colour)
            ax.set_title(label, loc="left", fontsize=10.5, color=INK)
            if label == "gold":
                best = int(np.argmax(line_y))
                _mark(axes, ax, line_x[best], line_y[best])
                note += f" Best gold {line_y[best]:.2f} at update {steps[best]:,}"
                note += f", KL {line_x[best] ** 2:.1f}"
                note += f"; at the end {line_y[-1]:.2f}." if best < len(steps) - 1 else ", the end."
        axes[-1].set_xlabel("√KL from SFT, KL in nats per response")
        return Panel(name, "Score against distance", note, inline(figure, name))


def _mark(axes: Sequence[Axes], ax: Axes, x: float, y: float) -> None:
    for each in axes:
        each.axvline(x, color=AXIS, linewidth=1, dashes=(4, 3))
    ax.plot(x, y, "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, zorder=5)
    ax.annotate("best gold", (x, y), (8, 9), textcoords="offset points", annotation_clip=False)
