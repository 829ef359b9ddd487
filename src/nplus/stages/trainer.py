"""A model trained on rows, one optimiser step after the other: what SFT, reward and DPO share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import torch

from nplus.batches import Objective
from nplus.config import BatchConfig, OptimConfig
from nplus.metrics import values
from nplus.runs import StageDir
from nplus.seeding import take
from nplus.stages.compute import in_halves, seed_dropout
from nplus.stages.context import Context
from nplus.stages.keeping import Keeper
from nplus.training.optim import Optimizer
from nplus.training.update import Beside, NonFiniteLossError, update

Row = TypeVar("Row")


class Sized(Protocol):
    """A batch that can go to a device."""

    @property
    def slots(self) -> int: ...

    def to(self, device: torch.device | str) -> Self: ...


Micro = TypeVar("Micro", bound=Sized)


class FirstPass(Protocol[Row, Micro]):
    """What a loss reads of its whole minibatch, computed before the step and without gradient."""

    def before(self, rows: Sequence[Row], micros: list[Micro]) -> list[Micro]:
        """The micro-batches of `rows`, each with what its loss reads of all of them. Every process
        calls it with the whole minibatch and finds the same."""
        ...

    def after(self) -> None:
        """The step was taken: keep what lasts beyond it."""
        ...

    def modules(self) -> Mapping[str, torch.nn.Module]:
        """What lasts, by the names that checkpoints have for it."""
        ...


@dataclass(slots=True)
class Trainer(Generic[Row, Micro]):
    """A model, its optimiser and the rows: one `step` per `batch.batch_size` rows.

    A last incomplete batch of all `epochs` is left out, as in the paper (Detail B3's step counts).
    """

    ctx: Context
    name: str
    """The stage's: the order of the rows and what dropout draws hang on it."""
    model: torch.nn.Module
    rows: Sequence[Row]
    micro_batches: Callable[[list[Row], int], list[Micro]]
    """Micro-batches of so many rows, the shortest first."""
    counts: Callable[[Micro], Mapping[str, float]]
    objective: Callable[[Micro], Objective]
    timing: Callable[[Sequence[Micro], float], dict[str, float]]
    """What the journal tells of a step's micro-batches and seconds."""
    epochs: int
    optim: OptimConfig
    batch: BatchConfig
    order: Callable[[int, int], np.ndarray] | None = None
    """`order(start, count)`: which rows come next; None reshuffles them every epoch."""
    part: str = "model"
    """What checkpoints call the model."""
    first_pass: FirstPass[Row, Micro] | None = None
    """For a loss that is coupled across its minibatch."""
    total: int = field(init=False)
    optimizer: Optimizer = field(init=False)
    parameters: int = field(init=False)
    beside: Beside[Micro] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.total = max(1, self.epochs * len(self.rows) // self.batch.batch_size)
        self.optimizer = Optimizer(self.model.named_parameters(), self.optim)
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def step(self, number: int, keeper: Keeper | None = None) -> dict[str, float] | None:
        """Optimiser step `number` (0-based); its metrics, the learning rate and the time.

        None for a step that `keeper` has left out; without one that is a NonFiniteLossError.
        """
        began = time.monotonic()
        ranks = self.ctx.topology
        seed_dropout(self.ctx.config.model, self.ctx.seed, self.name, number, ranks.rank)
        size = min(self.batch.batch_size, len(self.rows))
        start = number * self.batch.batch_size
        if self.order is None:
            index = take(self.ctx.seed, self.name, len(self.rows), start, size)
        else:
            index = self.order(start, size)
        rows = [self.rows[i] for i in index]
        micros, shared = self._micros(rows)
        told = micros if self.first_pass is None else self.first_pass.before(rows, micros)
        lr = self.optimizer.follow(number, self.total)
        try:
            metrics = update(
                told,
                counts=self.counts,
                objectives=[self._on_device],
                optimizers=[self.optimizer],
                topology=ranks,
                beside=self._beside() if shared else None,
            )
        except NonFiniteLossError as error:
            if keeper is None:
                raise
            keeper.skip(number, error, micros)
            return None
        if self.first_pass is not None:
            self.first_pass.after()
        return {**values(metrics), "lr": lr, **self.timing(micros, time.monotonic() - began)}

    def _on_device(self, micro: Micro) -> Objective:
        return self.objective(micro.to(self.ctx.device))

    def _micros(self, rows: list[Row]) -> tuple[list[Micro], bool]:
        """Micro-batches of the step, for all processes, and whether two share those of this one:
        there are some for each."""
        cfg, size = self.ctx.config, min(self.batch.micro_batch_size, len(rows))
        micros, hands = self.micro_batches(rows, size), self.ctx.topology.world
        work = self.parameters * sum(micro.slots for micro in micros) / hands
        shared = in_halves(cfg.compute, self.ctx.device, cfg.model, work)
        hands *= 2 if shared else 1
        if len(micros) < hands:
            micros = self.micro_batches(rows, -(-len(rows) // hands))
        return micros, shared

    def _beside(self) -> Beside[Micro]:
        if self.beside is None:
            self.beside = Beside([self._on_device], [self.optimizer])
        return self.beside

    def close(self) -> None:
        """End the other process, if there is one."""
        if self.beside is not None:
            self.beside.partner.close()
            self.beside = None

    def run(
        self, where: StageDir, *, save_steps: int, shown: Mapping[str, str]
    ) -> dict[str, float]:
        """All steps, from the last checkpoint on; `shown` names the metrics beside the bar."""
        with closing(self):
            return self._run(where, save_steps, shown)

    def _run(self, where: StageDir, save_steps: int, shown: Mapping[str, str]) -> dict[str, float]:
        modules: dict[str, torch.nn.Module] = {self.part: self.model}
        if self.first_pass is not None:
            modules |= self.first_pass.modules()
        optimizers = {self.part: self.optimizer}
        keeper = Keeper(where, self.ctx, modules, optimizers, save_steps, self.optim.max_skips)
        first = keeper.begin()
        bar = self.ctx.progress(self.name, self.total - first)
        with bar as ticker, self.ctx.stop.deferred():
            for number in range(first, self.total):
                if found := self.step(number, keeper):
                    keeper.moved()
                    where.journal(number + 1, found)
                    self.ctx.watch.step(self.name, where, number + 1, found)
                    ticker.tick(**{label: found[name] for label, name in shown.items()})
                keeper.after(number + 1)
        keeper.require_steps()
        return {"steps": self.total, "loss": where.last_metrics()["loss/train"]}
