"""How often two judges order the same pairs alike (Detail D7).

A judgement of a pair is a signed number: positive when the first response is better, 0 for a tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from nplus.evaluation.accuracy import share


def agreement(preferred: Sequence[float], scored: Sequence[float]) -> dict[str, Any]:
    """`{rate, low, high, n, ties, decided}` of a reward model against a judge (Detail D7).

    `preferred` is the judge's order, ours against the reference; `scored` the reward model's score
    of ours minus that of the reference, without the EOS trick. The rate is the paper's
    `(#(reference preferred & ours scores less) + #(ours preferred & ours scores more)) / N`: a tie
    of either disagrees. `ties` counts the judge's; `decided` is the same share without them.
    Raises ValueError when the two differ in length.
    """
    pairs = list(zip(preferred, scored, strict=True))
    alike = sum(_alike(one, other) for one, other in pairs)
    ties = sum(one == 0 for one, _ in pairs)
    return {**share(alike, len(pairs)), "ties": ties, "decided": share(alike, len(pairs) - ties)}


def seed_agreement(margins: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """`{a, b, rate, low, high, n, chance}` of every two runs' reward models.

    `margins` maps a run's name to its margins, chosen minus rejected, on the same comparisons in
    the same order. `chance` is the agreement of two models of these accuracies whose mistakes have
    nothing to do with each other. Raises ValueError when the runs differ in length.
    """
    rows = []
    for (a, ours), (b, theirs) in combinations(margins.items(), 2):
        pairs = list(zip(ours, theirs, strict=True))
        found = share(sum(_alike(one, other) for one, other in pairs), len(pairs))
        rows.append({"a": a, "b": b, **found, "chance": _chance(ours, theirs)})
    return rows


def _alike(one: float, other: float) -> bool:
    return (one > 0 and other > 0) or (one < 0 and other < 0)


def _chance(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Both right or both wrong, ties left aside."""
    if not len(ours):
        return float("nan")
    right = [sum(m > 0 for m in side) / len(side) for side in (ours, theirs)]
    wrong = [sum(m < 0 for m in side) / len(side) for side in (ours, theirs)]
    return right[0] * right[1] + wrong[0] * wrong[1]
