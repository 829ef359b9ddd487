"""`nplus evaluate`: a run against completions from elsewhere, or on comparisons from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from nplus.runs import RunRoot

Scorer = Literal["reward", "ensemble", "preference"]


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a finished run.")],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSONL with `id` or `query`, and `completion`, `response` or `summary`.",
        ),
    ] = None,
    sections: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSONL or Parquet with `prompt`, `chosen`, `rejected` and `subset`, as "
            "RewardBench has them.",
        ),
    ] = None,
    scorer: Annotated[
        Scorer | None,
        typer.Option("--with", help="Which of the run's models score the sections; reward."),
    ] = None,
) -> None:
    """Set a run's policies against completions from elsewhere, by the run's own judge, or score
    comparisons from elsewhere with its reward model, by section as RewardBench does.

    Completions are matched to the posts of the run's verdict by id, or else by query text. The
    run's own results stay as they are; what is found is kept beside them, and a comparison of
    policies is shown in the report.
    """
    from nplus.records import InputError
    from nplus.runs import RunRoot

    if (against is None) == (sections is None):
        raise InputError("nplus evaluate needs either --against FILE or --sections FILE; name one")
    if scorer is not None and sections is None:
        raise InputError(f"--with {scorer}: --against asks the run's own judge; name --sections")
    root = RunRoot(run)
    root.index()

    from rich.console import Console

    console = Console()
    if against is not None:
        _against(root, against, console)
    elif sections is not None:
        from nplus.report.sections import scored
        from nplus.stages.sections import score

        where = score(root, sections, scorer or "reward", console)
        console.print(scored(where))
        console.print(f"kept in: {where.path}", soft_wrap=True, highlight=False, markup=False)


def _against(root: RunRoot, file: Path, console: Console) -> None:
    from nplus.report.against import comparison
    from nplus.report.page import write_report
    from nplus.stages.against import compare

    where = compare(root, file, console)
    page = write_report(root)
    console.print(comparison(where))
    console.print(f"kept in: {where.path}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"report: {page}", soft_wrap=True, highlight=False, markup=False)
