"""Rank, world size and the collectives that stages ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor

PATIENCE = timedelta(days=7)
"""How long a process waits for the others: the first may write data or evaluate for hours. One that
dies is noticed at once, by its closed connection."""


class Collectives(Protocol):
    """What all processes do together; each calls it, in the same order."""

    def sum(self, x: Tensor) -> Tensor:
        """The sum over processes, to the bit the same in each."""
        ...

    def gather(self, what: Any) -> list[Any]:
        """What each process gave, by rank, in each."""
        ...

    def broadcast(self, what: Any) -> Any:
        """What the first process gave, in each."""
        ...


class Local:
    """One process: every collective is the identity."""

    def sum(self, x: Tensor) -> Tensor:
        return x

    def gather(self, what: Any) -> list[Any]:
        return [what]

    def broadcast(self, what: Any) -> Any:
        return what


class Connected:
    """torch.distributed's default group, and one of gloo for objects; made by all processes."""

    def __init__(self) -> None:
        self._objects = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)

    def sum(self, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    def gather(self, what: Any) -> list[Any]:
        found: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, what, group=self._objects)
        return found

    def broadcast(self, what: Any) -> Any:
        box = [what]
        torch.distributed.broadcast_object_list(box, src=0, group=self._objects)
        return box[0]


@dataclass(frozen=True, slots=True)
class Topology:
    """This process among all of them."""

    rank: int = 0
    world: int = 1
    collectives: Collectives = field(default_factory=Local)

    @property
    def leads(self) -> bool:
        """Whether this is the first process: the one that writes."""
        return self.rank == 0

    def share(self, sizes: Sequence[float]) -> list[int]:
        """Which of some pieces of work this process does (`dealt`)."""
        return dealt(sizes, self.world)[self.rank]


def dealt(sizes: Sequence[float], hands: int) -> list[list[int]]:
    """Pieces of work by who does them: the largest first, each to who has least to do."""
    found: list[list[int]] = [[] for _ in range(hands)]
    load = [0.0] * hands
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = load.index(min(load))
        found[least].append(i)
        load[least] += sizes[i]
    return [sorted(hand) for hand in found]


def is_told() -> bool:
    """Whether a launcher (torchrun, or `nplus run --processes`) told this process of others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def connected(device: str = "cpu", **told: Any) -> Iterator[Topology]:
    """This process among those that a launcher started; alone where there is none.

    The launcher tells by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, or by `told`, which goes to
    `init_process_group`. With `device="cuda"` each process takes the GPU of its LOCAL_RANK.
    """
    if not told and not is_told():
        yield Topology()
        return
    backend = "gloo"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, timeout=PATIENCE, **told)
    try:
        yield Topology(
            torch.distributed.get_rank(), torch.distributed.get_world_size(), Connected()
        )
    finally:
        torch.distributed.destroy_process_group()
