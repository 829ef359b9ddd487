"""The layout of a run directory: the only module that knows file names in a run.

runs/<name>/run.json                 recipe, resolved config, state of every stage
runs/<name>/report.html
runs/<name>/<stage>-<key8>/
    manifest.json    journal.jsonl    samples/    checkpoints/step_N/    logs/
    data_check.json of a stage that reads or makes data, and the artefact:
    data/ | model/ | completions.jsonl | comparisons.jsonl | judgements.jsonl | table.jsonl ...
runs/<name>/against-<key8>/          completions from elsewhere, set against the run's
    manifest.json    judgements.jsonl
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nplus.records import InputError
from nplus.runs.lock import is_vacant
from nplus.runs.manifest import Manifest, write_json


@dataclass(frozen=True, slots=True)
class StageDir:
    """One stage's directory."""

    path: Path

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def journal_path(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def critic(self) -> Path:
        return self.path / "critic"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def completions(self) -> Path:
        return self.path / "completions.jsonl"

    @property
    def comparisons(self) -> Path:
        return self.path / "comparisons.jsonl"

    @property
    def replies(self) -> Path:
        return self.path / "replies.jsonl"

    @property
    def judgements(self) -> Path:
        return self.path / "judgements.jsonl"

    @property
    def margins(self) -> Path:
        return self.path / "margins.jsonl"

    @property
    def table(self) -> Path:
        return self.path / "table.jsonl"

    @property
    def token_view(self) -> Path:
        return self.path / "token_view.jsonl"

    @property
    def data_check_path(self) -> Path:
        return self.path / "data_check.json"

    def write_data_check(self, report: Mapping[str, Any]) -> None:
        """What `nplus data check` found in this stage's data."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.data_check_path, report)

    def data_check(self) -> dict[str, Any] | None:
        """What was found, or None where nothing was checked."""
        if not self.data_check_path.is_file():
            return None
        report: dict[str, Any] = json.loads(self.data_check_path.read_text(encoding="utf-8"))
        return report

    def manifest(self) -> Manifest | None:
        """The stage's manifest, or None before it ran."""
        return Manifest.read(self.manifest_path) if self.manifest_path.is_file() else None

    def complete(self, key: str) -> bool:
        """Whether this stage has finished with exactly this key."""
        found = self.manifest()
        return found is not None and found.status == "complete" and found.key == key

    def drop_unfinished(self) -> None:
        """Remove the artefacts of an attempt that did not finish; checkpoints and journal stay."""
        for artefact in (self.model, self.critic, self.data):
            shutil.rmtree(artefact, ignore_errors=True)
        self.data_check_path.unlink(missing_ok=True)

    def journal(self, step: int, metrics: Mapping[str, float], **extra: Any) -> None:
        """Append one line of metrics; the journal is the only source of curves."""
        self._append({"step": step, "time": time.time(), "metrics": dict(metrics), **extra})

    def event(self, kind: str, **what: Any) -> None:
        """Append an event (started, resumed, checkpoint, finished...)."""
        self._append({"time": time.time(), "event": kind, **what})

    def _append(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False) + "\n"
        with self.journal_path.open("a+b") as out:
            # a process that died while writing leaves a torn line: begin a new one after it
            if out.tell() and os.pread(out.fileno(), 1, out.tell() - 1) != b"\n":
                line = "\n" + line
            out.write(line.encode())

    def journal_rows(self) -> Iterator[dict[str, Any]]:
        """The metric lines so far, in order."""
        if not self.journal_path.is_file():
            return
        for _, row in self._journal_lines():
            if "metrics" in row:
                yield row

    def _journal_lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """`(line, object)` of the journal, without lines torn by a process that died."""
        text = self.journal_path.read_text(encoding="utf-8", errors="replace")
        for line in text.split("\n"):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield line, row

    def last_metrics(self) -> dict[str, float]:
        """The metrics of the last step in the journal."""
        metrics: dict[str, float] = list(self.journal_rows())[-1]["metrics"]
        return metrics

    def rewind_journal(self, step: int) -> None:
        """Drop metric lines after `step`: a resumed stage writes them again."""
        if not self.journal_path.is_file():
            return
        kept = [line for line, row in self._journal_lines() if row.get("step", 0) <= step]
        aside = self.journal_path.with_name(f".journal.{os.getpid()}.tmp")
        aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        aside.replace(self.journal_path)

    def write_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Readable completions of one step, as JSONL."""
        self.samples.mkdir(exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.samples / f"step_{step:06d}.jsonl").write_text(text, encoding="utf-8")

    def read_samples(self) -> dict[int, list[dict[str, Any]]]:
        """`step -> rows` of everything `write_samples` wrote."""
        found = {}
        for file in sorted(self.samples.glob("step_*.jsonl")) if self.samples.is_dir() else []:
            lines = file.read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line]
            found[int(file.stem.removeprefix("step_"))] = rows
        return found


@dataclass(frozen=True, slots=True)
class RunRoot:
    """A whole run: `runs/<name>`."""

    path: Path

    @property
    def index_path(self) -> Path:
        return self.path / "run.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def stage(self, name: str, key: str) -> StageDir:
        return StageDir(self.path / f"{name}-{key[:8]}")

    def index(self) -> dict[str, Any]:
        """`{recipe, config, stages: {name: directory name}}` of the latest invocation, and `auto`
        where some invocation left settings to it: what they came to, by dotted key."""
        if not self.index_path.is_file():
            raise InputError(f"{self.path}: not a run directory (no {self.index_path.name})")
        index: dict[str, Any] = json.loads(self.index_path.read_text(encoding="utf-8"))
        return index

    def stages(self) -> dict[str, StageDir]:
        """The stages of the latest invocation, in order."""
        return {name: StageDir(self.path / where) for name, where in self.index()["stages"].items()}

    def against(self, key: str) -> StageDir:
        """Where a comparison with completions from elsewhere lies; no stage of the run."""
        return self.stage("against", key)

    def all_against(self) -> list[StageDir]:
        """The finished comparisons with completions from elsewhere, oldest first."""
        found = [StageDir(path) for path in self.path.glob("against-*")]
        manifests = [(where.manifest(), where) for where in found]
        done = [(m.finished, w.path.name, w) for m, w in manifests if m and m.status == "complete"]
        return [where for _, _, where in sorted(done, key=lambda item: item[:2])]

    def open(self, recipe: str) -> None:
        """Refuse a directory that holds anything else; nothing is written by this check."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file; name another directory with --out")
        if is_vacant(self.path):
            return
        if not self.index_path.is_file():
            raise InputError(
                f"{self.path}: holds files that are not a run; name another directory with --out"
            )
        found = self.index()["recipe"]
        if found != recipe:
            raise InputError(
                f"{self.path}: holds a run of recipe {found!r}, not {recipe!r}; "
                "name another directory with --out"
            )

    def forget(self) -> None:
        """Undo the first `write_index`: no index, and no directory where nothing else is in it."""
        self.index_path.unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def autos(self) -> dict[str, Any]:
        """What settings left to `auto` came to in this run; empty before it began."""
        found: dict[str, Any] = self.index().get("auto", {}) if self.index_path.is_file() else {}
        return found

    def write_index(
        self,
        recipe: str,
        config: Mapping[str, Any],
        stages: Mapping[str, str],
        auto: Mapping[str, Any] | None = None,
    ) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        index = {"recipe": recipe, "config": config, "stages": dict(stages)}
        if auto:
            index["auto"] = dict(auto)
        write_json(self.index_path, index)
