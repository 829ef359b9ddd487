"""The online loop in the report: what each round came to, as a table and as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from nplus.report.collect import RunView, number
from nplus.report.figures import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PAPER,
    STYLE,
    WIDTH,
    Dot,
    Panel,
    dots,
    inline,
)
from nplus.report.tables import nats, percent, plain, span

Row = Mapping[str, Any]
HEAD = (
    "round",
    "against SFT",
    "against the references",
    "score",
    "proxy",
    "KL",
    "tokens",
    "reward-length",
    "pairs",
    "left out",
    "samples' reward",
)
"""Columns of the table: win rates and score are the judge's, proxy the reward model's; KL from SFT
in nats a response, at the last temperature; the correlation of reward and length is within the
samples of a prompt."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """The loop's results."""

    rows: tuple[Row, ...]
    """As `stages/online/choose.py` wrote them, SFT first."""
    chosen: int

    @classmethod
    def of(cls, run: RunView) -> Rounds | None:
        """None for a run without a finished loop."""
        stage = run.stages.get("online")
        found = stage.results if stage else {}
        if not found.get("rounds"):
            return None
        return cls(tuple(found["rounds"]), int(found["chosen"]))

    def greedy(self, row: Row) -> Row:
        """A round's validation at the first temperature."""
        return _system(row, 0)

    def warm(self, row: Row) -> Row:
        """The same at the last one, where KL is known."""
        return _system(row, -1)

    @property
    def judged_by_proxy(self) -> bool:
        """Whether the reward model is the judge too, so that its score is the proxy."""
        return any((row.get("validation") or {}).get("judge") == "reward" for row in self.rows)

    def cells(self) -> list[tuple[str, ...]]:
        """The table's body, in the order of `HEAD`."""
        return [self._cells(row) for row in self.rows]

    def _cells(self, row: Row) -> tuple[str, ...]:
        first, last = self.greedy(row), self.warm(row)
        pairs = row.get("pairs") or {}
        left = ", ".join(f"{n} {why}" for why, n in sorted((pairs.get("left_out") or {}).items()))
        name = f"{row['round']}" if row["round"] else "SFT"
        bias = pairs.get("reward_length_correlation")
        return (
            f"{name} (chosen)" if row["round"] == self.chosen else name,
            span(first.get("against_sft")),
            span(first.get("against_reference")),
            plain(first.get("score"), 2),
            plain(first.get("proxy"), 2),
            nats(last.get("kl")),
            plain(first.get("tokens")),
            plain(bias, 2),
            plain(pairs.get("pairs"), 0),
            left or plain(None if not pairs else 0, 0),
            plain(pairs.get("reward"), 2),
        )


def _system(row: Row, at: int) -> Row:
    systems = (row.get("validation") or {}).get("systems") or [{}]
    found: Row = systems[at]
    return found


def console_table(found: Rounds) -> Table:
    """The rounds for a terminal: the columns that matter most."""
    table = Table(title="Rounds, on validation posts", title_justify="left", box=None)
    shown = [HEAD.index(name) for name in ("round", "against SFT", "KL", "tokens", "pairs")]
    for at in shown:
        table.add_column(HEAD[at], justify="right" if at else "left", no_wrap=True)
    for cells in found.cells():
        table.add_row(*(cells[at] for at in shown))
    return table


def panels(found: Rounds) -> list[Panel]:
    """Win rate by round, score and proxy against distance, and length."""
    rows = [row for row in found.rows if row["round"]]
    drawn = [_win_rates(found, rows)]
    if any(found.warm(row).get("kl") for row in rows):
        drawn.append(_distance(found))
    return [*drawn, _lengths(found)]


def _win_rates(found: Rounds, rows: Sequence[Row]) -> Panel:
    body = [
        Dot(
            f"round {row['round']}" + (", chosen" if row["round"] == found.chosen else ""),
            f"{plain((row.get('pairs') or {}).get('pairs'), 0)} pairs",
            found.greedy(row).get("against_sft") or {},
        )
        for row in rows
    ]
    note = "Against SFT's responses to the same validation posts, 95% intervals."
    return Panel("rounds-win", "Win rate by round", note, dots(body, {0.5: "even"}, "rounds-win"))


def _distance(found: Rounds) -> Panel:
    """Score and proxy of each round against the square root of its KL (Gao et al., 2022); the
    proxy alone where it is the judge's score."""
    name = "rounds-distance"
    kls = [(number((found.warm(row).get("kl") or {}).get("value")) or 0.0) for row in found.rows]
    x = np.sqrt(np.maximum(kls, 0.0))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        kinds = [("score", "judge's score", GREEN), ("proxy", "proxy (reward model)", BLUE)]
        note = "A dot a round; the filled one is chosen."
        if found.judged_by_proxy:
            del kinds[0]
        else:
            note += " Where the proxy rises and the score falls, the loop has gone too far."
        figure = Figure(figsize=(WIDTH, (60 + 120 * len(kinds)) / 72), layout="constrained")
        (axes,) = figure.subplots(len(kinds), sharex=True, squeeze=False).T
        for ax, (key, label, colour) in zip(axes, kinds, strict=True):
            y = [number(found.warm(row).get(key)) for row in found.rows]
            ax.plot(x, [np.nan if v is None else v for v in y], color=colour, linewidth=1.6)
            for row, at, value in zip(found.rows, x, y, strict=True):
                if value is None:
                    continue
                face = colour if row["round"] == found.chosen else PAPER
                ax.plot(at, value, "o", markersize=7, markerfacecolor=face, markeredgecolor=colour)
                text = str(row["round"]) if row["round"] else "SFT"
                ax.annotate(text, (at, value), (5, 6), textcoords="offset points", color=INK)
            ax.margins(y=0.2)
            ax.set_title(label, loc="left", fontsize=10.5, color=INK)
        axes[-1].set_xlabel("√KL from SFT, KL in nats per response")
        return Panel(name, "Score against distance", note, inline(figure, name))


def _lengths(found: Rounds) -> Panel:
    name = "rounds-length"
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, 210 / 72), layout="constrained")
        ax = figure.subplots()
        lines = {
            "validation, first temperature": [
                found.greedy(row).get("tokens") for row in found.rows
            ],
            "chosen of the pairs": [
                (row.get("pairs") or {}).get("chosen_tokens") for row in found.rows
            ],
            "rejected": [(row.get("pairs") or {}).get("rejected_tokens") for row in found.rows],
        }
        at = [row["round"] for row in found.rows]
        for (label, values), colour in zip(lines.items(), (INK, BLUE, ORANGE), strict=True):
            y = [np.nan if (v := number(value)) is None else v for value in values]
            ax.plot(at, y, "o-", color=colour, linewidth=1.6, markersize=5, label=label)
        ax.set_xticks(at, ["SFT" if n == 0 else str(n) for n in at])
        ax.set_xlabel("round")
        ax.legend(loc="best", handlelength=1.2)
        return Panel(name, "Length by round", "Mean tokens of responses.", inline(figure, name))


def sentences(found: Rounds) -> list[str]:
    """What the rounds say in plain words."""
    row = next((row for row in found.rows if row["round"] == found.chosen), None)
    if row is None:
        return []
    first, kl = found.greedy(row), found.warm(row).get("kl")
    text = (
        f"Of {len(found.rows) - 1} rounds, round {found.chosen} was chosen: on the validation "
        f"posts it wins {span(first.get('against_sft'))} against SFT"
        f"{f', {nats(kl)} nats a response away from it' if kl else ''}."
    )
    bias = [
        number((r.get("pairs") or {}).get("reward_length_correlation"))
        for r in found.rows
        if r["round"]
    ]
    if bias and bias[0] is not None and bias[-1] is not None:
        text += (
            " Within a prompt's samples, reward and length correlate by "
            f"{bias[0]:+.2f} in the first round and {bias[-1]:+.2f} in the last."
        )
    ties = [(r.get("pairs") or {}) for r in found.rows if r["round"]]
    shares = [sum((p.get("left_out") or {}).values()) / p["prompts"] for p in ties if p]
    if shares:
        text += f" Pairs left out: {', '.join(percent(share) for share in shares)} of the prompts."
    return [text]
