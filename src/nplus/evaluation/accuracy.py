"""Reward-model accuracy, whole and by group (Detail D6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nplus.records import Comparison, Margin
from nplus.stats import wilson

VALIDATION = "validation"
"""The source of the held-out comparisons of a run's own labels."""


def share(successes: int, n: int) -> dict[str, float]:
    """`{rate, low, high, n}` with a 95% Wilson interval."""
    low, high = wilson(successes, n)[1:] if n else (0.0, 1.0)
    return {"rate": successes / n if n else float("nan"), "low": low, "high": high, "n": n}


def accuracy_report(rows: Sequence[Comparison], margins: Sequence[float]) -> dict[str, Any]:
    """Share of positive margins (score of the chosen response minus the other's), strictly.

    Detail D6: overall, per split, per batch, per policy pair and per confidence, each with a 95%
    Wilson interval; rows without a confidence are left out of that table only.
    """

    def grouped(name: Callable[[Comparison], str | None]) -> list[dict[str, Any]]:
        groups: dict[str, list[bool]] = {}
        for row, margin in zip(rows, margins, strict=True):
            key = name(row)
            if key is not None:
                groups.setdefault(key, []).append(margin > 0)
        return [_group(key, hits) for key, hits in sorted(groups.items())]

    return {
        "accuracy": share(sum(margin > 0 for margin in margins), len(margins)),
        "by_split": grouped(lambda row: row.split),
        "by_batch": grouped(lambda row: row.batch),
        "by_policies": grouped(lambda row: "--".join(sorted(row.policies))),
        "by_confidence": grouped(
            lambda row: None if row.confidence is None else str(row.confidence)
        ),
    }


def _group(name: str, hits: Sequence[bool]) -> dict[str, Any]:
    found = share(sum(hits), len(hits))
    return {"name": name, "accuracy": found.pop("rate"), **found}


def margin_records(
    rows: Sequence[Comparison], margins: Sequence[float], source: str = VALIDATION
) -> list[Margin]:
    """What `margins.jsonl` holds of scored comparisons."""
    return [
        Margin(
            id=row.id,
            policies=row.policies,
            margin=margin,
            source=source,
            split=row.split,
            batch=row.batch,
            confidence=row.confidence,
        )
        for row, margin in zip(rows, margins, strict=True)
    ]
