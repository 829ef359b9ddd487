"""`nplus iterate` and `nplus ledger`: the online loop, and its rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from nplus.cli.options import ConfigFile, Processes, Recipe, RunDir, Seed, Sets, resolve

END = "online"
"""The stage that the loop ends with."""
Format = Literal["table", "csv", "json"]


def iterate(
    recipe: Recipe,
    sets: Sets = None,
    config: ConfigFile = None,
    out: RunDir = None,
    seed: Seed = None,
    processes: Processes = 1,
) -> None:
    """Run the online loop of a recipe and what it needs: rounds of sample, score, pair, train and
    validate. Prints the rounds and writes the report.

    A recipe without `online` gets the paper's settings. A loop that was killed goes on after the
    last piece of work that it finished; a changed setting does anew what hangs on it alone.
    """
    from nplus.cli.run import execute

    cfg = resolve(recipe, config, sets, seed)
    changes = list(sets or [])
    if cfg.online is None:
        changes.append("online={}")
        cfg = resolve(recipe, config, changes, seed)
    execute(cfg, recipe, changes, config, out, seed, END, processes)


def ledger(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run.")],
    sql: Annotated[
        str | None,
        typer.Argument(
            metavar="SQL", help="A query, or the name of a view; all views unless given."
        ),
    ] = None,
    format: Annotated[Format, typer.Option(help="How rows are printed.")] = "table",
) -> None:
    """Query the online loop's ledger: every prompt of every round, all that was drawn for it, its
    scores, and which two became a pair.

    Tables: `ledger`, a row a prompt and round, and the views `samples`, `pairs`, `matches`,
    `reward_by_round`, `length_by_round`, `left_out` and `reuse`. The query can read nothing else.
    """
    from nplus.runs import RunRoot
    from nplus.runs.ledger import LONG, VIEWS, query

    paths = RunRoot(run).ledgers()
    if sql is None:
        for name, (what, _) in VIEWS.items():
            if name not in LONG:
                typer.echo(f"{name}: {what}")
                _print(*query(paths, f"SELECT * FROM {name}"), "table")
        typer.echo(f"`nplus ledger RUN SQL` asks more, of {', '.join(LONG)} and ledger too")
        return
    named = sql.strip() in ("ledger", *VIEWS)
    _print(*query(paths, f"SELECT * FROM {sql.strip()}" if named else sql), format)


def _finite(value: object) -> object:
    """A value as JSON can say it: what is no number is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def _print(names: list[str], rows: list[tuple[object, ...]], format: Format) -> None:
    import csv
    import json
    import sys

    if format == "json":
        for row in rows:
            line = {name: _finite(value) for name, value in zip(names, row, strict=True)}
            typer.echo(json.dumps(line, ensure_ascii=False, default=str))
    elif format == "csv":
        out = csv.writer(sys.stdout, lineterminator="\n")
        out.writerows([names, *rows])
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None)
        for name in names:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*map(_cell, row))
        Console().print(table, markup=False)


def _cell(value: object) -> str:
    from rich.markup import escape

    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return escape(text)
