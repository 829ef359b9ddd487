"""Win rate and reward-model accuracy against model size, every size under several seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from nplus.evaluation.agreement import seed_agreement
from nplus.evaluation.effects import summary_over_seeds
from nplus.records import Margin, read_records
from nplus.runs import Manifest
from nplus.stages.grid import Entry, Grid, cell_rows

POLICIES = ("sft", "ppo", "dpo")
ACCURACIES = ("accuracy", "gold_accuracy", "swap_accuracy")


def summarise(grid: Grid, entries: Sequence[Entry]) -> dict[str, Any]:
    """The tables of `scale.json`.

    `points` has a row for every complete cell: win rate against the references on the judged split
    at the first temperature, by policy, and the reward model's accuracies. `sizes` has their means
    over seeds with t intervals, and how often the reward models of two seeds order a comparison
    alike (Detail D7). Rates and accuracies are shares of 1.
    """
    points = [point for entry in entries if (point := read_point(grid, entry))]
    sizes = sorted({entry.cell.name for entry in entries}, key=nominal)
    return {
        "seeds": sorted({entry.cell.seed for entry in entries}),
        "sizes": [
            {
                **_size(size, [p for p in points if p["size"] == size], entries),
                "seed_agreement": _agreement(grid, [e for e in entries if e.cell.name == size]),
            }
            for size in sizes
        ],
        "points": points,
        "cells": cell_rows(entries),
    }


def read_point(grid: Grid, entry: Entry) -> dict[str, Any] | None:
    """What one run came to; None for a cell that has no result."""
    if entry.status != "complete":
        return None
    found: dict[str, Manifest] = {}
    for name in ("pretrain", "label", "evaluate"):
        where = grid.stage(entry, name)
        manifest = where.manifest() if where else None
        if manifest is None:
            return None
        found[name] = manifest
    results = found["evaluate"].results
    rates = {
        row["policy"]: row["rate"]
        for row in results["win_rates"]
        if row["opponent"] == "reference"
        and row["rate"] is not None
        and row["split"] == results["split"]
        and row["temperature"] == results["temperatures"][0]
    }
    reward = results["reward_model"]
    measured = [name for name in ACCURACIES if (reward.get(name) or {}).get("rate") is not None]
    return {
        "size": entry.cell.name,
        "seed": entry.cell.seed,
        "parameters": found["pretrain"].results["parameters"],
        "documents": found["pretrain"].results["rows"],
        "win_rate": {policy: rates[policy] for policy in POLICIES if policy in rates},
        "reward_model": {name: reward[name]["rate"] for name in measured},
        "bayes_accuracy": reward.get("bayes_accuracy"),
    }


def _agreement(grid: Grid, entries: Sequence[Entry]) -> dict[str, Any] | None:
    """`{rate, chance, comparisons, pairs}` of one size's reward models (Detail D7).

    They are compared two by two on the comparisons of the judged split that others have written,
    which are the same for every seed; `rate` and `chance` are means over `pairs`. None for fewer
    than two seeds, or where seeds have other comparisons.
    """
    compared: set[tuple[tuple[str, tuple[str, str]], ...]] = set()
    margins: dict[str, list[float]] = {}
    for entry in entries:
        where = grid.stage(entry, "evaluate")
        manifest = where.manifest() if where else None
        if entry.status != "complete" or where is None or manifest is None:
            continue
        rows = read_records(where.margins, Margin) if where.margins.is_file() else []
        rows = [row for row in rows if row.source == manifest.results["split"]]
        margins[f"seed {entry.cell.seed}"] = [row.margin for row in rows]
        compared.add(tuple((row.id, row.policies) for row in rows))
    if len(margins) < 2 or len(compared) != 1 or compared == {()}:
        return None
    pairs = seed_agreement(margins)
    return {
        "rate": fmean(pair["rate"] for pair in pairs),
        "chance": fmean(pair["chance"] for pair in pairs),
        "comparisons": pairs[0]["n"],
        "pairs": pairs,
    }


def nominal(size: str) -> float:
    """The parameters that a size's name promises: 300,000 for `0.3M`."""
    return float(size.removesuffix("M")) * 1e6


def _size(size: str, points: Sequence[dict[str, Any]], entries: Sequence[Entry]) -> dict[str, Any]:
    asked = [entry for entry in entries if entry.cell.name == size]
    policies = [p for p in POLICIES if any(p in point["win_rate"] for point in points)]
    measured = [a for a in ACCURACIES if any(a in point["reward_model"] for point in points)]
    return {
        "size": size,
        "parameters": points[0]["parameters"] if points else nominal(size),
        "documents": points[0]["documents"] if points else None,
        "complete": len(points),
        "asked": len(asked),
        "failed": [e.cell.seed for e in asked if e.status == "failed"],
        "win_rate": {
            p: summary_over_seeds([x["win_rate"][p] for x in points if p in x["win_rate"]], (0, 1))
            for p in policies
        },
        "reward_model": {
            a: summary_over_seeds(
                [x["reward_model"][a] for x in points if a in x["reward_model"]], (0, 1)
            )
            for a in measured
        },
    }
