"""Reads a run directory into one frozen structure; whatever is not there yet is simply absent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nplus.findings import Finding, by_severity, read_findings
from nplus.records import InputError, parse_lines
from nplus.report.shapes import ROUNDS, ROW, VIEW, odd, require_results
from nplus.runs import Manifest, RunRoot, StageDir

FIRST = (
    "data",
    "prompts",
    "pretrain",
    "sft",
    "sample",
    "label",
    "dpo",
    "preference",
    "reward",
)
ONLINE = ("ppo", "reinforce", "online_dpo")
LAST = ("online", *ONLINE, "evaluate")
"""Stages in the order of a run; the rounds of the online loop stand between, as they came."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Curve:
    """One journalled metric: finite values only, in step order."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def last(self) -> float:
        return self.values[-1]

    def tail(self, share: float = 0.1) -> float:
        """Mean of the last `share` of the values (at least one): steadier than the last."""
        count = max(1, int(len(self.values) * share))
        return sum(self.values[-count:]) / count


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage as it stands. `manifest` is None before it ran."""

    name: str
    path: Path
    manifest: Manifest | None
    curves: Mapping[str, Curve]
    samples: Mapping[int, list[dict[str, Any]]]

    @property
    def status(self) -> str:
        return self.manifest.status if self.manifest else "not started"

    @property
    def results(self) -> Row:
        return self.manifest.results if self.manifest else {}

    @property
    def step(self) -> int:
        """The last step in the journal."""
        return max((c.steps[-1] for c in self.curves.values()), default=0)


@dataclass(frozen=True, slots=True)
class RunView:
    """A whole run. `notes` say what could not be read."""

    path: Path
    recipe: str
    config: Row
    stages: Mapping[str, StageView]
    table: tuple[Row, ...]
    notes: tuple[str, ...]
    tokens: tuple[Row, ...] = ()
    """The token view's rows (Detail H5)."""
    against: tuple[Row, ...] = ()
    """Results of comparisons with completions from elsewhere, of this evaluation."""
    checks: Mapping[str, Row] = field(default_factory=dict)
    """What `nplus data check` found in a stage's data."""
    findings: tuple[Finding, ...] = ()
    """What the doctor found during the run, the worst first."""

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def evaluation(self) -> Row:
        """The results of `evaluate`, empty until it is complete."""
        stage = self.stages.get("evaluate")
        return stage.results if stage else {}

    @property
    def complete(self) -> bool:
        return bool(self.evaluation) and all(s.status == "complete" for s in self.stages.values())

    @property
    def online(self) -> str:
        """The stage that trained on its own responses: PPO, or the first of the others."""
        return next((name for name in ONLINE if name in self.stages), ONLINE[0])

    @property
    def algorithm(self) -> str:
        """What the stage `reinforce` is, in one word; empty without it."""
        known = "reinforce" in self.stages
        return str((self.config.get("reinforce") or {}).get("algorithm", "")) if known else ""

    def curve(self, stage: str, metric: str) -> Curve | None:
        view = self.stages.get(stage)
        return view.curves.get(metric) if view else None


def number(value: Any) -> float | None:
    """A finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def collect(root: RunRoot) -> RunView:
    """Everything the report shows; an `InputError` when `root` holds no run."""
    index = root.index()
    notes: list[str] = []
    dirs = root.stages()
    between = [name for name in dirs if name not in (*FIRST, *LAST)]
    names = [name for name in (*FIRST, *between, *LAST) if name in dirs]
    stages = {name: _stage(name, dirs[name], notes) for name in names}
    table: tuple[Row, ...] = ()
    tokens: tuple[Row, ...] = ()
    if "evaluate" in dirs:
        table = tuple(_table(dirs["evaluate"].table, ROW, notes))
        tokens = tuple(_table(dirs["evaluate"].token_view, VIEW, notes))
    checks = dict(_checks(dirs, names, notes))
    return RunView(
        path=root.path,
        recipe=str(index.get("recipe", "")),
        config=index.get("config") or {},
        stages=stages,
        table=table,
        notes=tuple(notes),
        tokens=tokens,
        against=tuple(_against(root, stages.get("evaluate"))),
        checks=checks,
        findings=tuple(_findings(stages.values())),
    )


def _checks(
    dirs: Mapping[str, StageDir], names: Iterable[str], notes: list[str]
) -> Iterator[tuple[str, Row]]:
    for name in names:
        try:
            found = dirs[name].data_check()
        except ValueError:
            notes.append(f"{dirs[name].data_check_path}: is no JSON, so no data check is shown")
            continue
        if found is not None:
            yield name, found


def _findings(stages: Iterable[StageView]) -> list[Finding]:
    """Those that the journals hold; what is said again by a later stage stands once."""
    found = (
        f for stage in stages for f in read_findings(StageDir(stage.path).journal_path, stage.name)
    )
    once = {(finding.name, finding.said): finding for finding in reversed(list(found))}
    return by_severity(reversed(list(once.values())))


def _against(root: RunRoot, evaluation: StageView | None) -> Iterator[Row]:
    """Comparisons that were made with this very evaluation; older ones stay on disk."""
    key = evaluation.manifest.key if evaluation and evaluation.manifest else None
    for where in root.all_against():
        manifest = where.manifest()
        inputs = manifest.inputs if manifest else ()
        if manifest and {"evaluate": key} in [{i["role"]: i["hash"]} for i in inputs]:
            require_results(where.manifest_path, manifest.results)
            yield {**manifest.results, "folder": where.path.name}


def _stage(name: str, where: StageDir, notes: list[str]) -> StageView:
    samples: Mapping[int, list[dict[str, Any]]] = {}
    try:
        samples = where.read_samples()
    except InputError:
        notes.append(f"{where.path.name}/samples: a file is cut short, so no samples are shown")
    manifest = where.manifest()
    if name == "evaluate" and manifest is not None:
        require_results(where.manifest_path, manifest.results)
    if name == "online" and manifest is not None:
        require_results(where.manifest_path, manifest.results, ROUNDS)
    return StageView(name, where.path, manifest, _curves(where), samples)


def _curves(where: StageDir) -> dict[str, Curve]:
    points: dict[str, dict[int, float]] = {}
    for row in where.journal_rows():
        for metric, value in row["metrics"].items():
            if (finite := number(value)) is not None:
                points.setdefault(metric, {})[int(row["step"])] = finite
    return {
        metric: Curve(tuple(sorted(found)), tuple(found[step] for step in sorted(found)))
        for metric, found in points.items()
    }


def _table(path: Path, shape: Any, notes: list[str]) -> Iterator[Row]:
    if not path.is_file():
        return
    try:
        for number, row in parse_lines(path):
            if fault := odd(row, shape):
                notes.append(f"{path.parent.name}/{path.name}: line {number} left out, {fault}")
            else:
                yield row
    except InputError:
        notes.append(f"{path.parent.name}/{path.name}: read up to a line that is cut short")
