"""Comparisons scored by section, on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nplus.report.tables import plain, span
from nplus.runs import StageDir

Row = Mapping[str, Any]


def scored(where: StageDir) -> RenderableType:
    """The terminal's tables of one scoring."""
    manifest = where.manifest()
    return Group(*_blocks(manifest.results if manifest else {}))


def _blocks(results: Row) -> Iterator[RenderableType]:
    title = f"{results.get('name')}: accuracy of {', '.join(results.get('models') or ())}"
    table = _table(title, ("section", "subset"), ("accuracy", "rows", "ties", "weight"))
    subsets = results.get("subsets") or ()
    for section in results.get("sections") or ():
        name, missing = section.get("name"), section.get("missing")
        short = " (part)" if missing else ""
        score = Text(span(section, "accuracy"), style="bold")
        table.add_row(Text(f"{name}{short}"), "", score, plain(section.get("n"), 0), "", "")
        for one in (row for row in subsets if row.get("section") == name):
            counts = (plain(one.get(key), 0) for key in ("n", "ties", "weight"))
            table.add_row("", Text(str(one.get("name"))), span(one, "accuracy"), *counts)
    total = results.get("total")
    if total:
        score = Text(span(total, "accuracy"), style="bold")
        table.add_row("total", "", score, "", "", "")
    yield table
    yield from map(Text, _notes(results))


def _notes(results: Row) -> Iterator[str]:
    """What the figures leave out."""
    for section in results.get("sections") or ():
        if section.get("missing"):
            yield f"{section.get('name')}: without {', '.join(section['missing'])}."
    missing = (results.get("total") or {}).get("missing")
    if missing:
        yield f"The total is without {', '.join(missing)}."
    dropped = results.get("dropped") or {}
    if dropped:
        rows = ", ".join(f"{count} of {name}" for name, count in dropped.items())
        yield f"Longer than the run's limits and left out: {rows}."
    invalid = sum(row.get("invalid") or 0 for row in results.get("subsets") or ())
    if invalid:
        yield f"{invalid} rows have a score that is not a number, and count as wrong."


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=Text(f"{title}, with 95% intervals; a tie is wrong"),
        title_justify="left",
    )
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table
