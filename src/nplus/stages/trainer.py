"""A model trained on rows, one optimiser step after the other: what SFT, reward and DPO share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch

from nplus.batches import Objective
from nplus.config import BatchConfig, OptimConfig
from nplus.metrics import values
from nplus.runs import StageDir
from nplus.seeding import take
from nplus.stages.compute import seed_dropout, two_at_a_time
from nplus.stages.context import Context
from nplus.training.checkpoint import resume, save_checkpoint
from nplus.training.optim import Optimizer, schedule
from nplus.training.twin import Twin
from nplus.training.update import Helper, update

Row = TypeVar("Row")


class Movable(Protocol):
    """A batch that can go to a device."""

    def to(self, device: torch.device | str) -> Self: ...


Micro = TypeVar("Micro", bound=Movable)


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
    objective_of: Callable[[Any], Callable[[Micro], Objective]]
    """The objective on the model, or on a twin of it in another thread."""
    timing: Callable[[Sequence[Micro], float], dict[str, float]]
    """What the journal tells of a step's micro-batches and seconds."""
    epochs: int
    optim: OptimConfig
    batch: BatchConfig
    order: Callable[[int, int], np.ndarray] | None = None
    """`order(start, count)`: which rows come next; None reshuffles them every epoch."""
    part: str = "model"
    """What checkpoints call the model."""
    total: int = field(init=False)
    optimizer: Optimizer = field(init=False)
    objective: Callable[[Micro], Objective] = field(init=False)
    helper: Helper[Micro] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.total = max(1, self.epochs * len(self.rows) // self.batch.batch_size)
        self.optimizer = Optimizer(self.model.named_parameters(), self.optim)
        self.objective = self.objective_of(self.model)

    def step(self, number: int) -> dict[str, float]:
        """Optimiser step `number` (0-based); its metrics, the learning rate and the time."""
        began = time.monotonic()
        seed_dropout(self.ctx.config.model, self.ctx.seed, self.name, number)
        size = min(self.batch.batch_size, len(self.rows))
        start = number * self.batch.batch_size
        if self.order is None:
            index = take(self.ctx.seed, self.name, len(self.rows), start, size)
        else:
            index = self.order(start, size)
        micros = [m.to(self.ctx.device) for m in self._micros([self.rows[i] for i in index])]
        factor = schedule(
            self.optim.lr_scheduler_type, number, self.total, warmup=self.optim.warmup_steps
        )
        lr = self.optimizer.set_factor(factor)
        metrics = update(
            micros,
            counts=self.counts,
            objectives=[self.objective],
            optimizers=[self.optimizer],
            helper=self.helper,
        )
        return {**values(metrics), "lr": lr, **self.timing(micros, time.monotonic() - began)}

    def _micros(self, rows: list[Row]) -> list[Micro]:
        """The micro-batches of a step: in two halves each, where two are computed at a time."""
        size, cfg = self.batch.micro_batch_size, self.ctx.config
        if size == 1 or not two_at_a_time(cfg.compute, self.ctx.device, cfg.model):
            return self.micro_batches(rows, size)
        micros = self.micro_batches(rows, -(-size // 2))
        if self.helper is None:
            with torch.no_grad():  # What is tried on first use is tried before there are two.
                self.objective(micros[0].to(self.ctx.device))
            twin = Twin(self.model)
            self.helper = Helper(twin, self.objective_of(twin.module))
        return micros

    def run(
        self, where: StageDir, *, save_steps: int, shown: Mapping[str, str]
    ) -> dict[str, float]:
        """All steps, from the last checkpoint on; `shown` names the metrics beside the bar."""
        modules, optimizers = {self.part: self.model}, {self.part: self.optimizer}
        first = resume(where, modules=modules, optimizers=optimizers)
        with self.ctx.progress(self.name, self.total - first) as bar:
            for number in range(first, self.total):
                found = self.step(number)
                where.journal(number + 1, found)
                bar.tick(**{label: found[name] for label, name in shown.items()})
                if save_steps and (number + 1) % save_steps == 0:
                    save_checkpoint(
                        where.checkpoints,
                        number + 1,
                        modules=modules,
                        optimizers=optimizers,
                        cursor={},
                    )
        return {"steps": self.total, "loss": where.last_metrics()["loss/train"]}
