"""A report in a line, and as the one error that stops a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nplus.records import InputError


def one_line(report: Mapping[str, Any]) -> str:
    """`6,600 rows checked: 0 errors, 14 warnings (duplicate_row 12, leakage 2)`."""
    parts = []
    for severity in ("error", "warning"):
        found = [f for f in report["findings"] if f["severity"] == severity]
        kinds = ", ".join(f"{f['kind']} {f['count']:,}" for f in found)
        count = report[f"{severity}s"]
        plural = "" if count == 1 else "s"
        parts.append(f"{count:,} {severity}{plural}" + (f" ({kinds})" if kinds else ""))
    return f"{report['rows']:,} rows checked: {', '.join(parts)}"


def first_error(report: Mapping[str, Any]) -> str:
    """`posts.jsonl, line 3: what is wrong; the mend`, and how many more there are."""
    found = next(f for f in report["findings"] if f["severity"] == "error")
    row = found["rows"][0]
    at = f", row {row['row']}" if row["row"] is not None else ""
    field = f" field {row['field']!r}:" if row["field"] and row["field"] not in row["why"] else ""
    more = report["errors"] - 1
    also = f" ({more:,} more error{'s' * (more > 1)})" if more else ""
    why = row["why"] or found["cause"]
    # A loader's message brings its mend along.
    mend = "" if ";" in why else f"; {found['mend']}"
    return f"{row['file']}{at}:{field} {why}{mend}{also}"


def require(report: Mapping[str, Any]) -> None:
    """InputError that names the first error's file, row, field and mend."""
    if not report["ok"]:
        raise InputError(first_error(report))
