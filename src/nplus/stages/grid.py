"""A grid of runs: many settings, many seeds, resumable, one directory for each seed.

Cells of one seed share a directory, so stages that two cells have in common run once. `grid.json`
holds the state of every cell and is replaced atomically: a grid that was killed goes on, a cell
that fails is recorded and the others run.

<grid>/grid.json
<grid>/seed-1.log        what its stages told, when several jobs ran
<grid>/seed-1/           a run directory (`runs/rundir.py`) with the stages of all cells of seed 1
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nplus.config import RunConfig
from nplus.config.batch_plan import require_batches
from nplus.config.load import load_config
from nplus.records import InputError, read_object
from nplus.runs import RunRoot, StageDir, alone_in, key_of
from nplus.runs.lock import is_vacant, require_makeable
from nplus.runs.rundir import is_plain_name
from nplus.runs.storage import require_kinds, write_json
from nplus.stages.road import SPEED_KEYS, outside_inputs
from nplus.stages.tuning.cache import cores
from nplus.stages.tuning.settle import settle
from nplus.stages.workers import Attempt, Runner, attempt, workers


class JobKilledError(RuntimeError):
    """A process in which a cell ran is gone."""


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
    """pending, running, interrupted, complete or failed; killed at once, it says running still."""
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
    if any(text.partition("=")[0].strip() == "seed" for text in sets):
        raise InputError("--set seed: every cell has a seed of its own; say how many with --seeds")
    found: dict[Cell, RunConfig] = {}
    problems: dict[str, str] = {}
    for cell in cells:
        changes = [*sets, *cell.sets, f"seed={cell.seed}"]
        try:
            config = load_config(base(cell.name), config_file=config_file, sets=changes)
            require_batches(config)
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
    auto: dict[str, Any] = field(default_factory=dict)
    """What settings left to `auto` have come to, alike in all cells."""

    @property
    def index_path(self) -> Path:
        return self.path / "grid.json"

    @classmethod
    def open(cls, path: Path, kind: str, recipe: str) -> Grid:
        """The grid in `path`, or a new one; nothing is written.

        Raises InputError for a directory that holds anything else.
        """
        grid = cls(path, kind, recipe)
        require_makeable(path)
        if is_vacant(path):
            return grid
        if not grid.index_path.is_file():
            raise InputError(
                f"{path}: holds files that are not a grid; name another directory with --out"
            )
        state = grid._read()
        if (state["kind"], state["recipe"]) != (kind, recipe):
            raise InputError(
                f"{path}: holds the grid of `nplus {state['kind']}` for recipe "
                f"{state['recipe']!r}; name another directory with --out"
            )
        for folder in filter(Path.is_dir, path.glob("seed-*")):
            RunRoot(folder).open(recipe)
        return grid

    def _read(self) -> dict[str, Any]:
        """What `grid.json` says, its cells as `entries`."""
        mend = "it is damaged: remove it; finished stages are found again"
        state = read_object(self.index_path, mend)
        kinds = {"kind": str, "recipe": str, "cells": list, "auto": dict}
        require_kinds(self.index_path, {**dict.fromkeys(kinds), "auto": {}, **state}, kinds, mend)
        for number, row in enumerate(state["cells"], 1):
            try:
                entry = _entry(row)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise InputError(f"{self.index_path}: cell {number} is none; {mend}") from error
            self.entries[entry.cell.name, entry.cell.seed] = entry
        self.auto = state.get("auto", {})
        return state

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
        on_round: Callable[[], None] = lambda: None,
        on_note: Callable[[str], None] = lambda note: None,
    ) -> list[Entry]:
        """Run every cell that is not complete; the entries of `configs`, seed by seed.

        One job runs them in that order. Several run side by side in processes of their own, never
        two of a seed; `runner` must then be picklable. `version` is what a result depends on
        beside the config. `on_cell` is told `(entry, "run" | "skip" | "done")`; `on_round` is
        called when the last cell of a seed has ended, with several jobs the last of a name;
        `on_note` is told what the user should know of settings left to `auto`.

        An exception of a cell is its result and the grid goes on, but for KeyboardInterrupt and
        for an InputError before any stage of the grid is complete. Raises JobKilledError when a
        process dies, and InputError when another process runs this grid.
        """
        with alone_in(self.path):
            fresh = not self.index_path.exists()
            if not fresh:
                self._read()  # another process may have gone on with it since it was opened
            configs = self._settled(configs, jobs, on_note)
            order = sorted(configs, key=lambda cell: cell.seed)
            for cell in order:
                entry = Entry(cell, cell_key(configs[cell], version))
                if not self._kept(entry):
                    self.entries[cell.name, cell.seed] = entry
            try:
                self._run_cells(order, configs, runner, jobs, fresh, on_cell, on_round)
            except BrokenProcessPool as error:
                self._interrupt()
                raise JobKilledError(
                    f"{self.path}: a job was killed, perhaps for memory; what is complete is kept: "
                    f"run the same command again, with fewer --jobs than {jobs}"
                ) from error
            except BaseException:
                self._interrupt()
                raise
        return [self.entries[cell.name, cell.seed] for cell in order]

    def _settled(
        self, configs: Mapping[Cell, RunConfig], jobs: int, on_note: Callable[[str], None]
    ) -> dict[Cell, RunConfig]:
        """The configs without `auto`, which is the same in all cells, now and later."""
        found: dict[Cell, RunConfig] = {}
        told = False
        for cell, config in configs.items():
            settled = settle(config, self.auto, most_threads=max(1, cores() // jobs))
            self.auto = {**settled.autos, **self.auto}
            found[cell] = settled.config
            if settled.autos and not told:  # the others follow the first
                told = True
                for note in settled.notes:
                    on_note(note)
        return found

    def _run_cells(
        self,
        order: Sequence[Cell],
        configs: Mapping[Cell, RunConfig],
        runner: Runner,
        jobs: int,
        fresh: bool,
        on_cell: Callable[[Entry, str], None],
        on_round: Callable[[], None],
    ) -> None:
        waiting = list(order)
        running: dict[Future[Attempt], Cell] = {}
        refused: dict[Cell, Attempt] = {}
        """Bad input while nothing had worked: the end, unless one of those beside it works."""
        with workers(jobs) as executor:
            while waiting or running:
                while (
                    not refused
                    and len(running) < jobs
                    and (cell := _next(waiting, running.values(), jobs))
                ):
                    waiting.remove(cell)
                    if self._begin(cell, on_cell):
                        where = self.root(cell.seed).path
                        running[executor.submit(attempt, runner, configs[cell], where)] = cell
                ended: dict[Cell, Attempt] = {}
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    cell = running.pop(future)
                    came = future.result()
                    hopeless = came.bad_input and not self._worked(cell.seed, came)
                    (refused if hopeless else ended)[cell] = came
                if refused and not running:
                    if not (ended or self._any_ended()):
                        self._forget(refused, fresh)
                        raise InputError(next(iter(refused.values())).error)
                    ended |= refused
                    refused.clear()
                for cell, came in ended.items():
                    self._end(cell, came)
                    on_cell(self.entries[cell.name, cell.seed], "done")
                left = [_round(cell, jobs) for cell in (*waiting, *running.values())]
                if any(_round(cell, jobs) not in left for cell in ended):
                    on_round()

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

    def _end(self, cell: Cell, came: Attempt) -> None:
        """Record how a cell went."""
        self._put(
            Entry(
                cell,
                self.entries[cell.name, cell.seed].key,
                status="failed" if came.error else "complete",
                error=f"InputError: {came.error}" if came.bad_input else came.error,
                traceback=came.traceback,
                seconds=round(came.seconds, 1),
                stages=came.stages,
            )
        )

    def _forget(self, refused: Iterable[Cell], fresh: bool) -> None:
        """Bad input leaves its cells as they were, and of a new grid nothing."""
        for cell in refused:
            self._put(Entry(cell, self.entries[cell.name, cell.seed].key))
        if fresh:
            self.index_path.unlink()
            for log in self.path.glob("seed-*.log"):
                log.unlink()

    def _interrupt(self) -> None:
        """Record that what was running is not any more."""
        for entry in list(self.entries.values()):
            if entry.status == "running":
                self._put(replace(entry, status="interrupted"))

    def _worked(self, seed: int, came: Attempt) -> bool:
        """Whether any cell has ended, or any stage of this one is complete."""
        root = self.root(seed)
        manifests = (StageDir(root.path / where).manifest() for where in came.stages.values())
        done = any(m is not None and m.status == "complete" for m in manifests)
        return done or self._any_ended()

    def _any_ended(self) -> bool:
        return any(entry.status in ("complete", "failed") for entry in self.entries.values())

    def _kept(self, entry: Entry) -> bool:
        """Whether what is known of this cell still stands."""
        old = self.entries.get((entry.cell.name, entry.cell.seed))
        return old is not None and old.key == entry.key

    def _complete(self, entry: Entry) -> bool:
        root = self.root(entry.cell.seed).path
        there = all((root / where).is_dir() for where in entry.stages.values())
        return entry.status == "complete" and bool(entry.stages) and there

    def _put(self, entry: Entry) -> None:
        self.entries[entry.cell.name, entry.cell.seed] = entry
        self._save()

    def _save(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        cells = [_row(entry) for entry in self.entries.values()]
        state = {"kind": self.kind, "recipe": self.recipe, "cells": cells}
        write_json(self.index_path, state | ({"auto": self.auto} if self.auto else {}))


def _next(waiting: Sequence[Cell], running: Iterable[Cell], jobs: int) -> Cell | None:
    """The cell to start now. Side by side, seeds go forward together, so that none is left over."""
    busy = {cell.seed for cell in running}
    left = Counter(cell.seed for cell in waiting)
    free = [cell for cell in waiting if cell.seed not in busy]
    return max(free, key=lambda cell: left[cell.seed] if jobs > 1 else 0, default=None)


def _round(cell: Cell, jobs: int) -> str | int:
    """What a cell ends together with: its seed's others, or side by side those of its name."""
    return cell.seed if jobs == 1 else cell.name


def cell_key(config: RunConfig, version: str = "") -> str:
    """A hash of the settings that change results, of `version`, and of data files by content."""
    settings = config.model_dump(mode="json", exclude={"doctor", "checkpoint", "budget"})
    for name in SPEED_KEYS:
        settings["compute"].pop(name)
    settings["model"].pop("allow_pickle")
    return key_of(settings, version, outside_inputs(config))


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


def _entry(row: Mapping[str, Any]) -> Entry:
    """What `_row` wrote; an error of some kind for anything else."""
    row = dict(row)
    entry = Entry(Cell(row.pop("name"), tuple(row.pop("sets")), int(row.pop("seed"))), **row)
    texts = (entry.cell.name, *entry.cell.sets, entry.key, entry.status, entry.error)
    places = (*entry.stages, *entry.stages.values())  # which are read
    if not (all(isinstance(text, str) for text in texts) and all(map(is_plain_name, places))):
        raise ValueError("a text is none, or a stage is no directory of the run")
    return replace(entry, seconds=float(entry.seconds))


def _row(entry: Entry) -> dict[str, Any]:
    row = asdict(entry)
    cell = row.pop("cell")
    return {**cell, **row}
