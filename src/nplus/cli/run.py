"""`nplus run` and `nplus report`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nplus.cli.options import ConfigFile, Processes, Recipe, RunDir, Seed, Sets, resolve

if TYPE_CHECKING:
    from rich.console import Console

    from nplus.config import RunConfig
    from nplus.runs import RunRoot

FILE_SUFFIXES = (".jsonl", ".json", ".parquet")


def run(
    recipe: Recipe,
    sets: Sets = None,
    config: ConfigFile = None,
    out: RunDir = None,
    seed: Seed = None,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")
    ] = None,
    processes: Processes = 1,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Of a study: seeds 1 to N instead of its own number."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Of a study: seeds that run side by side."),
    ] = None,
) -> None:
    """Run a recipe's stages, print the verdict and write the report.

    Stages that are complete and unchanged are skipped; an interrupted one goes on where it stopped,
    on as many processes as are asked for now. `torchrun -m nplus run ...` works too, on several
    machines that share the run's directory.

    Of a recipe that is a study, as toy:online, all seeds run and are compared; with --seed,
    --until or --processes one run of it.
    """
    from nplus.recipes.studies import STUDIES

    if recipe in STUDIES and seed is None and until is None and processes == 1:
        from nplus.cli.grid import study

        study(recipe, seeds, jobs, out, sets, config)
        return
    _one_run(recipe)
    _no_study(recipe, seeds, jobs)
    cfg = resolve(recipe, config, sets, seed)
    execute(cfg, recipe, sets, config, out, seed, until, processes)


def _one_run(recipe: str) -> None:
    """InputError for a study that has several runs of a seed, where one run is asked for."""
    from nplus.recipes.studies import STUDIES
    from nplus.records import InputError

    cells = STUDIES[recipe].cells if recipe in STUDIES else {}
    if len(cells) > 1:
        names = ", ".join(make().recipe for make in cells.values())
        raise InputError(
            f"{recipe}: {len(cells)} runs under each seed; say how many seeds with --seeds and "
            f"nothing else, or run one of them: {names}"
        )


def _no_study(recipe: str, seeds: int | None, jobs: int | None) -> None:
    """InputError for what a single run does not take."""
    from nplus.records import InputError

    given = {"--seeds": seeds, "--jobs": jobs}
    for option, value in given.items():
        if value is not None:
            raise InputError(
                f"{option} {value}: for studies only, and this is one run of {recipe}; leave it "
                "out, or see `nplus ablate` and `nplus scale`"
            )


def execute(
    cfg: RunConfig,
    recipe: str,
    sets: list[str] | None,
    config: Path | None,
    out: Path | None,
    seed: int | None,
    until: str | None,
    processes: int,
) -> None:
    """Run `cfg`, which the other arguments have come to, up to `until`, and show its result."""
    from nplus.config.batch_plan import require_batches
    from nplus.records import InputError
    from nplus.runs import RunRoot

    require_batches(cfg)
    if until is not None and until not in cfg.stage_names():
        known = ", ".join(cfg.stage_names())
        raise InputError(f"--until {until}: not a stage of this run; its stages are {known}")
    require_files(cfg)
    if int(os.environ.get("RANK", "0")) > 0:
        from nplus.stages.road import follow_road

        follow_road(cfg)
        return
    where = out or Path("runs") / recipe.replace(":", "-")
    RunRoot(where).open(cfg.recipe)
    if processes > 1:
        from nplus.distributed.launch import launch

        given = _arguments(recipe, sets, config, where, seed, until)
        raise typer.Exit(launch(given, processes))

    from rich.console import Console

    from nplus.stages.copying import CopyGateError
    from nplus.stages.road import run_road

    console = Console()
    try:
        root = run_road(cfg, where, until=until, console=console)
    except CopyGateError as error:
        typer.echo(f"nplus: {error}", err=True)
        raise typer.Exit(1) from None
    last = until or cfg.stage_names()[-1]
    if last == "evaluate":
        _show(root, console)
    elif last == "online":
        show_rounds(root, console)


def _arguments(
    recipe: str,
    sets: list[str] | None,
    config: Path | None,
    out: Path,
    seed: int | None,
    until: str | None,
) -> list[str]:
    """The same command for one of several processes."""
    found = ["run", recipe, "--out", str(out)]
    for each in sets or ():
        found += ["--set", each]
    named = {"--config": config, "--seed": seed, "--until": until}  # `iterate` is a `run` too
    for option, value in named.items():
        found += [] if value is None else [option, str(value)]
    return found


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run.")],
) -> None:
    """Write the report of a run again, and print its verdict."""
    from nplus.runs import RunRoot

    root = RunRoot(run)
    root.index()

    from rich.console import Console

    _show(root, Console())


def require_files(cfg: RunConfig) -> None:
    """Refuse a data file that is not there before anything is written; hub names pass."""
    from nplus.records import InputError

    sources = {
        "data": cfg.data.data if cfg.data.source == "files" else None,
        "data.comparisons.data": cfg.data.comparisons.data,
        "online.prompts_data": cfg.online.prompts_data if cfg.online else None,
    }
    for key, source in sources.items():
        if source is None:
            continue
        mend = f"name yours with --set {key}=PATH"
        try:
            path = Path(source).expanduser()
            local = path.suffix in FILE_SUFFIXES or path.is_absolute() or source[:1] in (".", "~")
            if local and not path.exists():
                what = "a link to nothing" if path.is_symlink() else "no such file"
                raise InputError(f"{source}: {what}; {mend}")
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise InputError(f"{source}: neither a file nor a folder; {mend}")
        except (OSError, RuntimeError) as error:  # a name that is too long, a ~user without a home
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{source[:80]}: no such file ({reason}); {mend}") from error


def show_rounds(root: RunRoot, console: Console) -> None:
    """Write the report; print the rounds of the online loop and where the report is."""
    from nplus.report.collect import collect
    from nplus.report.page import write_report
    from nplus.report.rounds import Rounds, console_table, sentences

    page = write_report(root)
    if found := Rounds.of(collect(root)):
        console.print(console_table(found))
        for sentence in sentences(found):
            console.print(sentence, soft_wrap=True, highlight=False, markup=False)
    console.print(f"report: {page}", soft_wrap=True, highlight=False, markup=False)


def _show(root: RunRoot, console: Console) -> None:
    """Write report and model cards; print the verdict and where the report is."""
    from nplus.report.card import write_cards
    from nplus.report.page import write_report
    from nplus.report.tables import verdict

    page = write_report(root)
    write_cards(root)
    console.print(verdict(root))
    console.print(f"report: {page}", soft_wrap=True, highlight=False, markup=False)
