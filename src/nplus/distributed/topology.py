"""Rank, world size and the collectives an algorithm may ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


class Collectives(Protocol):
    """Reductions over all processes."""

    def sum(self, x: Tensor) -> Tensor: ...


class Local:
    """One process: every reduction is the identity."""

    def sum(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True, slots=True)
class Topology:
    """This process among all of them."""

    rank: int = 0
    world: int = 1
    collectives: Collectives = field(default_factory=Local)
