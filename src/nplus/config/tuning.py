"""What `nplus tune` finds on a machine: the schema of its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, ValidationError

from nplus.config.base import Config
from nplus.config.load import explain
from nplus.records import InputError

VERSION: Literal[1] = 1
"""Raised when what is measured, or what it means, changes."""

Value = bool | int | str


class Machine(Config):
    """What a tuning holds for: anything else here, and it is another machine."""

    cpu: str
    capability: str
    """Vector instructions that torch uses."""
    cores: int = Field(ge=1)
    """That this process may run on."""
    torch: str
    device: str
    """`cpu`, or the name of the GPU."""

    def differences(self, other: Machine) -> str:
        """What differs, as `torch 2.12.0 there, 2.13.0 here`: `other` is here."""
        ours, theirs = self.model_dump(), other.model_dump()
        return ", ".join(
            f"{name} {value} there, {theirs[name]} here"
            for name, value in ours.items()
            if value != theirs[name]
        )


class Alternative(Config):
    """How one of several ways did."""

    name: str
    seconds: float = Field(ge=0)
    """Median over the rounds."""
    low: float = Field(ge=0)
    high: float = Field(ge=0)
    ratio: float = Field(ge=0)
    """Median over the rounds of its time to the default's in the same round."""
    spread: float = Field(ge=0)
    """Median distance of a round's ratio from `ratio`."""


class Measurement(Config):
    """One piece of work, done in several ways in turns."""

    key: str
    """The setting that it is for."""
    work: str
    alternatives: tuple[Alternative, ...]


class Choice(Config):
    """The value of a setting, and why."""

    key: str
    value: Value
    default: Value
    why: str
    under: str = ""
    """What else has to hold, such as the precision it was measured under."""
    advice: bool = False
    """Said and not done: no `auto` takes it."""


class Tuning(Config):
    """What was measured and chosen on one machine."""

    version: Literal[1] = VERSION
    machine: Machine
    made: str
    """UTC, ISO 8601."""
    seconds: float = Field(ge=0)
    """That the measuring took."""
    measurements: tuple[Measurement, ...]
    errors: Mapping[str, float] = {}
    """Relative error of products against float64, by `compute.matmul_precision`."""
    choices: tuple[Choice, ...]

    def choice(self, key: str, under: str = "") -> Choice | None:
        """What was chosen for a setting; None where that was not measured."""
        found = (c for c in self.choices if (c.key, c.under, c.advice) == (key, under, False))
        return next(found, None)


def attention_under(precision: str, autocast: str, *, known: bool) -> str:
    """The `Choice.under` of attention; `known`: an architecture that `batched` is for."""
    return f"{precision} products, autocast {autocast}" + ("" if known else ", other architectures")


def read_tuning(text: str) -> Tuning:
    """The tuning that a file holds. Raises InputError, which says what is wrong with it."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error})") from error
    if not isinstance(tree, dict):
        raise InputError(f"expected an object, found {type(tree).__name__}")
    if tree.get("version") != VERSION:
        raise InputError(f"of version {tree.get('version')!r}, not {VERSION}")
    try:
        return Tuning.model_validate(tree)
    except ValidationError as error:
        raise InputError(explain(error)[0]) from error
