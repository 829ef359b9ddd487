"""A finding: a kind that was seen, with the numbers it rests on; an event in a stage's journal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nplus.findings.kinds import SEVERITIES, Severity, kind_of

EVENT = "finding"
"""The kind of event that a finding is in a stage's journal."""

RELATIVES = {
    "reinforce": {"ppo.num_ppo_epochs": "reinforce.num_iterations"},
    "online_dpo": {
        "ppo.num_ppo_epochs": "online_dpo.num_iterations",
        "ppo.kl_coef": "online_dpo.beta",
        ", set ppo.kl_target,": ",",
        "; ppo.kl_estimator=k3 hides the sign, not the cause": "",
    },
}
"""What PPO's mends say otherwise in the stages that share its rollout; `ppo.` is the stage's name
in the rest."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A kind, seen in a stage at a step (0: before the first)."""

    name: str
    severity: Severity
    said: str
    """What was seen, with its numbers."""
    cause: str
    mend: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    stage: str = ""
    step: int = 0

    @property
    def place(self) -> str:
        """`ppo, step 12`; empty where it belongs to no stage."""
        return f"{self.stage}, step {self.step}" if self.stage and self.step else self.stage

    @property
    def line(self) -> str:
        """All of it in one line."""
        place = f" ({self.place})" if self.place else ""
        return (
            f"doctor: {self.severity} {self.name}{place}: {self.said}. "
            f"Cause: {self.cause} Mend: {self.mend}"
        )

    def seen_in(self, stage: str, step: int) -> Finding:
        """The finding as one of `stage` at `step`, whose mend names the stage's own keys."""
        mend = self.mend
        for ours, theirs in RELATIVES.get(stage, {}).items():
            mend = mend.replace(ours, theirs)
        if stage in RELATIVES:
            mend = mend.replace("ppo.", f"{stage}.")
        return replace(self, mend=mend, stage=stage, step=step)

    def row(self) -> dict[str, Any]:
        """As JSON has it; a number that is not finite is null."""
        return {
            "name": self.name,
            "severity": self.severity,
            "stage": self.stage,
            "step": self.step,
            "said": self.said,
            "cause": self.cause,
            "mend": self.mend,
            "numbers": {k: v if math.isfinite(v) else None for k, v in self.numbers.items()},
        }


def found(
    name: str,
    said: str,
    *,
    stage: str = "",
    step: int = 0,
    severity: Severity | None = None,
    **numbers: float,
) -> Finding:
    """A finding of kind `name`: what was `said`, and the numbers it rests on."""
    kind = kind_of(name)
    return Finding(
        name,
        severity or kind.severity,
        said,
        kind.cause,
        kind.mend,
        {key: float(value) for key, value in numbers.items()},
        stage,
        step,
    )


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first, else in their order."""
    return sorted(findings, key=lambda f: SEVERITIES.index(f.severity))


def read_findings(journal: Path, stage: str) -> Iterator[Finding]:
    """The findings that a stage's journal holds; lines torn by a dying process are left out."""
    if not journal.is_file():
        return
    for line in journal.read_text(encoding="utf-8", errors="replace").split("\n"):
        if f'"{EVENT}"' not in line:
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and row.get("event") == EVENT:
            yield _of_row(row, stage)


def _of_row(row: Mapping[str, Any], stage: str) -> Finding:
    severity = row.get("severity")
    numbers = row.get("numbers") or {}
    return Finding(
        name=str(row.get("name", "")),
        severity=severity if severity in SEVERITIES else "note",
        said=str(row.get("said", "")),
        cause=str(row.get("cause", "")),
        mend=str(row.get("mend", "")),
        numbers={str(k): math.nan if v is None else float(v) for k, v in numbers.items()},
        stage=stage,
        step=int(row.get("step", 0)),
    )
