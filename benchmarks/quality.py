"""The judge of `time_to_quality.py`, what its curves come to, and their figure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import torch
from common import keep
from matplotlib.figure import Figure

from nplus.algorithms import supervised
from nplus.config import SamplingConfig
from nplus.data.collate import sequence_rows, token_batch
from nplus.evaluation.accuracy import accuracy_report
from nplus.models.files import load_causal_lm
from nplus.models.lm import sequence_logits
from nplus.models.scalar import ScalarModel
from nplus.records import Comparison, read_records
from nplus.stages.context import Context
from nplus.stages.drawing import draw
from nplus.stages.reward import gold_accuracy
from nplus.stages.scorers import RewardScorer, margins
from nplus.stats import win_rate_of_scores

if TYPE_CHECKING:
    from time_to_quality import Bench, Cell

SIDES = ("nplus", "trl")
NAMES = {"nplus": "nplus", "trl": "TRL 1.12.0"}
COLOURS = {"nplus": "#0072b2", "trl": "#c75000"}
LEVEL, LEVELS = 0.60, (0.50, 0.55, 0.60, 0.65)
ALIKE = {"sft_loss": 0.02, "reward_accuracy": 0.03}
"""How far the models before PPO may differ, in nats a token and in share of 1,500 comparisons."""
TIED = 1.05
GREEDY = 0.01
"""The first temperature of the toy's verdict (Detail H1)."""


def write(path: Path, found: Any) -> None:
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(found, indent=1))
    aside.replace(path)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def snapshot(ctx: Context, path: Path) -> Any:
    where = {"model_name_or_path": str(path), "size": None}
    return load_causal_lm(ctx.config.model.model_copy(update=where)).eval()


def win_rate(ctx: Context, path: Path, split: str) -> dict[str, Any]:
    """The policy in `path` against the references of `split`, near-greedily, by the gold score:
    the first line of a toy run's verdict. The noise is the same for every policy."""
    posts, gold = ctx.data.demonstrations(split), ctx.gold()
    assert gold is not None
    sampling = SamplingConfig(
        temperature=GREEDY, response_length=ctx.config.evaluate.response_length
    )
    drawn = draw(
        snapshot(ctx, path),
        posts,
        sampling,
        ctx,
        name=f"evaluate {GREEDY:g}",
        size=ctx.config.evaluate.micro_batch_size,
    )
    ours = [gold.judge(p.id, d.text).total for p, d in zip(posts, drawn, strict=True)]
    theirs = [gold.judge(p.id, p.response).total for p in posts]
    found = win_rate_of_scores(ours, theirs)
    return {
        "rate": found.rate,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "gold": statistics.fmean(ours),
        "tokens": statistics.fmean(len(d.tokens) for d in drawn),
        "eos_rate": statistics.fmean(d.has_eos for d in drawn),
    }


@torch.no_grad()
def sft_loss(ctx: Context, path: Path, split: str) -> float:
    """Nats a token on the demonstrations of `split`, query and response."""
    model, rows = snapshot(ctx, path), sequence_rows(ctx.codec, ctx.data.demonstrations(split))
    total = count = 0.0
    for start in range(0, len(rows), 50):
        batch = token_batch(rows[start : start + 50], pad_id=ctx.codec.pad_id)
        logits = sequence_logits(model, batch.tokens_BT, batch.mask_BT)
        ((_, mean),) = supervised.objective(logits, batch).terms.values()
        total, count = total + float(mean.sum), count + float(mean.count)
    return total / count


def judge_front(bench: Bench, cell: Cell, split: str) -> None:
    """Both models before PPO: loss and win rate of SFT, accuracy of the reward model."""
    ctx, front = bench.context(), bench.front(cell.side, cell.seed)
    held = [
        row
        for row in read_records(ctx.dirs["label"].comparisons, Comparison)
        if row.split != "train"
    ]
    model = ctx.as_scalar(ScalarModel.load(front / "reward" / "model", attn="eager")).eval()
    scores = RewardScorer(model, ctx.codec).pairs(held)
    gold = ctx.gold()
    assert gold is not None
    found = {
        "win_rate": win_rate(ctx, front / "sft" / "model", split),
        "sft_loss": sft_loss(ctx, front / "sft" / "model", split),
        "reward_accuracy": accuracy_report(held, margins(held, scores))["accuracy"]["rate"],
        "reward_gold_accuracy": gold_accuracy(held, scores, gold)["rate"],
    }
    write(front / f"judged-{split}.json", found)


def judge_cell(bench: Bench, cell: Cell, split: str) -> None:
    """Win rates of a cell's snapshots."""
    ctx, out = bench.context(), bench.cell(cell)
    steps = [row["update"] for row in read(out / "done.json")["curve"]]
    found = {str(step): win_rate(ctx, out / f"step_{step:03d}", split) for step in steps}
    write(out / f"judged-{split}.json", found)


def curve(bench: Bench, cell: Cell, split: str) -> list[dict[str, Any]]:
    """Win rate against minutes since the base model: after SFT and reward model, then PPO."""
    front, out = bench.front(cell.side, cell.seed), bench.cell(cell)
    before = sum(read(front / "done.json")["seconds"].values())
    start = read(front / f"judged-{split}.json")["win_rate"]
    judged = read(out / f"judged-{split}.json")
    rows = [{"update": 0, "minutes": before / 60, **start}]
    for row in read(out / "done.json")["curve"]:
        minutes = (before + row["seconds"]) / 60
        rows.append({"update": row["update"], "minutes": minutes, **judged[str(row["update"])]})
    return rows


def reached(rows: Sequence[dict[str, Any]], level: float) -> dict[str, Any] | None:
    """The first snapshot at `level` or above whose successor is there too; None without one."""
    for row, after in pairwise(rows):
        if min(row["rate"], after["rate"]) >= level:
            return row
    return None


def minutes_to(bench: Bench, cell: Cell, split: str, level: float = LEVEL) -> float | None:
    found = reached(curve(bench, cell, split), level)
    return None if found is None else float(found["minutes"])


def best(bench: Bench, side: str) -> tuple[float, float]:
    """The setting to go on with, by its runs under the tuning seeds on validation posts.

    Times within `TIED` of the shortest mean time to the level differ by an update or two, which is
    noise: of these settings the one with the highest mean win rate at the end. A run that did not
    arrive counts as endless.
    """
    runs: dict[tuple[float, float], list[Cell]] = {}
    for cell in bench.tuning():
        if cell.side == side:
            runs.setdefault((cell.lr, cell.kl), []).append(cell)

    def minutes(at: tuple[float, float]) -> float:
        found = [minutes_to(bench, cell, "valid") for cell in runs[at]]
        return statistics.fmean(float("inf") if each is None else each for each in found)

    def final_rate(at: tuple[float, float]) -> float:
        return statistics.fmean(curve(bench, cell, "valid")[-1]["rate"] for cell in runs[at])

    shortest = min(map(minutes, runs))
    return max((at for at in runs if minutes(at) <= TIED * shortest), key=final_rate)


def described(bench: Bench, cell: Cell, split: str) -> dict[str, Any]:
    """One road: its settings, its stages' seconds, its models and its curve."""
    front, out = bench.front(cell.side, cell.seed), bench.cell(cell)
    before, ppo = read(front / "done.json"), read(out / "done.json")
    rows = curve(bench, cell, split)
    at = reached(rows, LEVEL)
    judged = {k: v for k, v in read(front / f"judged-{split}.json").items() if k != "win_rate"}
    return {
        "side": cell.side,
        "seed": cell.seed,
        "split": split,
        "learning_rate": cell.lr,
        "kl_coef": cell.kl,
        "seconds": {**before["seconds"], "ppo_update": ppo["clock"] / ppo["spec"]["updates"]},
        "busy_threads": {
            "front": before["cpu_seconds"] / before["clock"],
            "ppo": ppo["cpu_seconds"] / ppo["clock"],
        },
        "interrupted_seconds": before["interrupted"] + ppo["interrupted"],
        "peak_rss_gib": max(before["peak_rss_gib"], ppo["peak_rss_gib"]),
        **judged,
        "updates_to_level": at and at["update"],
        "minutes_to": {f"{level:.2f}": minutes_to(bench, cell, split, level) for level in LEVELS},
        "curve": rows,
    }


def require_alike(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Largest differences between the two sides' models before PPO, seed by seed.

    Ends the benchmark where one is above its bound: a side would have trained something else.
    """
    found = dict.fromkeys(ALIKE, 0.0)
    for ours in (row for row in rows if row["side"] == SIDES[0]):
        for theirs in (row for row in rows if (row["side"], row["seed"]) == ("trl", ours["seed"])):
            for name in ALIKE:
                found[name] = max(found[name], abs(ours[name] - theirs[name]))
    for name, bound in ALIKE.items():
        if not found[name] <= bound:
            raise SystemExit(f"{name} differs by {found[name]:.4f}: not the same training")
    return found


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Median and range; a road that did not arrive counts as later than all others."""
    known = [float("inf") if value is None else value for value in values]
    found = {"median": statistics.median(known), "low": min(known), "high": max(known)}
    return {name: None if value == float("inf") else value for name, value in found.items()}


def report(bench: Bench, figure: Path) -> None:
    """Print the table, keep the result, draw the figure."""
    tuning = [described(bench, cell, "valid") for cell in bench.tuning()]
    final = [described(bench, cell, "test") for cell in bench.final()]
    alike = require_alike(tuning + final)
    sides: dict[str, Any] = {}
    for side in SIDES:
        rows = [row for row in final if row["side"] == side]
        sides[side] = {
            "minutes_to": {
                key: spread([row["minutes_to"][key] for row in rows])
                for key in rows[0]["minutes_to"]
            },
            "seconds": {
                key: spread([row["seconds"][key] for row in rows]) for key in rows[0]["seconds"]
            },
        }
    ratios = {}
    for key, ours in sides["nplus"]["minutes_to"].items():
        theirs = sides["trl"]["minutes_to"][key]["median"]
        ratios[key] = theirs / ours["median"] if theirs and ours["median"] else None
    for row in tuning + final:
        print(line(row))
    for side, found in sides.items():
        print(NAMES[side], json.dumps(found))
    print("times as fast, by level:", json.dumps(ratios))
    result = {
        "level": LEVEL,
        "differences_before_ppo": alike,
        "ratios": ratios,
        "sides": sides,
        "final": final,
        "tuning": tuning,
    }
    keep("time-to-quality", result | {"settings": read(bench.work / "bench.json")})
    draw_curves(final, sides, figure)


def line(row: dict[str, Any]) -> str:
    seconds = "  ".join(f"{name} {value:.1f}" for name, value in row["seconds"].items())
    minutes = row["minutes_to"][f"{LEVEL:.2f}"]
    arrived = "not reached" if minutes is None else f"{minutes:.2f} min"
    return (
        f"{row['side']:<6} seed {row['seed']} lr {row['learning_rate']:g} kl {row['kl_coef']:g} "
        f"{row['split']:<5} | seconds: {seconds} | SFT loss {row['sft_loss']:.3f} "
        f"RM {row['reward_accuracy']:.3f} gold {row['reward_gold_accuracy']:.3f} | "
        f"win rate {row['curve'][0]['rate']:.3f} to {row['curve'][-1]['rate']:.3f}, "
        f"60% after {arrived} ({row['updates_to_level']} updates)"
    )


def draw_curves(final: Sequence[dict[str, Any]], sides: dict[str, Any], path: Path) -> None:
    """Win rate against minutes, a line a seed."""
    style = {
        "font.size": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#dce1e5",
        "axes.labelcolor": "#5d6a73",
        "xtick.color": "#5d6a73",
        "ytick.color": "#5d6a73",
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#dce1e5",
        "grid.linewidth": 0.6,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.6, 4.0), layout="constrained")
        ax = figure.subplots()
        for row in final:
            minutes = [point["minutes"] for point in row["curve"]]
            rates = [100 * point["rate"] for point in row["curve"]]
            ax.plot(minutes, rates, color=COLOURS[row["side"]], linewidth=1.2, alpha=0.85)
            ax.plot(minutes[0], rates[0], "o", color=COLOURS[row["side"]], markersize=4)
        ax.axhline(100 * LEVEL, color="#5d6a73", linewidth=1.0, dashes=(4, 3))
        for side, found in sides.items():
            middle = found["minutes_to"][f"{LEVEL:.2f}"]["median"]
            label = "does not arrive" if middle is None else f"{middle:.1f} min"
            ax.plot([], [], color=COLOURS[side], label=f"{NAMES[side]}: 60% after {label}")
            if middle is not None:
                ax.plot(middle, 100 * LEVEL, "D", color=COLOURS[side], markersize=7, zorder=5)
        ax.set_xlim(left=0)
        ax.set_ylim(0, 100)
        ax.set_xlabel("minutes since the base model (dots: PPO begins)")
        ax.set_ylabel("wins against the references, %")
        ax.legend(loc="lower right", frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, metadata={"Software": None})
