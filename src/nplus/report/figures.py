"""Figures as inline SVG whose colours are CSS variables: one drawing serves light and dark.

matplotlib draws in stand-in colours, which `inline` replaces by `var(--...)`; text stays text, in
the page's font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nplus.report.collect import Curve, RunView, number
from nplus.report.tables import plain, policy_name, span, split_name, system_name, ties, win_rows
from nplus.stats import wilson

INK, AXIS, GRID, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
BLUE, ORANGE, GREEN, PURPLE, ROSE = "#0a0b05", "#0a0b06", "#0a0b07", "#0a0b08", "#0a0b09"
VARIABLES = {
    INK: "--ink",
    AXIS: "--muted",
    GRID: "--line",
    PAPER: "--card",
    BLUE: "--c1",
    ORANGE: "--c2",
    GREEN: "--c3",
    PURPLE: "--c4",
    ROSE: "--c5",
}
STYLE = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": AXIS,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-4, 5),
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": AXIS,
    "ytick.color": AXIS,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "text.parse_math": False,
}
WIDTH = 345 / 72
"""Inches; in CSS pixels a phone's width, so that text there keeps its size."""
POINTS = 400
"""Longer curves are averaged down to this many points."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A drawn figure: `svg` is inline markup, `note` one sentence on how to read it."""

    name: str
    title: str
    note: str
    svg: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a curve panel shows: `series` are `(metric, label, colour)`."""

    stage: str
    title: str
    note: str
    series: tuple[tuple[str, str, str], ...]
    step: str = "optimiser step"


def _ppo(title: str, note: str, *series: tuple[str, str, str]) -> Plan:
    return Plan("ppo", title, note, series, "PPO update")


GROUPS = (
    ("Reward model score", "Of all responses.", (("objective/scores", "score", BLUE),)),
    (
        "Gold score",
        "The world's true score of the rollouts.",
        (("objective/gold", "gold", GREEN),),
    ),
    ("KL from SFT", "Sequence KL, in nats.", (("objective/kl", "KL", ORANGE),)),
    ("Response length", "Tokens per rollout.", (("val/response_length", "tokens", BLUE),)),
    ("EOS rate", "Share of rollouts that end by themselves.", (("val/eos_rate", "EOS", BLUE),)),
    (
        "Spread within groups",
        "Deviation of a prompt's responses, and the share of groups without any.",
        (("groups/score_std", "deviation", BLUE), ("groups/equal", "all equal", ORANGE)),
    ),
    ("Policy loss", "Clipped surrogate.", (("loss/policy_avg", "policy", BLUE),)),
    ("Token entropy", "Mean over response tokens.", (("policy/entropy_avg", "entropy", GREEN),)),
    ("Pair loss", "Per pair; ln 2 at the start.", (("loss/train", "loss", BLUE),)),
)
"""Curves of the stages that answer each prompt several times, those that a stage has."""
PLANS = (
    _ppo("Reward model score", "What PPO maximises.", ("objective/scores", "score", BLUE)),
    _ppo(
        "Gold score", "The world's true score of the rollouts.", ("objective/gold", "gold", GREEN)
    ),
    _ppo("KL from SFT", "Sequence KL, in nats.", ("objective/kl", "KL", ORANGE)),
    _ppo("Response length", "Tokens per rollout.", ("val/response_length", "tokens", BLUE)),
    _ppo("EOS rate", "Share of rollouts that end by themselves.", ("val/eos_rate", "EOS", BLUE)),
    _ppo(
        "RLHF reward",
        "Score less the KL penalty.",
        ("objective/rlhf_reward", "reward", BLUE),
        ("objective/non_score_reward", "KL part", ORANGE),
    ),
    _ppo("Policy loss", "Clipped surrogate.", ("loss/policy_avg", "policy", BLUE)),
    _ppo("Value loss", "Clipped squared error.", ("loss/value_avg", "value", ORANGE)),
    _ppo(
        "Clip fraction",
        "Share of tokens beyond the clip range.",
        ("policy/clipfrac_avg", "policy", BLUE),
        ("val/clipfrac_avg", "value", ORANGE),
    ),
    _ppo(
        "Approximate KL per update", "New policy from old.", ("policy/approxkl_avg", "KL", ORANGE)
    ),
    _ppo(
        "Entropy",
        "Sequence entropy of rollouts, in nats.",
        ("objective/entropy", "entropy", GREEN),
    ),
    _ppo("Token entropy", "Mean over response tokens.", ("policy/entropy_avg", "entropy", GREEN)),
    _ppo(
        "Explained variance", "Of the critic; 1 is perfect.", ("val/explained_variance", "", BLUE)
    ),
    _ppo("Probability ratio", "Mean; 1 is no change.", ("val/ratio", "ratio", BLUE)),
    _ppo("Learning rate", "Policy.", ("lr", "lr", GREEN)),
    *(Plan(stage, *shown, "update") for stage in ("reinforce", "online_dpo") for shown in GROUPS),
    Plan("pretrain", "Pretraining loss", "Nats per token.", (("loss/train", "loss", BLUE),)),
    Plan("sft", "SFT loss", "Nats per token.", (("loss/train", "loss", BLUE),)),
    Plan("dpo", "DPO loss", "Per pair; ln 2 at the start.", (("loss/train", "loss", BLUE),)),
    Plan(
        "dpo",
        "Implicit reward accuracy",
        "On training batches; 0 at the start, where all tie.",
        (("rewards/accuracies", "accuracy", GREEN),),
    ),
    Plan(
        "dpo",
        "Implicit rewards",
        "beta times the log-ratio to SFT.",
        (("rewards/chosen", "chosen", BLUE), ("rewards/rejected", "rejected", ORANGE)),
    ),
    Plan("reward", "Reward model loss", "Bradley-Terry.", (("loss/train", "loss", BLUE),)),
    Plan(
        "reward",
        "Reward model accuracy",
        "On training batches.",
        (("accuracy", "accuracy", GREEN),),
    ),
    Plan("reward", "Reward margin", "Chosen less rejected.", (("margin", "margin", ORANGE),)),
)


def win_rates(evaluation: Mapping[str, Any]) -> list[Panel]:
    """One panel per opponent: win rate by split and temperature, with ties and lengths."""
    rows = win_rows(evaluation)
    panels = []
    for policy, opponent in dict.fromkeys((r.get("policy"), r.get("opponent")) for r in rows):
        drawn = [
            Dot(
                label=f"{split_name(r)}, T {r.get('temperature')}",
                meta=f"n {plain(r.get('n'), 0)}, ties {ties(r)}, "
                f"{plain(r.get('tokens'))} vs {plain(r.get('opponent_tokens'))} tokens",
                row=r,
                second=r.get("length_matched") or {},
            )
            for r in rows
            if (r.get("policy"), r.get("opponent")) == (policy, opponent)
        ]
        panels.append(
            Panel(
                f"wins-{policy}-{opponent}",
                f"{policy_name({'policy': policy})} against {system_name(opponent)}",
                "Win rate, ties half, with 95% interval; hollow: at matched length.",
                dots(drawn, {0.5: "50%"}, f"wins-{policy}-{opponent}"),
            )
        )
    return panels


def reward_model(evaluation: Mapping[str, Any]) -> list[Panel]:
    """Accuracy of the reward model: against labels, gold and swaps, and by group; with DPO, that of
    its implicit reward on the same labels (Detail D9)."""
    found = dict(evaluation.get("reward_model") or {})
    found["implicit"] = (evaluation.get("implicit_reward") or {}).get("accuracy")
    kinds = (
        ("accuracy", "against the labels"),
        ("gold_accuracy", "against the gold order"),
        ("swap_accuracy", "true fact over a swapped one"),
        ("implicit", "DPO's implicit reward, against the labels"),
    )
    drawn = [
        Dot(label, f"n {plain(found[key].get('n'), 0)}" if found[key].get("n") else "", found[key])
        for key, label in kinds
        if found.get(key) and number(found[key].get("rate")) is not None
    ]
    lines = {0.5: "50%"}
    if (bayes := number(found.get("bayes_accuracy"))) is not None:
        lines[bayes] = f"Bayes {100 * bayes:.0f}%"
    panels = []
    if drawn:
        note = "Validation comparisons, 95% intervals."
        panels.append(Panel("rm", "Accuracy", note, dots(drawn, lines, "rm")))
    for key, title in (
        ("by_source", "Accuracy on comparisons of other writers"),
        ("by_batch", "Accuracy by batch"),
        ("by_split", "Accuracy by split"),
        ("by_policies", "Accuracy by pair of policies"),
        ("by_confidence", "Accuracy by labeller confidence"),
    ):
        groups = [_group(g) for g in found.get(key) or () if number(g.get("accuracy")) is not None]
        if groups:
            panels.append(Panel(key, title, "95% intervals.", dots(groups, {0.5: "50%"}, key)))
    return panels


def _group(group: Mapping[str, Any]) -> Dot:
    rate, n = float(group["accuracy"]), number(group.get("n"))
    row: dict[str, Any] = {"rate": rate, "low": group.get("low"), "high": group.get("high")}
    if n and row["low"] is None:  # a run of an older version
        _, row["low"], row["high"] = wilson(rate * n, n)
    return Dot(f"{group.get('name')}, n {plain(n, 0)}", "", row)


@dataclass(frozen=True, slots=True)
class Dot:
    """A line of a dot chart: `row` and `second` carry `rate`, `low`, `high`."""

    label: str
    meta: str
    row: Mapping[str, Any]
    second: Mapping[str, Any] | None = None


def dots(rows: Sequence[Dot], lines: Mapping[float, str], name: str) -> str:
    """Horizontal dots with intervals on a 0-100% axis; every row carries its own text above it."""
    pitch = 46 if any(d.meta for d in rows) else 32
    height = pitch * len(rows) + 48
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, height / 72))
        ax = figure.add_axes((0.02, 24 / height, 0.96, 1 - 44 / height))
        ax.set(xlim=(0, 1), ylim=(len(rows) * pitch + 4, 0), yticks=[])
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100%"])
        ax.get_xticklabels()[-1].set_ha("right")
        ax.spines["left"].set_visible(False)
        ax.grid(visible=False)
        for x, label in lines.items():
            ax.annotate(label, (x, 0), (0, 5), textcoords="offset points", ha="center", color=AXIS)
        for index, dot in enumerate(rows):
            top = index * pitch
            ends = (top + pitch - 14, top + pitch)  # clear of the text
            ax.vlines((0, 0.25, 0.5, 0.75, 1), *ends, color=GRID, linewidth=0.8)
            ax.vlines(list(lines), *ends, color=AXIS, linewidth=1.4)
            ax.text(0, top + 15, dot.label)
            ax.text(1, top + 15, span(dot.row), ha="right", weight="bold")
            if dot.meta:
                ax.text(0, top + 28, dot.meta, color=AXIS, fontsize=9.5)
            _interval(ax, dot.row, top + pitch - (10 if dot.second else 7), BLUE, hollow=False)
            if dot.second:
                _interval(ax, dot.second, top + pitch - 4, ORANGE, hollow=True)
        return inline(figure, name)


def _interval(ax: Axes, row: Mapping[str, Any], y: float, colour: str, *, hollow: bool) -> None:
    rate, low, high = (number(row.get(k)) for k in ("rate", "low", "high"))
    if rate is None:
        return
    if low is not None and high is not None:
        width = 1.2 if hollow else 2.4
        ax.plot([low, high], [y, y], color=colour, linewidth=width, solid_capstyle="round")
    face = PAPER if hollow else colour
    size, shape = (4.5, "D") if hollow else (7, "o")
    ax.plot(
        rate, y, shape, markersize=size, markerfacecolor=face, markeredgecolor=colour, clip_on=False
    )


def curves(run: RunView, stage: str) -> list[Panel]:
    """The training curves of one stage; a panel whose metrics are absent is left out."""
    panels = []
    for plan in PLANS:
        found = [(run.curve(stage, m), label, colour) for m, label, colour in plan.series]
        drawn = [(curve, label, colour) for curve, label, colour in found if curve]
        if plan.stage == stage and drawn:
            name = re.sub(r"\W+", "-", f"{stage}-{plan.title}".lower())
            svg = _curves(drawn, plan.step, name)
            panels.append(Panel(name, plan.title, plan.note, svg))
    return panels


def _curves(series: Sequence[tuple[Curve, str, str]], step: str, name: str) -> str:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, 210 / 72), layout="constrained")
        ax = figure.subplots()
        for curve, label, colour in series:
            _line(ax, *thinned(curve), label, colour)
        ax.set_xlabel(step)
        ax.margins(x=0.01)
        if len(series) > 1:
            ax.legend(loc="best", handlelength=1.2)
        return inline(figure, name)


def _line(ax: Axes, x: np.ndarray, y: np.ndarray, label: str, colour: str) -> None:
    if len(x) == 1:
        ax.plot(x, y, "o", color=colour, label=label)
    elif len(x) < 30:
        ax.plot(x, y, color=colour, linewidth=1.8, label=label)
    else:
        ax.plot(x, y, color=colour, linewidth=0.8, alpha=0.4)
        ax.plot(x, smooth(y), color=colour, linewidth=1.9, label=label)


def thinned(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """`(steps, values)`, averaged in equal blocks down to at most `POINTS`."""
    x, y = np.asarray(curve.steps, float), np.asarray(curve.values, float)
    if len(x) <= POINTS:
        return x, y
    blocks = np.array_split(np.arange(len(x)), POINTS)
    return np.array([x[b].mean() for b in blocks]), np.array([y[b].mean() for b in blocks])


def smooth(y: np.ndarray) -> np.ndarray:
    """Centred running mean over about a twentieth of the curve; the window shrinks at the ends."""
    half = max(1, len(y) // 40)
    # Sums of differences: a constant stays one to the last digit.
    total = np.concatenate(([0.0], np.cumsum(y - y[0])))
    low = np.maximum(np.arange(len(y)) - half, 0)
    high = np.minimum(np.arange(len(y)) + half + 1, len(y))
    return y[0] + (total[high] - total[low]) / (high - low)


def inline(figure: Figure, name: str) -> str:
    """The figure as bare `<svg>` markup: no prolog, metadata or fonts; colours as variables."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    box = re.search(r'viewBox="[^"]*"', text)
    head = f'<svg {box[0] if box else ""} role="img" aria-label="{escape(name)}">'
    text = re.sub(r"<svg [^>]*>", lambda _: head, text, count=1)
    text = re.sub(
        r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.S
    )  # would style the page
    text = re.sub(
        r' id="[\w.]+_\d+"', "", text
    )  # the same in every figure, and linked to by nothing
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r"\n\s*", "\n", text).strip()
