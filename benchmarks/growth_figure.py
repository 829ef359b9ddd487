"""The figure of `growth.py`: seconds and memory against one size at a time.

python benchmarks/growth_figure.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from common import RESULTS, ROOT
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nplus.report.figures import AXIS, BLUE, GREEN, INK, ORANGE, STYLE
from nplus.report.grid_figures import PRINTED

IMAGE = ROOT / "docs" / "images" / "growth.png"
PARTS = {"update": ("PPO update", ORANGE), "generation": ("generation", BLUE)}
TITLES = {
    "rows": "Rows",
    "prompt": "Prompt length",
    "new": "Response length",
    "sizes": "Model size",
    "samples": "Samples of a prompt",
}
MEMORY = {
    "rows": ("rows", GREEN),
    "prompt": ("prompt", BLUE),
    "new": ("response", ORANGE),
    "sizes": ("model", INK),
}
BASE = {"rows": 64, "prompt": 64, "new": 48, "samples": 1}


def draw(results: Path, image: Path = IMAGE) -> None:
    data = json.loads(results.read_text())
    changes = {k: PRINTED[v] for k, v in STYLE.items() if isinstance(v, str) and v in PRINTED}
    with matplotlib.rc_context({**STYLE, **changes, "savefig.facecolor": "#ffffff"}):
        figure = Figure(figsize=(9.4, 6.2), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        axes = figure.subplots(2, 3).flatten().tolist()
        for ax, sweep in zip(axes, data["sweeps"], strict=False):
            _seconds(ax, sweep)
        low = min(ax.get_ylim()[0] for ax in axes[:5])
        high = max(ax.get_ylim()[1] for ax in axes[:5])
        for ax in axes[:5]:
            ax.set_ylim(low, high)
        for ax in (axes[0], axes[3]):
            ax.set_ylabel("seconds")
        _legend(axes[0])
        _memory(axes[5], data["sweeps"])
        figure.savefig(image, dpi=160, metadata={"Software": None})


def _seconds(ax: Axes, sweep: Mapping[str, Any]) -> None:
    x = [row["x"] for row in sweep["points"]]
    for part, (_, stand_in) in PARTS.items():
        if part not in sweep["exponents"]:
            continue
        colour, rows = PRINTED[stand_in], [row[part] for row in sweep["points"]]
        median = [row["median"] for row in rows]
        scale = median[-1] / rows[-1]["products"]
        ideal = [scale * row["products"] for row in rows]
        ax.plot(x, ideal, color=colour, linewidth=1.1, dashes=(3, 2.5), alpha=0.75)
        spread = [[m - row["low"] for m, row in zip(median, rows, strict=True)]]
        spread.append([row["high"] - m for m, row in zip(median, rows, strict=True)])
        ax.errorbar(
            x, median, spread, fmt="-o", color=colour, linewidth=1.8, markersize=5, elinewidth=1.2
        )
        found = sweep["exponents"][part]
        ax.annotate(
            f"{found['top']['value']:.2f}",
            (x[-1], median[-1]),
            (7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            weight="bold",
        )
    _axis(ax, x, sweep["axis"], TITLES[sweep["name"]], [_plain(value) for value in x])
    ax.set_yscale("log")
    ax.set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
    ax.minorticks_off()


def _plain(value: float) -> str:
    return f"{value:g}" if value == int(value) else f"{value:.1f}"


def _axis(ax: Axes, x: Sequence[float], label: str, title: str, ticks: Sequence[str]) -> None:
    ax.set_xscale("log")
    ax.set_xticks(list(x), list(ticks))
    ax.minorticks_off()
    room = (x[-1] / x[0]) ** 0.07
    ax.set_xlim(x[0] / room, x[-1] * room**2.8)  # figures stand to the right of the lines
    ax.set_xlabel(label)
    ax.set_title(title, loc="left", fontsize=10.5, weight="bold")


def _legend(ax: Axes) -> None:
    shown = [
        Line2D([], [], color=PRINTED[colour], marker="o", markersize=5, linewidth=1.8, label=label)
        for label, colour in PARTS.values()
    ]
    shown.append(
        Line2D([], [], color=PRINTED[AXIS], linewidth=1.1, dashes=(3, 2.5), label="multiplications")
    )
    ax.legend(handles=shown, loc="lower right", handlelength=1.8, borderaxespad=0.2)


def _memory(ax: Axes, sweeps: Sequence[Mapping[str, Any]]) -> None:
    """Peak memory against multiples of the base point, whichever size it is that grows."""
    for sweep in sweeps:
        if sweep["name"] not in MEMORY:
            continue
        label, stand_in = MEMORY[sweep["name"]]
        rows, colour = sweep["points"], PRINTED[stand_in]
        if sweep["name"] == "sizes":
            times = [row["sizes"][0] / 128 for row in rows]
            label = "width"
        else:
            times = [row["x"] / BASE[sweep["name"]] for row in rows]
        peak = [row["peak_rss_gib"] for row in rows]
        ax.plot(times, peak, "-o", color=colour, linewidth=1.6, markersize=4)
        above = sweep["name"] == "sizes"  # ends among the other lines
        ax.annotate(
            label,
            (times[-1], peak[-1]),
            (0, 6) if above else (7, 0),
            textcoords="offset points",
            ha="center" if above else "left",
            va="bottom" if above else "center",
            color=colour,
        )
    _axis(
        ax,
        [0.25, 0.5, 1, 2, 4, 8],
        "times the base point",
        "Peak memory, GiB",
        ["¼", "½", "1", "2", "4", "8"],
    )
    ax.set_ylim(bottom=0)


if __name__ == "__main__":
    draw(RESULTS / "growth.json")
