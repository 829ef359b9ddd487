"""A grid of runs: many settings, many seeds, resumable, one directory for each seed.

Cells of one seed share a directory, so stages that two cells have in common run once. `grid.json`
holds the state of every cell and is replaced atomically: a grid that was killed goes on, a cell
that fails is recorded and the others run.

<grid>/grid.json
<grid>/seed-1.log        what its stages told, when several jobs ran
<grid>/seed-1/           a run directory (`runs/rundir.py`) with the stages of all cells of seed 1
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nplus.config import RunConfig
from nplus.config.batch_plan import batch_plan
from nplus.config.load import load_config
from nplus.records import InputError
from nplus.runs import RunRoot, StageDir, content_hash, key_of
from nplus.runs.manifest import write_json
from nplus.stages.workers import Attempt, Runner, attempt, workers


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the grid: the settings called `name`, under one seed."""

    name: str
    sets: tuple[str, ...]
    """As after `--set`, on top of what all cells share."""
    seed: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What `grid.json` says of a cell."""

    cell: Cell
    key: str
    """Hash of everything the cell's result depends on."""
    status: str = "pending"
    """pending, running (or killed while running), complete or failed."""
    error: str = ""
    traceback: str = ""
    seconds: float = 0.0
    """Of the last attempt; stages that another cell has run take none."""
    stages: Mapping[str, str] = field(default_factory=dict)
    """Stage name to directory name within the seed's directory."""


def crossed(conditions: Iterable[tuple[str, Sequence[str]]], seeds: int) -> list[Cell]:
    """Every `(name, sets)` under seeds 1 to `seeds`; all cells of a seed stand together."""
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: at least one seed is needed")
    named = [(name, tuple(sets)) for name, sets in conditions]
    twice = sorted({name for name, _ in named if [n for n, _ in named].count(name) > 1})
    if twice:
        raise InputError(f"{', '.join(twice)}: given twice; name each once")
    return [Cell(name, sets, seed) for seed in range(1, seeds + 1) for name, sets in named]


def resolve(
    cells: Sequence[Cell],
    base: Callable[[str], RunConfig],
    *,
    config_file: Path | None = None,
    sets: Sequence[str] = (),
) -> dict[Cell, RunConfig]:
    """The config of every cell: `base(cell.name)`, file, `sets`, the cell's own, its seed.

    One `InputError` names every cell whose settings are wrong.
    """
    found: dict[Cell, RunConfig] = {}
    problems: dict[str, str] = {}
    for cell in cells:
        changes = [*sets, *cell.sets, f"seed={cell.seed}"]
        try:
            config = load_config(base(cell.name), config_file=config_file, sets=changes)
            batch_plan(config.ppo)
        except InputError as error:
            problems.setdefault(cell.name, str(error))
        else:
            found[cell] = config
    if problems:
        raise InputError("; ".join(f"{name}: {text}" for name, text in problems.items()))
    return found


@dataclass(slots=True)
class Grid:
    """The grid in `path`. `entries` maps (name, seed) to the cell's entry, in running order."""

    path: Path
    kind: str
    """The command that it belongs to."""
    recipe: str
    entries: dict[tuple[str, int], Entry] = field(default_factory=dict)

    @property
    def index_path(self) -> Path:
        return self.path / "grid.json"

    @classmethod
    def open(cls, path: Path, kind: str, recipe: str) -> Grid:
        """The grid in `path`, or a new one; nothing is written.

        Raises InputError for a directory that holds anything else.
        """
        grid = cls(path, kind, recipe)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file; name another directory with --out")
        if not path.exists() or not any(path.iterdir()):
            return grid
        if not grid.index_path.is_file():
            raise InputError(
                f"{path}: holds files that are not a grid; name another directory with --out"
            )
        state = json.loads(grid.index_path.read_text(encoding="utf-8"))
        if (state["kind"], state["recipe"]) != (kind, recipe):
            raise InputError(
                f"{path}: holds the grid of `nplus {state['kind']}` for recipe "
                f"{state['recipe']!r}; name another directory with --out"
            )
        for row in state["cells"]:
            cell = Cell(row.pop("name"), tuple(row.pop("sets")), row.pop("seed"))
            grid.entries[cell.name, cell.seed] = Entry(cell, **row)
        for folder in filter(Path.is_dir, path.glob("seed-*")):
            RunRoot(folder).open(recipe)
        return grid

    def root(self, seed: int) -> RunRoot:
        """The run directory that all cells of a seed share."""
        return RunRoot(self.path / f"seed-{seed}")

    def stage(self, entry: Entry, name: str) -> StageDir | None:
        """A stage of a cell, or None where the cell has none."""
        where = entry.stages.get(name)
        return StageDir(self.root(entry.cell.seed).path / where) if where else None

    def run(
        self,
        configs: Mapping[Cell, RunConfig],
        runner: Runner,
        *,
        jobs: int = 1,
        version: str = "",
        on_cell: Callable[[Entry, str], None] = lambda entry, state: None,
        on_seed: Callable[[int], None] = lambda seed: None,
    ) -> list[Entry]:
        """Run every cell that is not complete; the entries of `configs`, seed by seed.

        One job runs them in that order. Several run side by side in processes of their own, never
        two of a seed; `runner` must then be picklable. `version` is what a result depends on
        beside the config. `on_cell` is told `(entry, "run" | "skip" | "done")`, `on_seed` each seed
        of which a cell has run, after its last cell. An exception of a cell is its result and the
        grid goes on, but for KeyboardInterrupt and for an InputError before any stage of the grid
        is complete.
        """
        fresh = not self.index_path.exists()
        order = sorted(configs, key=lambda cell: cell.seed)
        for cell in order:
            entry = Entry(cell, cell_key(configs[cell], version))
            if not self._kept(entry):
                self.entries[cell.name, cell.seed] = entry
        waiting = list(order)
        running: dict[Future[Attempt], Cell] = {}
        ran: set[int] = set()
        with workers(jobs) as executor:
            try:
                while waiting or running:
                    while len(running) < jobs and (cell := _next(waiting, running.values(), jobs)):
                        waiting.remove(cell)
                        if self._begin(cell, on_cell):
                            where = self.root(cell.seed).path
                            running[executor.submit(attempt, runner, configs[cell], where)] = cell
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        cell = running.pop(future)
                        self._end(cell, configs[cell], future.result(), fresh)
                        on_cell(self.entries[cell.name, cell.seed], "done")
                        ran.add(cell.seed)
                    under_way = {cell.seed for cell in (*waiting, *running.values())}
                    for seed in sorted(ran - under_way):
                        on_seed(seed)
                    ran &= under_way
            except BrokenProcessPool as error:
                raise InputError(
                    f"{self.path}: a job was killed, perhaps for memory; what is complete is kept: "
                    f"run the same command again, with fewer --jobs than {jobs}"
                ) from error
            finally:
                executor.shutdown(cancel_futures=True)
        return [self.entries[cell.name, cell.seed] for cell in order]

    def _begin(self, cell: Cell, on_cell: Callable[[Entry, str], None]) -> bool:
        """Whether a cell is to run; if so, it is recorded as running."""
        entry = self.entries[cell.name, cell.seed]
        if self._complete(entry):
            on_cell(entry, "skip")
            return False
        entry = Entry(cell, entry.key)
        on_cell(entry, "run")
        self._put(replace(entry, status="running"))
        return True

    def _end(self, cell: Cell, config: RunConfig, came: Attempt, fresh: bool) -> None:
        """Record how a cell went; InputError for bad input that no stage has got past."""
        root = self.root(cell.seed)
        entry = Entry(cell, self.entries[cell.name, cell.seed].key)
        if came.bad_input and not self._worked(root, config):
            self._forget(entry, fresh)
            raise InputError(came.error)
        self._put(
            replace(
                entry,
                status="failed" if came.error else "complete",
                error=f"InputError: {came.error}" if came.bad_input else came.error,
                traceback=came.traceback,
                seconds=round(came.seconds, 1),
                stages=_stages_of(root, config),
            )
        )

    def _forget(self, entry: Entry, fresh: bool) -> None:
        """Bad input leaves a cell as it was, and of a new grid nothing."""
        self._put(entry)
        if fresh:
            self.index_path.unlink()
            if not any(self.path.iterdir()):
                self.path.rmdir()

    def _worked(self, root: RunRoot, config: RunConfig) -> bool:
        """Whether any cell has ended, or any stage of this one is complete."""
        found = _stages_of(root, config).values()
        manifests = (StageDir(root.path / where).manifest() for where in found)
        done = any(m is not None and m.status == "complete" for m in manifests)
        return done or any(
            entry.status in ("complete", "failed") for entry in self.entries.values()
        )

    def _kept(self, entry: Entry) -> bool:
        """Whether what is known of this cell still stands."""
        old = self.entries.get((entry.cell.name, entry.cell.seed))
        return old is not None and old.key == entry.key

    def _complete(self, entry: Entry) -> bool:
        root = self.root(entry.cell.seed).path
        there = all((root / where).is_dir() for where in entry.stages.values())
        return entry.status == "complete" and there

    def _put(self, entry: Entry) -> None:
        self.entries[entry.cell.name, entry.cell.seed] = entry
        self._save()

    def _save(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        cells = [_row(entry) for entry in self.entries.values()]
        write_json(self.index_path, {"kind": self.kind, "recipe": self.recipe, "cells": cells})


def _next(waiting: Sequence[Cell], running: Iterable[Cell], jobs: int) -> Cell | None:
    """The cell to start now. Side by side, seeds go forward together, so that none is left over."""
    busy = {cell.seed for cell in running}
    left = Counter(cell.seed for cell in waiting)
    free = [cell for cell in waiting if cell.seed not in busy]
    return max(free, key=lambda cell: left[cell.seed] if jobs > 1 else 0, default=None)


def cell_key(config: RunConfig, version: str = "") -> str:
    """A hash of the settings, of `version`, and of a data file's content."""
    path = Path(config.data.data).expanduser() if config.data.data else None
    outside = content_hash(path) if path is not None and path.exists() else ""
    return key_of(config.model_dump(mode="json"), version, outside)


def _stages_of(root: RunRoot, config: RunConfig) -> dict[str, str]:
    """The directories of the stages that a run of `config` has reached."""
    if not root.index_path.is_file():
        return {}
    index = root.index()
    ours = index["config"] == config.model_dump(mode="json")
    return dict(index["stages"]) if ours else {}


def cell_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Every cell's state, for the report."""
    return [
        {
            "name": entry.cell.name,
            "seed": entry.cell.seed,
            "sets": list(entry.cell.sets),
            "status": entry.status,
            "error": entry.error,
            "seconds": entry.seconds,
            "stages": dict(entry.stages),
        }
        for entry in entries
    ]


def _row(entry: Entry) -> dict[str, Any]:
    row = asdict(entry)
    cell = row.pop("cell")
    return {**cell, **row}
