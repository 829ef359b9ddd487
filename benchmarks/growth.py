"""How the cost of nplus grows: one thing doubled at a time, from one base point.

    python benchmarks/growth.py [--sweep rows prompt]

The points of a sweep are processes of their own that work in turns. `generation` is a draw by the
engine, `update` all that a PPO update does beside sampling: scores, values and optimiser steps.
Growth is an exponent: 1 is twice the seconds for twice the size. Each is set against the exponent
of the multiplications that the work comes to, over the last two doublings, where fixed costs weigh
least. The benchmark fails where the time grows faster than those, and than linearly, by more than
`TOLERANCE`: twice the response is twice the steps, whatever reading the prompt multiplies. A sweep
that is measured alone takes its place among those kept.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import roofline
from common import RESULTS, Program, keep, run
from growth_figure import draw
from ppo_update import SHAPES, build, ours
from roofline import VOCAB, Sizes
from scipy import stats
from transformers.utils.logging import disable_progress_bar

NAME = "growth"
TOLERANCE = 0.15
EPOCHS = 4
MICRO = 16
PARTS = ("generation", "update")


@dataclass(frozen=True)
class Point:
    """What is generated and trained on; a response is `new` tokens, whatever it says."""

    rows: int = 64
    prompt: int = 64
    new: int = 48
    sizes: Sizes = SHAPES["A"]
    samples: int = 1

    def products(self) -> dict[str, float]:
        """Multiply-adds of generation and update, as `roofline.py` counts them."""
        found = roofline.ppo(self.sizes, self.rows, self.prompt, self.new, EPOCHS)
        drawn = roofline.generation(self.sizes, self.prompt, self.new, self.samples)
        return {"generation": self.rows * drawn, "update": found["scores"] + found["training"]}


@dataclass(frozen=True)
class Sweep:
    """Points along one axis; `axis` is its label, `x` where a point stands on it."""

    name: str
    axis: str
    points: Sequence[Point]
    x: Sequence[float]
    update: bool = True


def sweeps() -> list[Sweep]:
    base = Point()

    def along(field: str, axis: str, values: Sequence[int], update: bool = True) -> Sweep:
        points = [replace(base, **{field: value}) for value in values]
        return Sweep(field, axis, points, values, update)

    widths = [(h, 4, h // 32) for h in (64, 96, 128, 192, 256)]
    return [
        along("rows", "rows", (16, 32, 64, 128, 256)),
        along("prompt", "prompt tokens", (32, 64, 128, 256, 512)),
        along("new", "response tokens", (12, 24, 48, 96, 192)),
        Sweep(
            "sizes",
            "weights a token meets, millions",
            [replace(base, sizes=sizes) for sizes in widths],
            [(12 * layers * h**2 + VOCAB * h) / 1e6 for h, layers, _ in widths],
        ),
        along("samples", "samples of a prompt", (1, 2, 4, 8, 16), update=False),
    ]


def settings(point: Point, threads: int) -> list[str]:
    """As after --set: the update of `ppo_update.py`, and every response of full length."""
    return [
        *ours("float32", min(MICRO, point.rows), [f"compute.threads={threads}"]),
        f"ppo.batch_size={point.rows}",
        f"ppo.rollout_micro_batch_size={point.rows}",
        f"ppo.num_ppo_epochs={EPOCHS}",
        "data.max_response_tokens=8",  # no longer than any response here
        f"ppo.sampling.response_length={point.new}",
        "ppo.sampling.stop=length",
    ]


def measure(sweep: Sweep, repeats: int, threads: int) -> list[Program]:
    with tempfile.TemporaryDirectory() as scratch:
        programs = []
        for index, point in enumerate(sweep.points):
            root = Path(scratch) / str(index)
            made = build(root, point.sizes, rows=point.rows, length=point.prompt, new=point.new)
            told = {"samples": point.samples, "update": sweep.update}
            told |= {"sets": settings(point, threads)}
            programs.append(Program(f"{sweep.name} {index}", "grow.py", made | told))
        run(programs, repeats)
    for program in programs:
        for row in program.times:
            if sweep.update:
                row["update"] += row["scores"]
    return programs


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent of the power law nearest to the points, in logarithms."""
    return float(stats.linregress(np.log(x), np.log(y)).slope)


def exponent(x: Sequence[float], rounds: np.ndarray) -> dict[str, float]:
    """Mean over the rounds, in each of which every point had its turn, with the 95% t interval."""
    found = np.array([slope(x, row) for row in rounds])
    mean = float(found.mean())
    if len(found) < 2:
        return {"value": mean, "low": -math.inf, "high": math.inf}
    margin = float(stats.t.ppf(0.975, len(found) - 1) * stats.sem(found))
    return {"value": mean, "low": mean - margin, "high": mean + margin}


def fits(sweep: Sweep, programs: Sequence[Program]) -> dict[str, Any]:
    """Of each part the exponent over all points and over the last two doublings, with that of the
    multiplications."""
    found = {}
    for part in PARTS[: 1 + sweep.update]:
        rounds = np.array([[row[part] for row in program.times] for program in programs]).T
        products = [point.products()[part] for point in sweep.points]
        found[part] = {
            "all": exponent(sweep.x, rounds),
            "top": exponent(sweep.x[-3:], rounds[:, -3:]),
            "products": slope(sweep.x[-3:], products[-3:]),
            "rate": products[-1] / float(np.median(rounds[:, -1])) / 1e9,
        }
    return found


def told(sweep: Sweep, programs: Sequence[Program]) -> dict[str, Any]:
    rows = []
    for x, point, program in zip(sweep.x, sweep.points, programs, strict=True):
        times = {
            part: {
                "median": float(np.median(column := [row[part] for row in program.times])),
                "low": min(column),
                "high": max(column),
                "products": point.products()[part],
            }
            for part in PARTS[: 1 + sweep.update]
        }
        memory = program.ended["peak_rss_gib"]
        rows.append({"x": x, **asdict(point), **times, "peak_rss_gib": memory})
    return {
        "name": sweep.name,
        "axis": sweep.axis,
        "points": rows,
        "exponents": fits(sweep, programs),
    }


def show(result: dict[str, Any]) -> None:
    for part, found in result["exponents"].items():
        seconds = ", ".join(f"{row[part]['median']:.3f}" for row in result["points"])
        top, all_ = found["top"], found["all"]
        print(
            f"{result['axis']}, {part}: {seconds} s; exponent {all_['value']:.2f}, at the top "
            f"{top['value']:.2f} [{top['low']:.2f}, {top['high']:.2f}], of the products "
            f"{found['products']:.2f}; {found['rate']:.0f} G multiply-adds a second"
        )
    memory = ", ".join(f"{row['peak_rss_gib']:.2f}" for row in result["points"])
    print(f"{result['axis']}: peak memory {memory} GiB", flush=True)


def worse_in(results: Sequence[dict[str, Any]]) -> list[str]:
    """What grows faster than it may."""
    return [
        f"{part} by {result['axis']}"
        for result in results
        for part, found in result["exponents"].items()
        if found["top"]["value"] > max(found["products"], 1.0) + TOLERANCE
    ]


def among_kept(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """These sweeps in the place of those that an earlier run kept."""
    path = RESULTS / f"{NAME}.json"
    kept = json.loads(path.read_text())["sweeps"] if path.exists() else []
    found = {result["name"]: result for result in (*kept, *results)}
    return [found[sweep.name] for sweep in sweeps() if sweep.name in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = sweeps()
    parser.add_argument("--sweep", nargs="+", choices=[s.name for s in every])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    disable_progress_bar()
    results = []
    for sweep in every:
        if not args.sweep or sweep.name in args.sweep:
            results.append(told(sweep, measure(sweep, args.repeats, args.threads)))
            show(results[-1])
    results = among_kept(results)
    worse = worse_in(results)
    path = keep(NAME, {"sweeps": results, "tolerance": TOLERANCE, "worse": worse})
    if len(results) == len(every):
        draw(path)
    if worse:
        raise SystemExit(f"time grows faster than the multiplications: {'; '.join(worse)}")


if __name__ == "__main__":
    main()
