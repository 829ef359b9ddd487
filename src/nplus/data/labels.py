"""What a compared row says of its label: whose it is, of which part, how sure, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nplus.records import RowError

SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)
"""Columns of public preference sets with a score for each side."""


def label_of(where: str, row: Mapping[str, Any], split: str = "train") -> dict[str, Any]:
    """`worker`, `batch`, `split` (else the one given), `confidence` and `margin` of a row."""
    return {
        "worker": name_of(where, row, "worker"),
        "batch": name_of(where, row, "batch"),
        "split": name_of(where, row, "split", split),
        "confidence": confidence_of(where, row),
        "margin": margin_of(where, row),
    }


def margin_of(where: str, row: Mapping[str, Any]) -> float | None:
    """How much better the preferred response is: the row's `margin`, or else the chosen one's score
    less the other's (`SCORES`), where both are numbers; None where nothing tells.

    Below 0 the scores speak against the label. RowError for a margin that is no finite number.
    """
    if (told := row.get("margin")) is not None:
        if (margin := _number(told)) is None:
            raise RowError(
                f"{where}: field 'margin' is {told!r:.40}, expected a finite number or null; mend "
                "or remove it",
                "wrong_value",
                "margin",
            )
        return margin
    for names in SCORES:
        chosen, rejected = (_number(row.get(name)) for name in names)
        if chosen is not None and rejected is not None:
            return chosen - rejected
    return None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def confidence_of(where: str, row: Mapping[str, Any]) -> int | None:
    """1 to 9; None where a batch has none, or null (section 7.2)."""
    extra = row.get("extra")
    if not isinstance(extra, dict | None):
        kind = type(extra).__name__
        raise RowError(
            f"{where}: field 'extra' is {kind}, expected an object; mend or remove it",
            "wrong_type",
            "extra",
        )
    value = (extra or {}).get("confidence")
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise RowError(
        f"{where}: field 'extra.confidence' is {value!r:.40}, expected 1 to 9 or null; mend the "
        "row",
        "wrong_value",
        "extra.confidence",
    )


def name_of(where: str, row: Mapping[str, Any], key: str, default: str = "") -> str:
    """A text that names a policy, a worker, a batch or a split; a number will do."""
    value = row.get(key)
    if value is None or value == "":
        return default
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise RowError(
        f"{where}: field {key!r} is {type(value).__name__}, expected text; mend or remove the row",
        "wrong_type",
        key,
    )
