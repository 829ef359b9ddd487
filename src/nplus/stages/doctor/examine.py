"""The three examinations of `nplus doctor`: a machine, a recipe on it, and a run on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from nplus.config import RunConfig
from nplus.config.load import read_config
from nplus.data.tokens import Codec, TextRules
from nplus.findings import KINDS, Finding, by_severity, found, read_findings
from nplus.models.files import load_causal_lm, model_source, require_weights
from nplus.models.golden import FILE, TEXTS, GoldenScoreError
from nplus.models.scalar import ScalarModel
from nplus.records import InputError
from nplus.runs import RunRoot, StageDir
from nplus.stages.compute import device_name, resolve_device
from nplus.stages.context import Context
from nplus.stages.doctor.bounds import precision_of, precisions_of
from nplus.stages.doctor.environment import (
    facts,
    machine_findings,
    need_findings,
    this_machine,
)
from nplus.stages.doctor.monitors import journal_findings
from nplus.stages.doctor.probes import active_dropout, score_invariance, shifted_positions
from nplus.stages.doctor.settings import settings_findings
from nplus.stages.doctor.text import ROWS, text_findings, tokenizer_findings
from nplus.stages.doctor.windows import append
from nplus.stages.tuning.settle import settle

LOOKS = 200
"""A finished journal is looked at so many times, to tell when something first appeared."""
POLICIES = ("sft", "ppo", "dpo", "reinforce", "online_dpo")
WHOLE = {kind.name for kind in KINDS if kind.when in ("settings", "environment", "text")}
"""Kinds that belong to the whole run, whichever stage's journal holds them."""


@dataclass(slots=True)
class Examination:
    """What was looked at, and what was found; one finding of a kind in a stage."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    looked_at: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def look(self, what: str, findings: Iterable[Finding], stage: str = "") -> None:
        """Take in what a look at `what` has found."""
        self.looked_at.append(what)
        for finding in findings:
            placed = _placed(finding, finding.stage or stage)
            if _key(placed) not in map(_key, self.findings):
                self.findings.append(placed)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "facts": dict(self.facts),
            "looked_at": self.looked_at,
            "findings": [finding.row() for finding in by_severity(self.findings)],
        }


def _key(finding: Finding) -> tuple[str, str]:
    """What tells findings apart: settings, text and machine are those of the whole run."""
    return finding.name, "" if finding.name in WHOLE else finding.stage


def _placed(finding: Finding, stage: str) -> Finding:
    row = finding.row() | {"stage": stage, "numbers": finding.numbers}
    return Finding(**row)


def examine_machine(where: Path, device: str = "auto") -> Examination:
    """Versions, threads, memory and disk."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    made, machine = Examination(), this_machine(device, where)
    made.facts += facts(machine)
    made.look("the machine", machine_findings(machine))
    return made


def examine_recipe(config: RunConfig, where: Path) -> Examination:
    """The machine against the recipe, its settings, and its model where that is local.

    `where` is the directory that a run of it would have. Raises InputError where the recipe cannot
    run.
    """
    config = settle(config, {}).config
    resolve_device(config.compute)
    disable_progress_bar()
    made = examine_machine(where, device_name(config.compute))
    machine = this_machine(device_name(config.compute), where)
    made.look("memory and disk", need_findings(machine, config, config.stage_names()))
    made.look("settings", settings_findings(config))
    source = None if config.model.size is not None else model_source(config.model)
    if isinstance(source, Path):
        require_weights(source)
        codec = Codec.load(
            source,
            pad_token=config.tokenizer.pad_token,
            trust_remote_code=config.model.trust_remote_code,
        ).with_rules(TextRules.of(config.data, config.tokenizer))
        made.look("tokenizer", tokenizer_findings(codec))
        policy = load_causal_lm(config.model)
        row_T = torch.tensor(codec.encode(TEXTS[2]))
        shifted = shifted_positions(
            policy, row_T, len(row_T) - 1, pad_id=0, precision=precision_of(config)
        )
        made.look("model", [shifted] if shifted else [])
    return made


def examine_run(root: RunRoot) -> Examination:
    """The machine, the settings, the journals, the text and the networks of a run.

    Raises InputError where `root` is no run or of another version.
    """
    index = root.index()
    config = read_config(index["config"], str(root.index_path))
    disable_progress_bar()
    made = examine_machine(root.path, device_name(config.compute))
    made.look("settings", settings_findings(config))
    dirs = root.stages()
    for name, where in dirs.items():
        journal = list(read_findings(where.journal_path, name))
        made.look(f"journal of {name}", [*journal, *_replayed(name, where, config)])
    done = {name: where for name, where in dirs.items() if _complete(where)}
    if "data" not in done:
        return made
    device = torch.device(device_name(config.compute))
    ctx = Context(config=config, device=device, console=Console(quiet=True), dirs=done)
    rows = ctx.data.demonstrations("train")[:ROWS]
    made.look("text", text_findings(ctx.codec, rows, config))
    ids = [
        [*query, *response]
        for query, response in ctx.codec.encode_pairs(
            [row.query for row in rows[:4]], [row.response for row in rows[:4]]
        )
    ]
    for name in POLICIES:
        if name in done:
            made.look(f"policy of {name}", _policy(ctx, name, ids[0]), name)
    for name, folder in (("reward", "model"), ("ppo", "critic")):
        if name in done:
            path = done[name].path / folder
            made.look(f"{folder} of {name}", _scalar(ctx, path, ids), name)
    return made


def _complete(where: StageDir) -> bool:
    manifest = where.manifest()
    return manifest is not None and manifest.status == "complete"


def _replayed(name: str, where: StageDir, config: RunConfig) -> Iterator[Finding]:
    """What the curves show, at the step where it first does."""
    rows = [(int(row["step"]), row["metrics"]) for row in where.journal_rows()]
    precisions = precisions_of(config, name)
    stride = max(1, len(rows) // LOOKS)
    columns: dict[str, list[float]] = {}
    seen: set[str] = set()
    for count, (step, metrics) in enumerate(rows):
        append(columns, metrics, count)
        if count % stride and count != len(rows) - 1:
            continue
        for finding in journal_findings(name, columns, *precisions):
            if finding.name not in seen:
                seen.add(finding.name)
                placed: Mapping[str, Any] = finding.row() | {"numbers": finding.numbers}
                yield Finding(**{**placed, "stage": name, "step": finding.step or step})


def _policy(ctx: Context, name: str, row: list[int]) -> Iterator[Finding]:
    try:
        policy = ctx.policy(name)
    except InputError as error:
        yield found("model_broken", str(error))
        return
    looked: tuple[Callable[[], Finding | None], ...] = (
        lambda: active_dropout({"the policy": policy}),
        lambda: shifted_positions(
            policy,
            torch.tensor(row, device=ctx.device),
            len(row) - 1,
            pad_id=ctx.codec.pad_id,
            precision=precision_of(ctx.config),
        ),
    )
    yield from (finding for look in looked if (finding := look()) is not None)


def _scalar(ctx: Context, path: Path, rows: list[list[int]]) -> Iterator[Finding]:
    """A reward model or critic: its golden scores, and its scores in a batch."""
    try:
        model: ScalarModel = ctx.scalar(path)
    except GoldenScoreError as error:
        yield found(
            "golden_mismatch",
            f"{path.parent.name}/{path.name}: off by up to {error.largest:.3g}, where rounding "
            f"explains {error.bound:.3g}",
            largest=error.largest,
            bound=error.bound,
        )
        return
    except InputError as error:
        yield found("model_broken", str(error))
        return
    if not (path / FILE).is_file():
        yield found("golden_missing", f"{path.parent.name}/{path.name} has no {FILE}")
    unstable = score_invariance(
        model, rows, pad_id=ctx.codec.pad_id, precision=precision_of(ctx.config)
    )
    if unstable is not None:
        yield unstable
