"""What a run looks at by itself: the start of its stages, the first rollout, every step.

A finding is printed once, when it first appears, and is an event of the stage's journal. Nothing
here changes a number of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from nplus.config import RunConfig
from nplus.findings import EVENT, Finding, found, read_findings
from nplus.models.golden import FILE
from nplus.runs import StageDir
from nplus.stages.doctor.bounds import precision_of, precisions_of
from nplus.stages.doctor.environment import machine_findings, need_findings, this_machine
from nplus.stages.doctor.monitors import journal_findings
from nplus.stages.doctor.probes import (
    active_dropout,
    sampled_rows,
    sampler_gap,
    score_invariance,
    shifted_positions,
)
from nplus.stages.doctor.settings import settings_findings
from nplus.stages.doctor.text import ROWS, text_findings
from nplus.stages.doctor.windows import append, columns_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from nplus.models.scalar import ScalarModel
    from nplus.stages.context import Context
    from nplus.stages.ppo import Updated

    class Online(Protocol):
        """The networks of an online stage; PPO has a critic too."""

        ctx: Context
        policy: PreTrainedModel
        reference: PreTrainedModel
        reward_model: ScalarModel


STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


@dataclass(slots=True)
class _Curves:
    """The columns of a stage's journal, and the findings that it already holds."""

    columns: dict[str, list[float]]
    seen: set[str]
    count: int


@dataclass(slots=True)
class Watch:
    """Looks and tells. Without a config, or with `doctor.enabled=false`, it does nothing."""

    config: RunConfig | None = None
    console: Console = field(default_factory=lambda: Console(quiet=True))
    _curves: dict[Path, _Curves] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)
    """Findings before the first step of any stage, by name."""
    _began: bool = False
    _read: bool = False

    @property
    def enabled(self) -> bool:
        return self.config is not None and self.config.doctor.enabled

    def watched(
        self, name: str, stage: Callable[[StageDir], Any], ctx: Context
    ) -> Callable[[StageDir], Any]:
        """`stage`, looked at before it begins."""

        def run(where: StageDir) -> Any:
            if self.enabled:
                self._begin(name, where, ctx)
            return stage(where)

        return run

    def step(self, stage: str, where: StageDir, step: int, metrics: Mapping[str, float]) -> None:
        """Look at a stage's curves after a step that its journal has just taken in."""
        if self.enabled:
            curves = self._of(where, stage, metrics)
            assert self.config is not None
            precisions = precisions_of(self.config, stage)
            self._tell(where, stage, step, journal_findings(stage, curves.columns, *precisions))

    def update(
        self, where: StageDir, step: int, trainer: Online, updated: Updated, stage: str = "ppo"
    ) -> None:
        """Look at an update of an online stage, and with the first of this process at the networks
        too."""
        if not self.enabled:
            return
        first = where.path not in self._curves
        self.step(stage, where, step, updated.metrics)
        if first:
            self._tell(where, stage, step, self._networks(trainer, updated, stage))

    # --- what is looked at ----------------------------------------------------------------------

    def _begin(self, name: str, where: StageDir, ctx: Context) -> None:
        config = ctx.config
        if not self._began:
            self._began = True
            stages = config.stage_names()
            left = stages[stages.index(name) :]
            machine = this_machine(ctx.device.type, where.path)
            self._tell_before(where, name, machine_findings(machine))
            self._tell_before(where, name, need_findings(machine, config, left))
            self._tell_before(where, name, settings_findings(config))
        if not self._read and name not in ("data", "pretrain"):
            self._read = True
            rows = ctx.data.demonstrations("train")[:ROWS]
            self._tell_before(where, name, text_findings(ctx.codec, rows, config))

    def _networks(self, trainer: Online, updated: Updated, stage: str) -> Iterator[Finding]:
        """Of an online stage's networks, on rows that they have just answered."""
        ctx, rollout = trainer.ctx, updated.rollout
        precision = precision_of(ctx.config)
        pad_id, generation = ctx.codec.pad_id, rollout.generation
        rows = sampled_rows(generation)
        tokens_BT, mask_BT = generation.sequences()
        row_T = tokens_BT[0][mask_BT[0]]
        width = int(generation.response_mask_BR[0].sum())
        networks = {
            "the policy": trainer.policy,
            "the reference": trainer.reference,
            "the reward model": trainer.reward_model,
        }
        if (critic := getattr(trainer, "critic", None)) is not None:
            networks["the critic"] = critic
        # Older weights' log-probs may differ from the trainer's, and a pair loss reads neither.
        apart = updated.metrics.get("val/staleness") or stage == "online_dpo"
        looked = (
            None if apart else sampler_gap(rollout, precision),
            active_dropout(networks),
            shifted_positions(trainer.policy, row_T, width, pad_id=pad_id, precision=precision),
            score_invariance(trainer.reward_model, rows, pad_id=pad_id, precision=precision),
        )
        yield from (finding for finding in looked if finding is not None)
        path = ctx.dirs["reward"].model
        if not (path / FILE).is_file():
            yield found("golden_missing", f"{path.parent.name}/{path.name} has no {FILE}")

    # --- telling --------------------------------------------------------------------------------

    def _of(self, where: StageDir, stage: str, metrics: Mapping[str, float]) -> _Curves:
        """The stage's curves with `metrics` as their last step."""
        curves = self._curves.get(where.path)
        if curves is None:  # the journal, as far as a resumed stage kept it, and this step
            rows = [row["metrics"] for row in where.journal_rows()]
            seen = {finding.name for finding in read_findings(where.journal_path, stage)}
            curves = _Curves(columns_of(rows), seen, len(rows))
            self._curves[where.path] = curves
        else:
            append(curves.columns, metrics, curves.count)
            curves.count += 1
        return curves

    def _tell(self, where: StageDir, stage: str, step: int, findings: Iterable[Finding]) -> None:
        """Print and journal what is new in this stage."""
        seen = self._curves[where.path].seen
        for finding in findings:
            if finding.name not in seen:
                seen.add(finding.name)
                self._write(where, stage, finding.step or step, finding)

    def _tell_before(self, where: StageDir, stage: str, findings: Iterable[Finding]) -> None:
        """Print what is new in this process, and journal what is new in the stage."""
        for finding in findings:
            if finding.name not in self._told:
                self._told.add(finding.name)
                self._write(where, stage, 0, finding)

    def _write(self, where: StageDir, stage: str, step: int, finding: Finding) -> None:
        placed = finding.seen_in(stage, step)
        where.event(EVENT, **placed.row())
        self.console.print(
            placed.line,
            style=STYLES[finding.severity],
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
