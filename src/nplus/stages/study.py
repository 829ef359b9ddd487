"""A study's tables: its arms side by side, their differences seed by seed, and rounds where there
are any."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from nplus.evaluation.effects import (
    Effect,
    measure_effect,
    outcome_effect,
    summary_over_seeds,
)
from nplus.stages.grid import Entry, Grid, cell_rows
from nplus.stages.outcomes import BOUNDS, MEASURES, Outcome, read_outcome

Runs = Mapping[int, Outcome]
BASE = "sft"
"""The policy that curves begin at."""
ROUND_MEASURES = ("win_rate", "score", "proxy", "kl", "tokens", "reward_length_correlation")
"""Of a round: wins against SFT and score by the judge, near greedy; proxy by the reward model; KL
from SFT in nats at the last temperature; tokens; correlation within a prompt's samples."""


def summarise(
    grid: Grid,
    entries: Sequence[Entry],
    arms: Sequence[tuple[str, str, str]],
    contrasts: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """The tables of `study.json`. `arms` are `(label, cell, policy)`, `contrasts` pairs of labels.

    Win rates are against the references, in shares of 1, with t intervals over seeds.
    """
    runs = {label: _runs(grid, entries, cell, policy) for label, cell, policy in arms}
    return {
        "seeds": sorted({entry.cell.seed for entry in entries}),
        "arms": [
            {"label": label, "cell": cell, "policy": policy, **_means(runs[label])}
            for label, cell, policy in arms
        ],
        "contrasts": [
            {"ours": ours, "theirs": theirs, **_effects(runs[ours], runs[theirs])}
            for ours, theirs in contrasts
        ],
        "rounds": [
            {"label": label, "rounds": rounds}
            for label, cell, policy in arms
            if policy == "online" and (rounds := _rounds(grid, entries, cell))
        ],
        "curves": [
            {"label": label, "points": points}
            for label, cell, policy in arms
            if (points := _curve(grid, entries, cell, policy))
        ],
        "best_of": _best_of(grid, entries),
        "cells": cell_rows(entries),
    }


def _complete(entries: Sequence[Entry], cell: str) -> list[Entry]:
    return [entry for entry in entries if entry.cell.name == cell and entry.status == "complete"]


def _runs(grid: Grid, entries: Sequence[Entry], cell: str, policy: str) -> Runs:
    found = {
        entry.cell.seed: read_outcome(grid.stage(entry, "evaluate"), policy)
        for entry in _complete(entries, cell)
    }
    return {seed: outcome for seed, outcome in found.items() if outcome is not None}


def _means(runs: Runs) -> dict[str, Any]:
    values = {"win_rate": [fmean(run.posts.values()) for run in runs.values()]}
    for name in MEASURES:
        values[name] = [run.measures[name] for run in runs.values()]
    return {
        name: summary_over_seeds(v, BOUNDS.get(name, (0, math.inf))) for name, v in values.items()
    }


def _effects(ours: Runs, theirs: Runs) -> dict[str, Any]:
    found: dict[str, Effect | None] = {
        "win_rate": outcome_effect(
            {seed: run.posts for seed, run in ours.items()},
            {seed: run.posts for seed, run in theirs.items()},
        )
    }
    for name in MEASURES:
        found[name] = measure_effect(
            {seed: run.measures[name] for seed, run in ours.items()},
            {seed: run.measures[name] for seed, run in theirs.items()},
        )
    return {name: asdict(effect) if effect else None for name, effect in found.items()}


def _rounds(grid: Grid, entries: Sequence[Entry], cell: str) -> list[dict[str, Any]]:
    """Means over seeds of each round of a loop, on validation posts; `gain` is the win rate less
    that of the round before, paired by seed."""
    by_round: dict[int, dict[int, dict[str, float]]] = {}
    for entry in _complete(entries, cell):
        where = grid.stage(entry, "online")
        manifest = where.manifest() if where else None
        for row in manifest.results["rounds"] if manifest else ():
            by_round.setdefault(row["round"], {})[entry.cell.seed] = _of_round(row)
    found = []
    for number, rows in sorted(by_round.items()):
        means = {
            name: summary_over_seeds([row[name] for row in rows.values()], (-math.inf, math.inf))
            for name in ROUND_MEASURES
        }
        gain = measure_effect(_wins(rows), _wins(by_round.get(number - 1, {})))
        found.append({"round": number, **means, "gain": asdict(gain) if gain else None})
    return found


def _wins(rows: Mapping[int, Mapping[str, float]]) -> dict[int, float]:
    return {seed: row["win_rate"] for seed, row in rows.items()}


def _curve(grid: Grid, entries: Sequence[Entry], cell: str, policy: str) -> list[dict[str, Any]]:
    """Means over seeds of a policy along its way, from SFT on; empty where nothing was kept."""
    by_step: dict[int, list[Mapping[str, Any]]] = {}
    for entry in _complete(entries, cell):
        points = _curve_results(grid, entry).get("points", ())
        for row in (row for row in points if row["policy"] in (BASE, policy)):
            by_step.setdefault(row["step"], []).append(row)
    if len(by_step) < 2:  # SFT alone is no way
        return []
    return [
        {"step": step, "rollouts": rows[0]["rollouts"], **_point(rows)}
        for step, rows in sorted(by_step.items())
    ]


def _best_of(grid: Grid, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Means over seeds of best-of-n, by n."""
    by_n: dict[int, list[Mapping[str, Any]]] = {}
    for entry in (entry for entry in entries if entry.status == "complete"):
        for row in _curve_results(grid, entry).get("best_of", ()):
            by_n.setdefault(row["n"], []).append(row)
    return [{"n": n, **_point(rows)} for n, rows in sorted(by_n.items())]


def _curve_results(grid: Grid, entry: Entry) -> Mapping[str, Any]:
    where = grid.stage(entry, "curve")
    manifest = where.manifest() if where else None
    return manifest.results if manifest else {}


def _point(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = {
        "win_rate": ([row["against_reference"]["rate"] for row in rows], (0.0, 1.0)),
        "kl": ([(row["kl"] or {}).get("value") for row in rows], (-math.inf, math.inf)),
        "score": ([row["score"] for row in rows], (-math.inf, math.inf)),
        "proxy": ([row["proxy"] for row in rows], (-math.inf, math.inf)),
        "tokens": ([row["tokens"] for row in rows], (0.0, math.inf)),
    }
    return {
        name: summary_over_seeds([math.nan if v is None else v for v in values], within)
        for name, (values, within) in found.items()
    }


def _of_round(row: Mapping[str, Any]) -> dict[str, float]:
    systems = row["validation"]["systems"]
    last = systems[-1]
    found = {name: last.get(name) for name in ROUND_MEASURES}
    found["win_rate"] = systems[0]["against_reference"]["rate"]
    found["kl"] = last["kl"]["value"] if last.get("kl") else (None if row["round"] else 0.0)
    return {name: math.nan if value is None else value for name, value in found.items()}
