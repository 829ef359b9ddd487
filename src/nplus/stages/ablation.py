"""What a detail does: a baseline, and runs that differ from it in one thing, seed by seed."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from nplus.config import RunConfig
from nplus.details import detail, details
from nplus.evaluation.effects import Effect, measure_effect, outcome_effect, summary_over_seeds
from nplus.records import InputError
from nplus.stages.grid import Cell, Entry, Grid, cell_rows
from nplus.stages.outcomes import BOUNDS, MEASURES, Outcome, read_outcome

BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing done otherwise: `sets` are settings as after `--set`."""

    name: str
    title: str
    sets: tuple[str, ...]


def of_details(ids: Sequence[str]) -> list[Condition]:
    """The conditions that flip these details, one for each of a detail's variants; without ids,
    those of every detail that has any.

    Raises InputError for an unknown id and for a detail without a variant.
    """
    chosen = [detail(name) for name in ids] or [entry for entry in details() if entry.ablation]
    fixed = [entry.id for entry in chosen if not entry.ablation]
    if fixed:
        known = ", ".join(entry.id for entry in details() if entry.ablation)
        raise InputError(
            f"{', '.join(fixed)}: nothing to ablate; these details have variants: {known}"
        )
    return [
        Condition(f"{entry.id} {variant}", entry.title, sets)
        for entry in chosen
        for variant, sets in entry.ablation.items()
    ]


def of_flips(texts: Iterable[str]) -> list[Condition]:
    """Conditions given as `name: key=value key=value`."""
    found = []
    for text in texts:
        name, colon, rest = text.partition(":")
        try:
            sets = tuple(shlex.split(rest))
        except ValueError as error:
            raise InputError(f"--flip {text}: {error}; close the quotes") from error
        if not (colon and name.strip() and sets and all("=" in each for each in sets)):
            raise InputError(
                f"--flip {text}: needs NAME: KEY=VALUE, as in --flip 'no KL: ppo.kl_coef=0'"
            )
        found.append(Condition(name.strip(), ", ".join(sets), sets))
    return found


def without_effect(configs: Mapping[Cell, RunConfig]) -> list[str]:
    """Conditions whose settings are the baseline's, so that there is nothing to compare."""
    baseline = {cell.seed: c for cell, c in configs.items() if cell.name == BASELINE}
    same = [c.name for c, cfg in configs.items() if c.name != BASELINE and cfg == baseline[c.seed]]
    return list(dict.fromkeys(same))


def summarise(
    grid: Grid, entries: Sequence[Entry], conditions: Sequence[Condition], policy: str
) -> dict[str, Any]:
    """The tables of `ablation.json`: the baseline's means and every condition's effects on
    `policy`.

    `win_rate` is in shares of 1, `kl` in nats per response, lengths in tokens.
    """
    outcomes = {
        (e.cell.name, e.cell.seed): found
        for e in entries
        if e.status == "complete" and (found := read_outcome(grid.stage(e, "evaluate"), policy))
    }

    def runs(name: str) -> dict[int, Outcome]:
        return {seed: found for (cell, seed), found in outcomes.items() if cell == name}

    baseline = runs(BASELINE)
    return {
        "policy": policy,
        "seeds": sorted({entry.cell.seed for entry in entries}),
        "baseline": _means(baseline),
        "conditions": [
            {**asdict(condition), **_effects(runs(condition.name), baseline)}
            for condition in conditions
        ],
        "cells": cell_rows(entries),
    }


def _means(runs: Mapping[int, Outcome]) -> dict[str, Any]:
    """Mean over seeds of each measure, with a t interval over seeds."""
    values = {"win_rate": [fmean(run.posts.values()) for run in runs.values()]}
    for name in MEASURES:
        values[name] = [run.measures[name] for run in runs.values()]
    return {
        name: summary_over_seeds(v, BOUNDS.get(name, (0, math.inf))) for name, v in values.items()
    }


def _effects(
    runs: Mapping[int, Outcome], baseline: Mapping[int, Outcome]
) -> dict[str, dict[str, Any] | None]:
    found: dict[str, Effect | None] = {
        "win_rate": outcome_effect(
            {seed: run.posts for seed, run in runs.items()},
            {seed: run.posts for seed, run in baseline.items()},
        )
    }
    for name in MEASURES:
        found[name] = measure_effect(
            {seed: run.measures[name] for seed, run in runs.items()},
            {seed: run.measures[name] for seed, run in baseline.items()},
        )
    return {name: asdict(effect) if effect else None for name, effect in found.items()}
