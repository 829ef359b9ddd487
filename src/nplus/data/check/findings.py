"""What was found: counted without end, a few rows of each kind kept."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nplus.data.check.kinds import KINDS, SEVERITIES, Severity

KEPT = 100
"""Rows that are named of a kind; the count goes on."""
PLACE = re.compile(r"(?P<file>.*?)(?:, split (?P<split>\w+))?, (?:line|row) (?P<row>\d+)(?:, .*)?")


def place(where: str) -> tuple[str, int | None]:
    """File and row of what a message calls `posts.jsonl, line 3`."""
    match = PLACE.fullmatch(where)
    if match is None:
        return where, None
    name = f"{match['file']}:{match['split']}" if match["split"] else match["file"]
    return name, int(match["row"])


@dataclass(slots=True)
class Findings:
    """Findings by kind and severity, and how many rows, pairs... there are of which they are."""

    counts: Counter[tuple[str, Severity]] = field(default_factory=Counter)
    rows: dict[tuple[str, Severity], list[dict[str, Any]]] = field(default_factory=dict)
    populations: Counter[str] = field(default_factory=Counter)
    mends: dict[str, str] = field(default_factory=dict)
    """Mends that name a value, in place of the kind's own."""

    def add(
        self,
        kind: str,
        where: str,
        detail: str = "",
        *,
        field: str = "",
        split: str = "",
        severity: Severity | None = None,
    ) -> None:
        """One more row of a kind, at `where`."""
        key = kind, severity or KINDS[kind].severity
        self.counts[key] += 1
        kept = self.rows.setdefault(key, [])
        if len(kept) < KEPT:
            file, row = place(where)
            why = detail.removeprefix(where).lstrip(":, ")
            kept.append({"file": file, "row": row, "split": split, "field": field, "why": why})

    def raise_to(self, severity: Severity, kind: str) -> None:
        """What was found of `kind` is worse than it is as a rule: there is a lot of it."""
        key = kind, KINDS[kind].severity
        if key in self.counts:
            self.counts[kind, severity] += self.counts.pop(key)
            self.rows[kind, severity] = self.rows.pop(key)

    def total(self, severity: Severity) -> int:
        """Findings of a severity, over all kinds."""
        return sum(count for (_, found), count in self.counts.items() if found == severity)

    def listed(self) -> list[dict[str, Any]]:
        """The findings as JSON, the worst first, and then in the order of `KINDS`."""
        order = list(KINDS)
        keys = sorted(self.counts, key=lambda key: (SEVERITIES.index(key[1]), order.index(key[0])))
        return [self._one(kind, severity) for kind, severity in keys]

    def _one(self, kind: str, severity: Severity) -> dict[str, Any]:
        count, known = self.counts[kind, severity], KINDS[kind]
        of = max(count, self.populations[known.of])
        return {
            "kind": kind,
            "severity": severity,
            "count": count,
            "of": of,
            "unit": known.of,
            "share": count / of,
            "cause": known.cause,
            "mend": self.mends.get(kind, known.mend),
            "rows": self.rows[kind, severity],
        }
