"""A study's page: arms, their differences, and the rounds of online loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nplus.report.collect import number
from nplus.report.curves import curve_panels
from nplus.report.figures import BLUE, GREEN, INK, ORANGE, WIDTH, Dot, Panel, dots, inline
from nplus.report.grid_figures import MEASURES, Measure, around, ends, forest, signed, style
from nplus.report.grid_page import Sheet, failures, markdown, of, page
from nplus.report.tables import DASH
from nplus.runs.storage import replace_bytes, write_json

Row = Mapping[str, Any]
SHARE = Measure("win_rate", "win rate", "Win rate against the references", "%", 100, 1)
ROUNDS = (
    Measure("win_rate", "", "Win rate against the references, by round", "%", 100, 1),
    Measure("kl", "", "KL from SFT", "nats per response"),
    Measure("tokens", "", "Response length", "tokens", 1, 1),
    Measure("reward_length_correlation", "", "Correlation of reward and length", ""),
)
"""What is drawn by round."""
GAIN = Measure("gain", "", "Win rate less that of the round before", "points", 100, 1)


def study_sheet(data: Mapping[str, Any]) -> Sheet:
    """Arms first, then their differences."""
    seeds = len(data["seeds"])
    measures = [SHARE, *MEASURES[1:]]
    rows = [
        (
            arm["label"],
            of(arm["win_rate"]["n"], seeds),
            *(signed(arm[m.key], m, sign="") for m in measures),
            DASH,
        )
        for arm in data["arms"]
    ]
    terminal = [("", "seeds", "win rate, %", "KL", "tokens")]
    terminal += [
        (
            arm["label"],
            of(arm["win_rate"]["n"], seeds),
            *(around(arm[m.key], m, sign="") for m in measures[:3]),
        )
        for arm in data["arms"]
    ]
    for row in data["contrasts"]:
        name = f"{row['ours']} less {row['theirs']}"
        done = of(len((row["win_rate"] or {}).get("seeds") or ()), seeds)
        numbers = (signed(row[m.key], m) for m in MEASURES)
        low, high = ends(row["win_rate"], 100, ("boot_low", "boot_high"))[1:]
        boot = DASH if low is None or high is None else f"[{low:+.1f}, {high:+.1f}]"
        rows.append((name, done, *numbers, boot))
        terminal.append((name, done, *(around(row[m.key], m) for m in MEASURES[:3])))
    columns = (f"{m.title}, {m.unit}" for m in measures)
    return Sheet(
        kind="run",
        title=data["title"],
        head=("", "seeds", *columns, "Win rate, bootstrap"),
        rows=tuple(rows),
        left=1,
        notes=tuple(_notes(data)),
        failures=failures(data),
        terminal=tuple(terminal),
    )


def _notes(data: Mapping[str, Any]) -> list[str]:
    judged = [row["win_rate"]["posts"] for row in data["contrasts"] if row["win_rate"]]
    notes = [
        f"Win rates are against the references on {max(judged, default=0):,} posts of the judged "
        "split, near greedy, ties half; KL, length through EOS and EOS rate at the last "
        "temperature. Means over seeds with 95% t intervals over seeds; differences in points, "
        "paired by seed and post. The bootstrap draws seeds and posts anew; with fewer than about "
        "ten seeds it is too narrow.",
    ]
    if data["rounds"] and not data["curves"]:
        notes.append(
            "Rounds are judged on validation posts, by which the loop's policy is chosen; the win "
            "rates above are on posts that choose nothing."
        )
    if data["curves"]:
        notes.append(
            "Curves are of the same posts at the sampling temperature; no policy was chosen by "
            "them."
        )
    return notes


def study_panels(data: Mapping[str, Any]) -> list[Panel]:
    """Win rates of the arms, their differences, and the way there: curves, or rounds."""
    drawn = [_arms(data)]
    contrasts = [
        {**row, "name": f"{row['ours']} less {row['theirs']}", "sets": (), "title": ""}
        for row in data["contrasts"]
    ]
    if contrasts:
        drawn.append(forest(contrasts, MEASURES[0], "difference"))
    if curves := curve_panels(data):
        return drawn + curves  # rounds are points of theirs
    for loop in data["rounds"]:
        first, *others = (_by_round(loop, measure) for measure in ROUNDS)
        drawn += [first, forest(_gains(loop), GAIN, "difference"), *others, _distance(loop)]
    return drawn


def _arms(data: Mapping[str, Any]) -> Panel:
    rows = []
    for arm in data["arms"]:
        found = arm["win_rate"]
        share = {"rate": found["value"], "low": found["low"], "high": found["high"]}
        kl = number((arm["kl"] or {}).get("value"))
        rows.append(Dot(arm["label"], "" if kl is None else f"{kl:.1f} nats from SFT", share))
    note = "Against the references; mean and 95% t interval over seeds."
    svg = dots(rows, {0.5: "even"}, "study-arms")
    return Panel("study-arms", "Win rate", note, svg)


def _gains(loop: Row) -> list[Row]:
    """Every round but SFT's own, as a row of a forest plot."""
    names = {0: "SFT"} | {row["round"]: f"round {row['round']}" for row in loop["rounds"][1:]}
    return [
        {"name": f"{names[n]} less {names[n - 1]}", "sets": (), "title": "", "gain": row["gain"]}
        for row in loop["rounds"]
        if (n := row["round"])
    ]


def _by_round(loop: Row, measure: Measure) -> Panel:
    name = f"study-{measure.key.replace('_', '-')}"
    rows = loop["rounds"]
    with style(name):
        figure = Figure(figsize=(WIDTH, 210 / 72), layout="constrained")
        ax = figure.subplots()
        at = [row["round"] for row in rows]
        _seeds(ax, at, rows, measure)
        ax.set_xticks(at, ["SFT" if n == 0 else str(n) for n in at])
        ax.set_xlabel("round")
        ax.set_ylabel(measure.unit)
        note = "Mean over seeds; thin lines are single seeds."
        return Panel(name, measure.title, note, inline(figure, name))


def _seeds(ax: Axes, at: Sequence[int], rows: Sequence[Row], measure: Measure) -> None:
    """A thin line a seed, and their mean."""
    count = max((len(row[measure.key]["per_seed"]) for row in rows), default=0)
    for seed in range(count):
        y = [_nth(row[measure.key]["per_seed"], seed) * measure.scale for row in rows]
        ax.plot(at, y, color=BLUE, linewidth=0.8, alpha=0.5)
    y = [_or_nan(row[measure.key]["value"]) * measure.scale for row in rows]
    ax.plot(at, y, "o-", color=BLUE, linewidth=2, markersize=6)


def _nth(values: Sequence[Any], index: int) -> float:
    return _or_nan(values[index]) if index < len(values) else float("nan")


def _or_nan(value: Any) -> float:
    found = number(value)
    return float("nan") if found is None else found


def _distance(loop: Row) -> Panel:
    """Judge's score and proxy against the square root of KL, by round (Gao et al., 2022)."""
    name = "study-distance"
    rows = loop["rounds"]
    x = np.sqrt(np.maximum([_or_nan(row["kl"]["value"]) for row in rows], 0.0))
    with style(name):
        figure = Figure(figsize=(WIDTH, 300 / 72), layout="constrained")
        axes = figure.subplots(2, sharex=True)
        kinds = (("score", "judge's score", GREEN), ("proxy", "proxy (reward model)", ORANGE))
        for ax, (key, label, colour) in zip(axes, kinds, strict=True):
            y = [_or_nan(row[key]["value"]) for row in rows]
            ax.plot(x, y, "o-", color=colour, linewidth=1.8, markersize=6)
            for row, at, value in zip(rows, x, y, strict=True):
                text = str(row["round"]) if row["round"] else "SFT"
                ax.annotate(text, (at, value), (5, 6), textcoords="offset points", color=INK)
            ax.margins(y=0.25)
            ax.set_title(label, loc="left", fontsize=10.5, color=INK)
        axes[-1].set_xlabel("√KL from SFT, KL in nats per response")
        note = "A dot a round, mean over seeds, at the last temperature, on validation posts."
        return Panel(name, "Score against distance", note, inline(figure, name))


def write_study(where: Path, data: Mapping[str, Any]) -> Sheet:
    """Write `study.json`, `.md` and `.html` into `where`."""
    sheet = study_sheet(data)
    write_json(where / "study.json", data)
    replace_bytes(where / "study.md", markdown(sheet, data["command"]).encode())
    replace_bytes(where / "study.html", page(data, sheet, study_panels(data)).encode())
    return sheet
