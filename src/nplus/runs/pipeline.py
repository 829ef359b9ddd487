"""Chains stages: keyed by config, inputs, seed and algorithm version; skipped when complete."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nplus.records import InputError
from nplus.runs.manifest import Manifest, code_version, package_versions
from nplus.runs.rundir import RunRoot, StageDir
from nplus.runs.storage import key_of

Results = Mapping[str, Any]
StageFn = Callable[[StageDir], Results]


def peak_memory_gib() -> float:
    """Peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 30 if sys.platform == "darwin" else 1 << 20)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(slots=True)
class Pipeline:
    """Runs stages into one run directory.

    `keys` maps a finished stage's name to its key, so a later stage's key covers all it depends on.
    """

    root: RunRoot
    recipe: str
    config: Mapping[str, Any]
    seed: int
    device: str = "cpu"
    compute: str = ""
    """How the process computes, in a line."""
    auto: Mapping[str, Any] = field(default_factory=dict)
    """What settings left to `auto` have come to, by dotted key."""
    on_stage: Callable[[str, StageDir, str], None] = lambda name, where, state: None
    """Told `(stage, directory, "run" | "skip" | "done")`."""
    keys: dict[str, str] = field(default_factory=dict)
    dirs: dict[str, StageDir] = field(default_factory=dict)
    intact: set[str] = field(default_factory=set)
    """Stages whose files have been looked at, or written, by this call."""
    before: bytes | None = None
    """The index as it was; empty where there was none, None until the first stage."""
    worked: bool = False
    """Whether any stage has been completed by this call."""

    def run(
        self,
        name: str,
        config: Any,
        fn: StageFn,
        *,
        version: int = 1,
        inputs: Mapping[str, str] | None = None,
    ) -> StageDir:
        """Run stage `name`, or skip it when a complete manifest with the same key exists.

        `inputs` maps a role to the name of an earlier stage, or to `path:hash` of something
        outside the run.
        """
        inputs = dict(inputs or {})
        if unknown := [
            what for what in inputs.values() if what not in self.keys and ":" not in what
        ]:
            raise ValueError(f"stage {name!r} takes {unknown}, which no earlier stage made")
        resolved = {role: self.keys.get(what, what) for role, what in inputs.items()}
        key = key_of(name, version, config, self.seed, resolved)
        where = self.root.stage(name, key)
        self.keys[name], self.dirs[name] = key, where
        new_stage = not where.path.exists()
        if self.before is None:
            self.before = self.root.index_bytes()
        try:
            complete = where.complete(key)
            for what in () if complete else inputs.values():
                self._require_intact(what)
        except InputError:
            self._forget()
            raise
        self._index()
        if complete:
            self.on_stage(name, where, "skip")
            return where
        self.on_stage(name, where, "run")
        where.path.mkdir(parents=True, exist_ok=True)
        kept = where.records()
        where.drop_unfinished()
        manifest = self._begun(
            name,
            key,
            config,
            [{"role": r, "path": self._where(w), "hash": resolved[r]} for r, w in inputs.items()],
        )
        manifest.write(where.manifest_path)
        where.event("started", key=key)
        began = time.monotonic()
        try:
            results = fn(where)
        except BaseException as error:
            # Bad input leaves everything as it was; but answers of a judge are not asked for twice.
            if isinstance(error, InputError) and not (new_stage and where.replies.is_file()):
                self._undo(where, None if new_stage else kept)
                raise
            failed = replace(
                manifest, status="failed", error=f"{type(error).__name__}: {error}", finished=_now()
            )
            failed.write(where.manifest_path)
            raise
        where.event("finished")
        replace(
            manifest,
            status="complete",
            results=dict(results),
            outputs=where.artefacts(),
            finished=_now(),
            seconds=round(time.monotonic() - began, 3),
            peak_memory_gib=round(peak_memory_gib(), 3),
        ).write(where.manifest_path)
        self.intact.add(name)
        self.worked = True
        self.on_stage(name, where, "done")
        return where

    def _begun(
        self, name: str, key: str, config: Any, inputs: Sequence[Mapping[str, str]]
    ) -> Manifest:
        """The manifest of a stage that begins now."""
        return Manifest(
            stage=name,
            key=key,
            status="running",
            config=config,
            seed=self.seed,
            inputs=tuple(inputs),
            code_version=code_version(),
            packages=package_versions(),
            device=self.device,
            compute=self.compute,
            started=_now(),
        )

    def _require_intact(self, what: str) -> None:
        """Raises InputError where an earlier stage's files are not as it left them."""
        where = self.dirs.get(what)
        if where is None or what in self.intact:
            return
        manifest = where.manifest()
        if manifest is not None and (why := manifest.differences(where.path)):
            raise InputError(
                f"{where.path}: {why}; put it back as it was, or remove the folder, and the same "
                f"command makes the stage {what!r} anew"
            )
        self.intact.add(what)

    def _undo(self, where: StageDir, kept: Mapping[Path, bytes] | None) -> None:
        """Take back a stage that has met bad input; `kept` is None where this call began it."""
        if kept is None:
            shutil.rmtree(where.path)
        else:
            where.put_back(kept)
        self._forget()

    def _forget(self) -> None:
        """Make the index what it was, where nothing has come of this call."""
        if not self.worked:
            self.root.restore_index(self.before or b"")

    def _where(self, what: str) -> str:
        return self.dirs[what].path.name if what in self.dirs else what.rpartition(":")[0]

    def _index(self) -> None:
        names = {name: where.path.name for name, where in self.dirs.items()}
        self.root.write_index(self.recipe, self.config, names, self.auto)
