"""The registry of the numbered details of arXiv 2403.17031, read from `details.yaml`.

An entry is a claim about this code: where the detail stands, which key switches it, which tests
hold it. `tests/details` prove every claim, the switch included: flipping it changes the result.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import yaml

from nplus.records import InputError

SECTIONS = {
    "A": "Data and tokenisation",
    "B": "General training set-up",
    "C": "SFT",
    "D": "Reward model",
    "E": "PPO rollout",
    "F": "PPO targets",
    "G": "PPO update",
    "H": "Evaluation and inspection",
}


@dataclass(frozen=True, slots=True)
class Detail:
    """One detail; either `key` switches it, or `always_on` says why nothing does."""

    id: str
    title: str
    statement: str
    source: str
    """File and line of the paper's code (vwxyzjn/summarize_from_feedback_details), or another."""
    bites: str
    """What goes wrong without it."""
    code: str
    """The dotted name of the one place; its docstring carries the id."""
    tests: tuple[str, ...] = ()
    """Node ids of the tests that are marked with the id."""
    formula: str = ""
    paper: int | None = None
    """The paper's own number, where it has one."""
    inferred: bool = False
    """Whether that number is inferred from gaps in the numbering."""
    key: str | None = None
    always_on: str = ""
    flip: tuple[str, ...] = ()
    """Settings that switch it, as `--set` takes them."""
    ablation: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Named variants for `nplus ablate`."""

    @property
    def section(self) -> str:
        return SECTIONS[self.id[0]]


@cache
def _registry() -> dict[str, Detail]:
    folder = resources.files("nplus")
    rows = yaml.safe_load(folder.joinpath("details.yaml").read_text(encoding="utf-8"))
    tests = json.loads(folder.joinpath("details_tests.json").read_text(encoding="utf-8"))
    return {row["id"]: _entry(row, tests.get(row["id"], ())) for row in rows}


def _entry(row: dict[str, Any], tests: Sequence[str]) -> Detail:
    variants = {name: tuple(sets) for name, sets in row.get("ablation", {}).items()}
    flip = tuple(row.get("flip", ()))
    return Detail(**{**row, "flip": flip, "tests": tuple(tests), "ablation": variants})


def details() -> tuple[Detail, ...]:
    """Every entry, A1 to H5, in order."""
    return tuple(_registry().values())


def detail(id: str) -> Detail:
    """The entry of an id such as `D5`; InputError names the nearest one."""
    found = _registry().get(id.upper())
    if found is None:
        near = difflib.get_close_matches(id.upper(), _registry(), n=1, cutoff=0.1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"unknown detail {id!r}; {hint}`nplus details` lists all")
    return found
