"""`nplus ablate`, `nplus scale` and studies: many runs, one table."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nplus.cli.options import ConfigFile, Sets

if TYPE_CHECKING:
    from rich.console import Console

    from nplus.config import RunConfig
    from nplus.report.grid_page import Sheet
    from nplus.runs import RunRoot
    from nplus.stages.grid import Cell, Entry, Grid

    Write = Callable[[Grid, Sequence[Entry]], Sheet]

Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="The grid's directory; runs/ablate-... or runs/scale-... unless given."
    ),
]

Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Seeds that run side by side, on their part of the cores each."),
]

PAGES = {"ablate": "ablation.html", "scale": "scale.html", "run": "study.html"}


def ablate(
    details: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DETAIL...",
            help="Details to flip, as F7; every detail with a variant unless given.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Runs of each condition, under seeds 1 to N.")
    ] = 5,
    jobs: Jobs = None,
    out: Out = None,
    recipe: Annotated[str, typer.Option(metavar="RECIPE", help="The baseline.")] = "toy",
    flip: Annotated[
        list[str] | None,
        typer.Option(metavar="'NAME: KEY=VALUE...'", help="A condition of your own."),
    ] = None,
    sets: Sets = None,
    config: ConfigFile = None,
) -> None:
    """Flip details one by one and measure what each does, seed by seed.

    Each condition runs beside the baseline under the same seeds, and shares every stage that it
    does not change. A grid that was interrupted goes on; a run that fails is shown as failed.
    """
    from nplus.recipes import recipe as named
    from nplus.stages.ablation import BASELINE, of_details, of_flips, summarise, without_effect
    from nplus.stages.grid import Grid, crossed, resolve
    from nplus.stages.outcomes import main_policy

    base = named(recipe)
    flips = of_flips(flip or [])
    chosen = [*(of_details(details or []) if details or not flips else []), *flips]
    cells = crossed([(BASELINE, ()), *((c.name, c.sets) for c in chosen)], seeds)
    # A condition that spoils the copying is a result, no reason to stop.
    configs = resolve(
        cells, lambda _: base, config_file=config, sets=["sft.copy_gate=0", *(sets or [])]
    )
    same = without_effect(configs)
    _refuse_or_tell(same, refuse=bool(details or flips))
    conditions = [c for c in chosen if c.name not in same]
    policy = main_policy(configs[cells[0]])
    configs = {cell: cfg for cell, cfg in configs.items() if cell.name not in same}
    where = out or Path("runs") / f"ablate-{base.recipe.replace(':', '-')}"
    options = {"--seeds": seeds, "--out": where, "--recipe": recipe, "--flip": flip}
    command = _command("ablate", details, {**options, "--set": sets, "--config": config})

    def write(grid: Grid, entries: Sequence[Entry]) -> Sheet:
        from nplus.report.grid_page import write_ablation

        data = summarise(grid, entries, conditions, policy)
        return write_ablation(where, {"command": command, "recipe": recipe, **data})

    _run(Grid.open(where, "ablate", base.recipe), configs, write, jobs)


def scale(
    family: Annotated[str, typer.Argument(metavar="FAMILY", help="A family of sizes.")] = "toy",
    sizes: Annotated[str, typer.Option(metavar="SIZE,SIZE...", help="Model sizes.")] = "0.3M,1M,4M",
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Runs of each size, under seeds 1 to N.")
    ] = 3,
    jobs: Jobs = None,
    out: Out = None,
    sets: Sets = None,
    config: ConfigFile = None,
) -> None:
    """Run several model sizes and draw win rates against size.

    Each size has settings of its own, on which --set has the last word. A grid that was interrupted
    goes on; a run that fails is shown as failed.
    """
    from nplus.recipes import sized
    from nplus.records import InputError
    from nplus.stages.grid import Grid, crossed, resolve
    from nplus.stages.scaling import nominal, summarise

    names = [name.strip() for name in sizes.split(",")]
    bases = {name: sized(family, name) for name in names}
    largest_first = sorted(names, key=nominal, reverse=True)  # no long cell is left to the end
    cells = crossed([(name, ()) for name in largest_first], seeds)
    configs = resolve(cells, bases.__getitem__, config_file=config, sets=sets or [])
    if any(cfg.model.size != cell.name for cell, cfg in configs.items()):
        raise InputError("model.size is set for every cell; choose sizes with --sizes")
    where = out or Path("runs") / f"scale-{family}"
    options = {"--sizes": sizes, "--seeds": seeds, "--out": where}
    command = _command("scale", [family], {**options, "--set": sets, "--config": config})

    def write(grid: Grid, entries: Sequence[Entry]) -> Sheet:
        from nplus.report.grid_page import write_scale

        data = summarise(grid, entries)
        return write_scale(where, {"command": command, "recipe": family, **data})

    _run(Grid.open(where, "scale", configs[cells[0]].recipe), configs, write, jobs)


def study(
    name: str,
    seeds: int | None,
    jobs: int | None,
    out: Path | None,
    sets: list[str] | None,
    config: Path | None,
) -> None:
    """Run the study `name`, every seed of it, and write its tables; goes on where it stopped."""
    from nplus.recipes.studies import STUDIES
    from nplus.stages.grid import Grid, crossed, resolve
    from nplus.stages.study import summarise

    found = STUDIES[name]
    count = seeds or found.seeds
    cells = crossed([(cell, ()) for cell in found.cells], count)
    # Cells share the directory of their seed, which belongs to one recipe.
    bases = {cell: make().model_copy(update={"recipe": name}) for cell, make in found.cells.items()}
    configs = resolve(cells, bases.__getitem__, config_file=config, sets=sets or [])
    where = out or Path("runs") / name.replace(":", "-")
    options = {"--seeds": seeds, "--out": where, "--set": sets, "--config": config}
    command = _command("run", [name], options)
    arms = [(arm.label, arm.cell, arm.policy) for arm in found.arms]

    def write(grid: Grid, entries: Sequence[Entry]) -> Sheet:
        from nplus.report.study import write_study

        data = summarise(grid, entries, arms, found.contrasts)
        head = {"command": command, "recipe": name, "title": found.title}
        return write_study(where, {**head, **data})

    _run(Grid.open(where, "run", name), configs, write, jobs)


def _refuse_or_tell(same: Sequence[str], *, refuse: bool) -> None:
    """Conditions that change nothing: an error where asked for, else left out with a word."""
    from nplus.records import InputError

    if not same:
        return
    text = f"{', '.join(same)}: the baseline has these settings already"
    if refuse:
        raise InputError(f"{text}, so there is nothing to compare; leave them out")
    typer.echo(f"{text}; left out", err=True)


def _command(name: str, arguments: Sequence[str] | None, options: Mapping[str, Any]) -> str:
    """The command line that these arguments come from."""
    words = ["nplus", name, *(arguments or [])]
    for option, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            words += [option, str(each)] if each is not None else []
    return shlex.join(words)


def _run(
    grid: Grid,
    configs: Mapping[Cell, RunConfig],
    write: Write,
    jobs: int | None,
) -> None:
    """Run the grid, writing its tables as it goes; exit code 1 when no cell has a result."""
    from nplus.cli.run import require_files
    from nplus.records import InputError

    for cell, cfg in configs.items():
        require_files(cfg)
        if "evaluate" not in cfg.stage_names():
            raise InputError(f"{cell.name}: ends before the verdict; set until=null")
    from rich.console import Console

    from nplus.runs import key_of
    from nplus.stages.grid import JobKilledError
    from nplus.stages.road import VERSIONS, preflight

    for model in {(c.model, c.tokenizer, c.scoring): c for c in configs.values()}.values():
        preflight(model)
    console = Console()
    jobs = jobs or _jobs_for(configs)

    def write_so_far() -> None:
        known = [grid.entries.get((cell.name, cell.seed)) for cell in configs]
        if entries := [entry for entry in known if entry is not None]:
            write(grid, entries)

    try:
        entries = grid.run(
            configs,
            _run_here if jobs == 1 else _run_apart,
            jobs=jobs,
            version=key_of(VERSIONS),
            on_cell=_announce(console, list(configs)),
            on_round=write_so_far,
            on_note=lambda note: console.print(note, style="yellow", markup=False),
        )
    except (KeyboardInterrupt, JobKilledError) as stopped:
        write_so_far()
        if isinstance(stopped, KeyboardInterrupt):
            raise
        typer.echo(f"nplus: {stopped}", err=True)
        raise typer.Exit(1) from None
    sheet = write(grid, entries)
    _show(sheet, grid.path / PAGES[grid.kind], console)
    if not any(entry.status == "complete" for entry in entries):
        raise typer.Exit(1)


def _jobs_for(configs: Mapping[Cell, RunConfig]) -> int:
    """A job for every seed, up to the cores; one where anything runs on another device.

    Where a seed is a single cell and the seeds do not share out over the cores, a few more than
    cores: three that take turns on two are done sooner than two, and then one beside an idle core.
    """
    if any(cfg.compute.device != "cpu" for cfg in configs.values()):
        return 1
    seeds, cores = len({cell.seed for cell in configs}), os.cpu_count() or 1
    if seeds <= cores:
        return seeds
    return cores if len(configs) > seeds else math.ceil(seeds / (seeds // cores))


def _run_here(config: RunConfig, where: Path) -> RunRoot:
    """Run a cell and print its stages."""
    from nplus.stages.road import run_road

    return run_road(config, where)


def _run_apart(config: RunConfig, where: Path) -> RunRoot:
    """Run a cell beside others; its stages are told in `seed-N.log` beside its directory."""
    from rich.console import Console

    from nplus.stages.road import run_road

    where.parent.mkdir(parents=True, exist_ok=True)
    with where.with_suffix(".log").open("a", encoding="utf-8") as log:
        return run_road(config, where, console=Console(file=log))


def _announce(console: Console, cells: Sequence[Cell]) -> Callable[[Entry, str], None]:
    """One line before each cell, and one for what has failed."""
    number = {(cell.name, cell.seed): n for n, cell in enumerate(cells, 1)}

    def announce(entry: Entry, state: str) -> None:
        cell = entry.cell
        head = f"[{number[cell.name, cell.seed]}/{len(cells)}] {cell.name}, seed {cell.seed}"
        if state == "skip":
            console.print(f"{head}: complete, skipped", style="dim", markup=False)
        elif state == "run":
            console.print(f"{head} {' '.join(cell.sets)}", style="bold", markup=False)
        elif entry.status == "failed":
            console.print(f"{head} failed: {entry.error}", style="red", markup=False)
        else:
            console.print(f"{head}: complete, {entry.seconds:,.0f} s", markup=False)

    return announce


def _show(sheet: Sheet, page: Path, console: Console) -> None:
    from nplus.report.grid_page import console_table

    console.print(console_table(sheet))
    for line in sheet.failures:
        console.print(line, style="red", markup=False)
    console.print(f"report: {page}", soft_wrap=True, highlight=False, markup=False)
