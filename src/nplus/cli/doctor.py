"""`nplus doctor`: what is wrong with a machine, a recipe or a run, and how to mend it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nplus.cli.options import ConfigFile, Sets, resolve

if TYPE_CHECKING:
    from rich.table import Table

    from nplus.config import RunConfig
    from nplus.stages.doctor.examine import Examination


def doctor(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE|RUN]", help="A recipe, or the directory of a run."),
    ] = None,
    sets: Sets = None,
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Look for what can silently be wrong: with this machine, a recipe's settings and model, or a
    run's journals, text and networks.

    Every finding names cause and mend. Nothing is trained or changed. Ends with exit code 2 where a
    finding of severity error stands.
    """
    examination = _examine(target, sets, config)
    if as_json:
        typer.echo(json.dumps(examination.row(), indent=1, ensure_ascii=False))
    else:
        _show(examination)
    if examination.errors:
        names = ", ".join(dict.fromkeys(finding.name for finding in examination.errors))
        count = len(examination.errors)
        typer.echo(f"nplus: {count} error{'s' if count > 1 else ''}: {names}", err=True)
        raise typer.Exit(2)


def _examine(target: str | None, sets: list[str] | None, config: Path | None) -> Examination:
    """A run where `target` is one, else a recipe, else the machine."""
    from nplus.records import InputError
    from nplus.runs import RunRoot

    is_run = target is not None and RunRoot(Path(target)).index_path.is_file()
    if (is_run or target is None) and (sets or config):
        raise InputError("--set and --config change a recipe; name one, as in nplus doctor toy")
    resolved = None if is_run or target is None else _recipe(target, config, sets)

    from nplus.stages.doctor import examine

    if target is None:
        return examine.examine_machine(Path("runs"))
    if resolved is None:
        return examine.examine_run(RunRoot(Path(target)))
    return examine.examine_recipe(resolved, Path("runs") / target.replace(":", "-"))


def _recipe(name: str, config: Path | None, sets: list[str] | None) -> RunConfig:
    """Its config; a directory that is no run is told so."""
    from nplus.recipes import RECIPES
    from nplus.runs import RunRoot

    if name not in RECIPES and Path(name).exists():
        RunRoot(Path(name)).index()  # says that this is no run
    return resolve(name, config, sets, None)


def _show(examination: Examination) -> None:
    from rich.console import Console

    console = Console()
    for name, value in examination.facts:
        console.print(f"{name:<9} {value}", markup=False, highlight=False, soft_wrap=True)
    if examination.findings:
        console.print(_table(examination))
    looked = ", ".join(examination.looked_at)
    count = len(examination.findings)
    told = "nothing found" if not count else f"{count} finding{'s' if count > 1 else ''}"
    console.print(f"{told} in: {looked}", markup=False, highlight=False)


def _table(examination: Examination) -> Table:
    from rich.table import Table
    from rich.text import Text

    from nplus.findings import by_severity

    styles = {"error": "bold red", "warning": "yellow", "note": "dim"}
    table = Table("finding", "seen, cause and mend", show_lines=True)
    for finding in by_severity(examination.findings):
        head = Text(finding.severity, style=styles[finding.severity])
        head.append(f"\n{finding.name}", style="bold").append(f"\n{finding.place}", style="dim")
        told = Text(f"{finding.said}.\n")
        told.append("Cause: ", style="bold").append(f"{finding.cause}\n")
        told.append("Mend: ", style="bold").append(finding.mend)
        table.add_row(head, told)
    return table
