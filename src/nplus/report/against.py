"""Completions from elsewhere against the run's policies: on the page and on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nplus.report.collect import number
from nplus.report.tables import DASH, SPLITS, compared, plain, short
from nplus.runs import StageDir

Row = Mapping[str, Any]


def against_rows(results: Row) -> list[Row]:
    """The rows that have a win rate."""
    return [r for r in results.get("win_rates") or () if number(r.get("rate")) is not None]


def coverage(results: Row) -> str:
    """What of the file was compared, and what was left out and why."""
    matched = results.get("matched") or {}
    where = ", ".join(f"{plain(n, 0)} {SPLITS.get(split, split)}" for split, n in matched.items())
    left = (
        ("unmatched", "match no post of the verdict"),
        ("duplicates", "are of a post that another row had first"),
    )
    parts = [f"{results.get('name')}: {plain(results.get('read'), 0)} rows, {where} compared"]
    parts += [f"{plain(results[key], 0)} {what}" for key, what in left if results.get(key)]
    text = "; ".join(parts) + "."
    if results.get("other_query"):
        text += (
            f" {plain(results['other_query'], 0)} rows have a post's id but another query: "
            "check that they are of the same posts."
        )
    return text


def comparison(where: StageDir) -> RenderableType:
    """The terminal's table of one comparison."""
    manifest = where.manifest()
    return Group(*_blocks(manifest.results if manifest else {}))


def _blocks(results: Row) -> Iterator[RenderableType]:
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=Text(f"win rates in % with 95% intervals, judge: {results.get('judge')}"),
        title_justify="left",
    )
    for name in ("who", "posts", "T"):
        table.add_column(name)
    for name in ("win rate", "tokens", "same length"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in against_rows(results):
        word = compared(row)
        style = "green" if word == "better than" else "red" if word == "worse than" else ""
        temperature = row.get("temperature")
        table.add_row(
            Text(f"{row.get('policy')} v {row.get('opponent')}"),  # a file's name is no markup
            Text(str(row.get("split"))),
            DASH if temperature is None else str(temperature),
            Text(short(row), style=style),
            f"{plain(row.get('tokens'), 0)} v {plain(row.get('opponent_tokens'), 0)}",
            short(row.get("length_matched")),
        )
    yield table
    yield Text(coverage(results))
    if results.get("judge") == "reward":
        yield Text("Judge: the reward model itself, which PPO was trained on.", style="yellow")
