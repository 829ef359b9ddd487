"""What every training loop does between steps: checkpoints, signals, steps left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from nplus.records import StopError
from nplus.runs import StageDir, StoppedBySignal
from nplus.stages.context import Context
from nplus.training.checkpoint import Checkpoints
from nplus.training.optim import Optimizer

MEND = "Lower the learning rate, set max_grad_norm, or take bfloat16 off (autocast=none)"
"""What to change where steps are not finite."""


@dataclass(slots=True)
class Keeper:
    """A stage's steps: where an attempt begins, and what is kept of it.

    `begin`, then after every step `after`; where a step was left out, `skip` first; at the end
    `require_steps`.
    """

    where: StageDir
    ctx: Context
    modules: Mapping[str, torch.nn.Module]
    optimizers: Mapping[str, Optimizer]
    save_steps: int
    max_skips: int
    policy_steps: int = 0
    """Keep the module `policy` every so many steps; 0 keeps none."""
    skips: int = 0
    """Steps left out in a row so far."""
    checkpoints: Checkpoints = field(init=False)

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(
            self.where,
            self.modules,
            self.optimizers,
            self.ctx.config.checkpoint,
            topology=self.ctx.topology,
            save_steps=self.save_steps,
            tell=self.ctx.warn,
        )

    def begin(self) -> int:
        """Steps that are done already: those of the newest intact checkpoint, which is loaded."""
        cursor = self.checkpoints.resume()
        self.skips = cursor.get("skips", 0)
        return int(cursor["step"])

    def after(self, step: int) -> None:
        """`step` steps are done: keep the policy, and make a checkpoint, where one is due. Raises
        StoppedBySignal, with a checkpoint made, where a signal came."""
        if self.policy_steps and step % self.policy_steps == 0:
            policy = self.modules["policy"]
            assert isinstance(policy, PreTrainedModel)
            self.ctx.keep(policy, self.where.policy(step))
        topology, wish = self.ctx.topology, self.ctx.stop.wish
        if topology.world > 1:
            wish = max(topology.collectives.gather(wish))
        if wish or self.checkpoints.is_due(step):
            self.checkpoints.save(step, skips=self.skips)
        if wish:
            raise StoppedBySignal(wish)

    def moved(self) -> None:
        """A step was taken."""
        self.skips = 0

    def skip(self, step: int, error: Exception, micros: Sequence[Any]) -> None:
        """Step `step` (0-based) is left out: keep its batch and say why.

        Raises StopError for more than `max_skips` in a row; the weights are those before the first.
        """
        self.skips += 1
        name = f"step_{step + 1:06d}_{self.skips}.safetensors"  # PPO's has many minibatches
        self.where.skipped.mkdir(exist_ok=True)
        save_file(flat(micros), self.where.skipped / name)
        self.where.event("skipped", step=step + 1, why=str(error), batch=f"skipped/{name}")
        self.ctx.warn(f"step {step + 1} left out: {error}")
        if self.skips > self.max_skips:
            stands = self.where.checkpoints.name
            raise StopError(
                f"{self.where.path}: {self.skips} steps in a row had a loss or gradient that is "
                f"not finite ({error}); the batches are in {self.where.skipped.name}/, the last "
                f"good state in {stands}/. {MEND}"
            )

    def require_steps(self) -> None:
        """Raises StopError where all steps of the stage were left out, so that nothing was
        trained."""
        if not self.where.skipped.is_dir():
            return
        if not any("grad_norm" in row["metrics"] for row in self.where.journal_rows()):
            raise StopError(
                f"{self.where.path}: every step of the stage had a loss or gradient that is not "
                "finite and was left out, so the weights are those that it began with; the "
                f"batches are in {self.where.skipped.name}/. {MEND}"
            )


def flat(micros: Sequence[Any]) -> dict[str, Tensor]:
    """The tensors of some batches by `number.field`."""
    found = {}
    for i, micro in enumerate(micros):
        for each in fields(micro):
            value = getattr(micro, each.name)
            if isinstance(value, Tensor):
                found[f"{i}.{each.name}"] = value.detach().cpu().clone().contiguous()
    return found
