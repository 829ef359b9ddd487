"""`nplus evaluate`: a run's policies against completions from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a finished run.")],
    against: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="JSONL with `id` or `query`, and `completion`, `response` or `summary`.",
        ),
    ],
) -> None:
    """Set a run's policies against completions from elsewhere, by the run's own judge.

    Rows are matched to the posts of the run's verdict by id, or else by query text. The run's own
    results stay as they are; the comparison is kept beside them and shown in the report.
    """
    from nplus.runs import RunRoot

    root = RunRoot(run)
    root.index()

    from rich.console import Console

    from nplus.report.against import comparison
    from nplus.report.page import write_report
    from nplus.stages.against import compare

    console = Console()
    where = compare(root, against, console)
    page = write_report(root)
    console.print(comparison(where))
    console.print(f"kept in: {where.path}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"report: {page}", soft_wrap=True, highlight=False, markup=False)
