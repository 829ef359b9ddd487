"""Whether labels go with length: a reward model then learns to count before it learns to read."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import Any

from nplus.data.check.findings import Findings

TOLERATED = 0.1
"""How far from one half the share of longer preferred responses may be, its interval included."""


@dataclass(slots=True)
class LengthBias:
    """Lengths of preferred and other responses, pair by pair."""

    chosen: array[int] = field(default_factory=lambda: array("l"))
    rejected: array[int] = field(default_factory=lambda: array("l"))

    def feed(self, chosen: int, rejected: int) -> None:
        """One pair's lengths."""
        self.chosen.append(chosen)
        self.rejected.append(rejected)

    def measure(self, unit: str) -> dict[str, Any] | None:
        """How often the longer response is preferred, and how the label correlates with length.

        `longer_preferred` is of the pairs whose lengths differ, with Wilson's 95% interval.
        `correlation` is Pearson's between the outcome of a pair, seen from either side (1 and -1),
        and its log ratio of lengths, seen from the same side; that is the mean of
        `ln(chosen / rejected)` over its root mean square. Its interval is Fisher's. None without
        pairs.
        """
        from nplus.stats import wilson

        n = len(self.chosen)
        if n == 0:
            return None
        pairs = list(zip(self.chosen, self.rejected, strict=True))
        longer, equal = sum(c > r for c, r in pairs), sum(c == r for c, r in pairs)
        ratios = [math.log((c + 1) / (r + 1)) for c, r in pairs]  # an empty text has length 0
        return {
            "unit": unit,
            "pairs": n,
            "equal": equal,
            "longer_preferred": wilson(longer, n - equal)._asdict() if n > equal else None,
            "correlation": _correlation(ratios),
            "chosen_mean": sum(self.chosen) / n,
            "rejected_mean": sum(self.rejected) / n,
        }


def _correlation(ratios: list[float]) -> dict[str, float] | None:
    spread = math.sqrt(sum(x * x for x in ratios) / len(ratios))
    if spread == 0 or len(ratios) < 4:
        return None
    value = min(max(sum(ratios) / len(ratios) / spread, -1.0), 1.0)
    if abs(value) == 1:
        return {"value": value, "low": value, "high": value}
    middle, half = math.atanh(value), 1.959964 / math.sqrt(len(ratios) - 3)
    return {"value": value, "low": math.tanh(middle - half), "high": math.tanh(middle + half)}


def judge(bias: dict[str, Any] | None, findings: Findings, where: str) -> None:
    """A finding where the interval lies outside what is tolerated."""
    share = bias and bias["longer_preferred"]
    if not share or abs(share["value"] - 0.5) <= TOLERATED:
        return
    if share["low"] > 0.5 + TOLERATED or share["high"] < 0.5 - TOLERATED:
        why = (
            f"the longer response is preferred in {share['value']:.1%} "
            f"[{share['low']:.1%}, {share['high']:.1%}] of the pairs whose lengths differ"
        )
        findings.add("length_bias", where, why)
