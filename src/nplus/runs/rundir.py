"""The layout of a run directory: the only module that knows file names in a run.

runs/<name>/run.json                 recipe, resolved config, state of every stage
runs/<name>/report.html
runs/<name>/logs/attempt_K/rank_N.log    what all processes but the first print
runs/<name>/<stage>-<key8>/
    manifest.json    journal.jsonl    samples/    checkpoints/step_N/    skipped/
    policies/step_N/ of a stage that keeps its policy along the way
    data_check.json of a stage that reads or makes data, and the artefact:
    data/ | model/ | completions.jsonl | comparisons.jsonl | judgements.jsonl | table.jsonl ...
    responses.jsonl | scores.jsonl | ledger.parquet of a round of the online loop
runs/<name>/against-<key8>/          completions from elsewhere, set against the run's
    manifest.json    judgements.jsonl
runs/<name>/sections-<key8>/         comparisons from elsewhere, as the run's models have them
    manifest.json    margins.jsonl
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nplus.records import InputError, parse_lines, read_object
from nplus.runs.journal import Journal
from nplus.runs.lock import is_vacant, require_makeable
from nplus.runs.manifest import Manifest
from nplus.runs.storage import (
    contents_of,
    replace_bytes,
    require_kinds,
    write_json,
)


@dataclass(frozen=True, slots=True)
class StageDir:
    """One stage's directory.

    Of several processes only the first has the real one. Each other writes to a directory of its
    own, which is thrown away, and reads the checkpoints of the first, whose directory is `lead`.
    """

    path: Path
    lead: Path | None = None

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
        return (self.lead or self.path) / "checkpoints"

    @property
    def skipped(self) -> Path:
        """Batches whose step was left out."""
        return self.path / "skipped"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def policy(self, step: int) -> Path:
        """The policy after `step` updates, where the stage keeps it."""
        return self.path / "policies" / f"step_{step:06d}"

    def policies(self) -> dict[int, Path]:
        """The policies that were kept along the way, by updates done."""
        found = self.path.glob("policies/step_*")
        return {int(path.name.removeprefix("step_")): path for path in sorted(found)}

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
    def prompts(self) -> Path:
        """What the online loop draws its prompts from."""
        return self.path / "prompts.jsonl"

    @property
    def responses(self) -> Path:
        """What a round of the online loop has drawn, a line a prompt."""
        return self.path / "responses.jsonl"

    @property
    def scores(self) -> Path:
        """How its responses were scored, a line a prompt."""
        return self.path / "scores.jsonl"

    @property
    def ledger(self) -> Path:
        """A round's prompts, responses, scores and pairs (`runs/ledger.py`)."""
        return self.path / "ledger.parquet"

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
    def ref_logprobs(self) -> Path:
        """The reference's log-probs of the stage's pairs."""
        return self.path / "ref_logprobs.safetensors"

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

    def artefacts(self) -> tuple[dict[str, Any], ...]:
        """Path, size and hash of every file that is not a checkpoint or the manifest itself."""
        return tuple(
            {"path": name, **one}
            for name, one in contents_of(self.path, self.checkpoints).items()
            if name != self.manifest_path.name
        )

    def records(self) -> dict[Path, bytes]:
        """Manifest and journal as they stand, for `put_back`."""
        return {
            path: path.read_bytes()
            for path in (self.manifest_path, self.journal_path)
            if path.is_file()
        }

    def put_back(self, records: Mapping[Path, bytes]) -> None:
        """Make manifest and journal what they were, unless steps were taken since."""
        journal = records.get(self.journal_path, b"")
        known = {line for line in journal.split(b"\n") if b'"metrics"' in line}
        now = self.journal_path.read_bytes() if self.journal_path.is_file() else b""
        if any(line not in known for line in now.split(b"\n") if b'"metrics"' in line):
            return
        for path, content in records.items():
            replace_bytes(path, content)

    def drop_unfinished(self) -> None:
        """Remove the artefacts of an attempt that did not finish; checkpoints and journal stay."""
        for artefact in (self.model, self.critic, self.data):
            shutil.rmtree(artefact, ignore_errors=True)
        self.data_check_path.unlink(missing_ok=True)

    @property
    def log(self) -> Journal:
        """The stage's metrics and events, line by line."""
        return Journal(self.journal_path, self.checkpoints.name)

    def journal(self, step: int, metrics: Mapping[str, float], **extra: Any) -> None:
        """Append one line of metrics; the journal is the only source of curves."""
        self.log.append({"step": step, "time": time.time(), "metrics": dict(metrics), **extra})

    def event(self, kind: str, **what: Any) -> None:
        """Append an event (started, resumed, checkpoint, finished...)."""
        self.log.append({"time": time.time(), "event": kind, **what})

    def journal_rows(self) -> Iterator[dict[str, Any]]:
        """The metric lines so far, in order."""
        return self.log.rows()

    def last_metrics(self) -> dict[str, float]:
        """The metrics of the last step in the journal."""
        metrics: dict[str, float] = list(self.journal_rows())[-1]["metrics"]
        return metrics

    def write_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Readable completions of one step, as JSONL."""
        self.samples.mkdir(exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.samples / f"step_{step:06d}.jsonl").write_text(text, encoding="utf-8")

    def read_samples(self) -> dict[int, list[dict[str, Any]]]:
        """`step -> rows` of everything `write_samples` wrote. Raises InputError for a file that is
        damaged."""
        found = {}
        for file in sorted(self.samples.glob("step_*.jsonl")) if self.samples.is_dir() else []:
            step = file.stem.removeprefix("step_")
            if step.isdecimal():
                found[int(step)] = [row for _, row in parse_lines(file)]
        return found


def is_plain_name(text: object) -> bool:
    """Whether a text read from a file can name something inside a directory and nothing outside
    it: one part, no `..`, nothing hidden, no separator of any system."""
    return isinstance(text, str) and re.fullmatch(r"\w[\w.+-]{0,127}", text) is not None


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

    def new_logs(self) -> Path:
        """A folder for what the processes of this attempt print: `logs/attempt_K`."""
        found = [path.name.removeprefix("attempt_") for path in self.path.glob("logs/attempt_*")]
        last = max((int(number) for number in found if number.isdigit()), default=0)
        return (self.path / "logs" / f"attempt_{last + 1}").absolute()

    def stage(self, name: str, key: str) -> StageDir:
        return StageDir(self.path / f"{name}-{key[:8]}")

    def index(self) -> dict[str, Any]:
        """`{recipe, config, stages: {name: directory name}}` of the latest invocation, and `auto`
        where some invocation left settings to it: what they came to, by dotted key."""
        path = self.index_path
        if not path.is_file():
            raise InputError(
                f"{self.path}: not a run directory (no {path.name}); name one that `nplus run` made"
            )
        mend = f"it is damaged: remove {path} and run again; finished stages are found again"
        index = read_object(path, mend)
        if lacks := [name for name in ("recipe", "config", "stages") if name not in index]:
            raise InputError(f"{path}: lacks {', '.join(lacks)}; {mend}")
        require_kinds(path, index, {"recipe": str, "config": dict, "stages": dict}, mend)
        require_kinds(path, index, {"auto": dict}, mend)
        for name, where in index["stages"].items():
            # A stage's files are read, and cards are written, where this says.
            if not is_plain_name(name) or not is_plain_name(where):
                raise InputError(
                    f"{path}: stage {name!r} lies in {where!r}, which is no directory of this run; "
                    f"{mend}"
                )
        return index

    def stages(self) -> dict[str, StageDir]:
        """The stages of the latest invocation, in order."""
        return {name: StageDir(self.path / where) for name, where in self.index()["stages"].items()}

    def ledgers(self) -> list[Path]:
        """The online loop's ledgers of the latest invocation, by round; InputError without any."""
        found = [where.ledger for where in self.stages().values() if where.ledger.is_file()]
        if not found:
            raise InputError(f"{self.path}: no ledger yet; `nplus iterate` writes one a round")
        return found

    def against(self, key: str) -> StageDir:
        """Where a comparison with completions from elsewhere lies; no stage of the run."""
        return self.stage("against", key)

    def sections(self, key: str) -> StageDir:
        """Where a scoring of comparisons from elsewhere by section lies; no stage of the run."""
        return self.stage("sections", key)

    def all_against(self) -> list[StageDir]:
        """The finished comparisons with completions from elsewhere, oldest first."""
        found = [StageDir(path) for path in self.path.glob("against-*")]
        manifests = [(where.manifest(), where) for where in found]
        done = [(m.finished, w.path.name, w) for m, w in manifests if m and m.status == "complete"]
        return [where for _, _, where in sorted(done, key=lambda item: item[:2])]

    def open(self, recipe: str) -> None:
        """Refuse a directory that holds anything else; nothing is written by this check."""
        require_makeable(self.path)
        if is_vacant(self.path):
            return
        if not self.index_path.is_file():
            if any(self.path.glob("*-????????/manifest.json")):
                return  # its stages stand; the index tells nothing that they depend on
            raise InputError(
                f"{self.path}: holds files that are not a run; name another directory with --out"
            )
        found = self.index()["recipe"]
        if found != recipe:
            raise InputError(
                f"{self.path}: holds a run of recipe {found!r}, not {recipe!r}; "
                "name another directory with --out"
            )

    def index_bytes(self) -> bytes:
        """The index as it stands, for `restore_index`; empty where there is none."""
        return self.index_path.read_bytes() if self.index_path.is_file() else b""

    def restore_index(self, before: bytes) -> None:
        """Undo every `write_index` since `before`: where there was none, there is no index, and no
        directory where nothing else is in it."""
        if before:
            replace_bytes(self.index_path, before)
            return
        self.index_path.unlink(missing_ok=True)
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
