"""`nplus data check`: every row of a data set looked at, nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nplus.cli.options import ConfigFile, Sets, resolve

app = typer.Typer(no_args_is_help=True, help="Look at data before a run does.")


@app.callback()
def data() -> None:
    """Look at data before a run does."""


@app.command("check")
def check(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|DATASET",
            help="A JSONL or Parquet file, a folder with a file a split, or a hub dataset.",
        ),
    ],
    recipe: Annotated[
        str, typer.Option(metavar="RECIPE", help="Whose template, limits and tokenizer.")
    ] = "real",
    sets: Sets = None,
    config: ConfigFile = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A tokenizer's directory, in place of the recipe's."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Data whose prompts may not be the same, as the held-out posts of a run; as "
            "often as needed.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows shown of each finding.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report there, as JSON.")
    ] = None,
) -> None:
    """Check every row of a data set as a run would read it, and name every fault.

    Exit code 2 if a run would refuse the data; warnings leave it 0.
    """
    from nplus.records import InputError

    cfg = resolve(recipe, config, sets, None)
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: no such folder; make it first")

    from nplus.stages import contract

    report = contract.check(source, cfg, tokenizer, against or ())
    text = json.dumps(report, ensure_ascii=False, indent=1)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
    else:
        from rich.console import Console

        from nplus.report.data_check import shown

        console = Console()
        console.print(shown(report, rows))
        console.print(contract.in_a_line(report), highlight=False, markup=False, soft_wrap=True)
    if not report["ok"]:
        raise typer.Exit(2)
