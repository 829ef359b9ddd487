"""What a data check found: for a terminal, and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Report = Mapping[str, Any]

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
EDGE = 12
"""Tokens shown on either side of a boundary."""
WHY = 110
"""Characters of a reason."""


def shown(report: Report, rows: int = 3) -> RenderableType:
    """The whole report for a terminal, `rows` rows of each finding."""
    parts: list[RenderableType] = [_sources(report), _splits(report)]
    if report["findings"]:
        parts.append(_findings(report["findings"], rows))
    parts += [Text(line) for line in facts(report)]
    parts += [_preview(row) for row in report["preview"]]
    return Group(*parts)


def _sources(report: Report) -> RenderableType:
    files = [f"{f['file']}: {f['rows']:,} {f['kind']}" for f in report.get("files", ())]
    told = report.get("tokenizer")
    if told:
        files.append(f"tokenizer: {told['name'] or 'none'} ({told['why']})")
    return Text("\n".join(files))


def _splits(report: Report) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("split")
    for name in ("rows", "faulty", "query cut"):
        table.add_column(name, justify="right")
    for split, counts in report["splits"].items():
        cut = f"{counts['truncated']:,}" if report["lengths"]["truncated"] else "-"
        table.add_row(Text(split), f"{counts['rows']:,}", f"{counts['faulty']:,}", cut)
    return table


def _findings(findings: Sequence[Mapping[str, Any]], rows: int) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("finding")
    table.add_column("count", justify="right")
    table.add_column("share", justify="right")
    table.add_column("cause, rows and mend", overflow="fold")
    for found in findings:
        style = STYLES[found["severity"]]
        text = Text(found["cause"])
        for row in found["rows"][:rows]:
            text.append(f"\n{where(row)}  {row['why'].partition('; ')[0][:WHY]}", style="dim")
        left = found["count"] - min(rows, len(found["rows"]))
        if left:
            text.append(f"\nand {left:,} more", style="dim")
        text.append(f"\n{found['mend']}", style="italic")
        name = Text(f"{found['severity']}\n{found['kind']}", style=style)
        share = f"{found['share']:.2%}" if found["unit"] != "files" else ""
        table.add_row(name, f"{found['count']:,}", f"{share}\nof {found['unit']}", text)
    return table


def where(row: Mapping[str, Any]) -> str:
    """`posts.jsonl:3`."""
    return f"{row['file']}:{row['row']}" if row["row"] is not None else str(row["file"])


def facts(report: Report) -> Iterator[str]:
    """Lengths, cut queries, EOS and length bias, a line each."""
    lengths = report["lengths"]
    for name in ("query", "response"):
        found = lengths[name]
        if found:
            yield (
                f"{name}: {found['mean']:,.1f} {lengths['unit']} on average, median "
                f"{found['median']:,}, 95% at most {found['p95']:,}, longest {found['max']:,}"
            )
    cut, eos, bias = lengths["truncated"], lengths["eos"], report["length_bias"]
    if cut:
        yield f"queries that are cut: {cut['count']:,} of {cut['of']:,} ({cut['share']:.2%})"
    if eos and eos["of"]:
        yield f"responses that keep their EOS: {eos['kept']:,} of {eos['of']:,}"
    if bias and bias["longer_preferred"]:
        share, related = bias["longer_preferred"], bias["correlation"]
        yield (
            f"the longer response is preferred: {share['value']:.1%} "
            f"[{share['low']:.1%}, {share['high']:.1%}] of pairs; preferred ones have "
            f"{bias['chosen_mean']:,.1f} {bias['unit']}, the others {bias['rejected_mean']:,.1f}"
        )
        if related:
            yield (
                f"correlation of label and log length ratio: {related['value']:.3f} "
                f"[{related['low']:.3f}, {related['high']:.3f}]"
            )


def _preview(row: Mapping[str, Any]) -> RenderableType:
    """A row with its ids around the boundaries."""
    text = Text(f"\n{row['kind']}, {where(row)}\n", style="bold")
    text.append(row["query"], style="not bold cyan")
    text.append("|", style="reverse")
    text.append(row["response"], style="not bold green")
    if row["ids"] is None:
        return text
    at, end = row["response_begins"], len(row["ids"])
    begins = end if at is None else at
    text.append(f"\nquery: ids 0 to {begins - 1}", style="not bold")
    if at is not None:
        eos = f"EOS is id {row['eos']}" if row["eos"] is not None else "no EOS"
        text.append(f"; response: ids {at} to {end - 1}; {eos}", style="not bold")
    for first, last in windows(begins, end):
        pieces = (f"{row['tokens'][i]!r}:{row['ids'][i]}" for i in range(first, last))
        text.append(f"\n{first}.. ", style="not bold dim")
        text.append(" ".join(pieces), style="not bold dim")
    return text


def windows(begins: int, end: int) -> list[tuple[int, int]]:
    """Ids around the end of the query, and the last ones; one window where they meet."""
    first, second = (max(0, begins - EDGE), min(end, begins + EDGE)), (max(0, end - EDGE), end)
    return [first, second] if second[0] > first[1] else [(first[0], end)]


def page_row(stage: str, report: Report | None) -> dict[str, Any] | None:
    """What the page shows of a stage's check; None where there was none."""
    if report is None:
        return None
    return {
        "stage": stage,
        "rows": report.get("rows"),
        "findings": [
            {**found, "first": [where(row) for row in found["rows"][:3]]}
            for found in report.get("findings", ())
        ],
        "facts": list(facts(report)),
    }
