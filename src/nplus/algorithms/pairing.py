"""Which two of a prompt's responses make a preference pair (arXiv 2405.07863, section 4.2).

Axes: `M` members that score, `G` responses to one prompt. Scores are penalised already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Candidates:
    """The responses to one prompt, as those who score see them."""

    scores_MG: Tensor
    """[M, G] float64: a row for each member; one row without an ensemble."""
    sources_G: tuple[int, ...]
    """Which source wrote each response."""
    draws: tuple[float, float]
    """Uniforms in (0, 1) for the strategies that draw."""
    aggregate: str = "mean"

    @property
    def scores_G(self) -> Tensor:
        """[G]: the members' mean, or their worst case."""
        found = self.scores_MG
        return found.mean(0) if self.aggregate == "mean" else found.amin(0)

    def among(self, field: Sequence[int]) -> Candidates:
        """Those responses alone, numbered by their place in `field`."""
        sources = tuple(self.sources_G[i] for i in field)
        return replace(self, scores_MG=self.scores_MG[:, list(field)], sources_G=sources)


REASONS = ("truncated", "nan", "duplicate", "tie", "margin")
"""Why a prompt has no pair: fewer than two responses that ended by themselves, a score that is no
number, equal texts, equal scores, or scores nearer than the least margin."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The two responses that were picked, the preferred one first, and why they are left out."""

    chosen: int
    rejected: int
    margin: float
    """Penalised score of the chosen response less that of the other."""
    reason: str = ""
    """Empty for a pair that is kept, else one of `REASONS`."""


def _ranked(scores_G: Tensor) -> list[int]:
    """Responses from the best to the worst; of equal ones the earlier drawn first."""
    return scores_G.argsort(descending=True, stable=True).tolist()


def _one_of(count: int, uniform: float) -> int:
    return min(int(uniform * count), count - 1)


def best_worst(of: Candidates) -> tuple[int, int]:
    """The best against the worst: the paper's choice."""
    ranked = _ranked(of.scores_G)
    return ranked[0], ranked[-1]


def best_second(of: Candidates) -> tuple[int, int]:
    """The best against the second best."""
    ranked = _ranked(of.scores_G)
    return ranked[0], ranked[1]


def best_random(of: Candidates) -> tuple[int, int]:
    """The best against any of the others, each as likely.

    The published `max_random` takes index 0 or 1 instead, which is not random.
    """
    best, *others = _ranked(of.scores_G)
    return best, sorted(others)[_one_of(len(others), of.draws[0])]


def first_two(of: Candidates) -> tuple[int, int]:
    """The first two drawn, whatever their scores: a pair at random."""
    return 0, 1


def across(of: Candidates) -> tuple[int, int]:
    """The best of the first source against the best of the second."""
    ranked = _ranked(of.scores_G)
    first, second = (next(i for i in ranked if of.sources_G[i] == s) for s in (0, 1))
    return first, second


def thompson(of: Candidates) -> tuple[int, int]:
    """A random member's favourite against another's that differs; where all agree, against the
    member's second best (E&E-TS, arXiv 2411.01493)."""
    members = len(of.scores_MG)
    one = _one_of(members, of.draws[0])
    ranked = _ranked(of.scores_MG[one])
    others = [member for member in range(members) if member != one]
    start = _one_of(max(1, len(others)), of.draws[1])
    for other in others[start:] + others[:start]:
        if (favourite := _ranked(of.scores_MG[other])[0]) != ranked[0]:
            return ranked[0], favourite
    return ranked[0], ranked[1]


def bai(of: Candidates) -> tuple[int, int]:
    """A random member's favourite against the response whose advantage over it the members
    disagree on most (best-arm identification, arXiv 2411.01493)."""
    first = _ranked(of.scores_MG[_one_of(len(of.scores_MG), of.draws[0])])[0]
    spread_G = (of.scores_MG - of.scores_MG[:, first : first + 1]).var(0, correction=0)
    spread_G[first] = -1.0
    return first, int(spread_G.argmax())


def uncertain(of: Candidates) -> tuple[int, int]:
    """The two responses whose difference the members disagree on most: pure exploration."""
    difference_MGG = of.scores_MG[:, :, None] - of.scores_MG[:, None, :]
    spread_GG = difference_MGG.var(0, correction=0).triu(1)
    spread_GG[torch.ones_like(spread_GG, dtype=torch.bool).tril()] = -1.0
    return divmod(int(spread_GG.argmax()), spread_GG.shape[1])


PAIRINGS: Mapping[str, Callable[[Candidates], tuple[int, int]]] = {
    "best_worst": best_worst,
    "best_second": best_second,
    "best_random": best_random,
    "first_two": first_two,
    "across": across,
    "thompson": thompson,
    "bai": bai,
    "uncertain": uncertain,
}


def penalised(
    scores: Tensor, lengths_G: Tensor, ended_G: Tensor, *, length: float, missing_eos: float
) -> Tensor:
    """[..., G]: `score - length * its length`, and `missing_eos` less for one that was cut off."""
    return scores - length * lengths_G - missing_eos * (~ended_G).to(scores.dtype)


def pick(
    of: Candidates,
    texts: Sequence[str],
    pairing: str,
    *,
    min_margin: float = 0.0,
    field: Sequence[int] | None = None,
) -> Pair:
    """The pair of `pairing` among the responses `field` (all, if None), the one of the higher
    penalised score first.

    The published code turns a pair back to the raw order, so that its length penalty selects and
    never re-orders; here what selects also orients. Raises ValueError for an unknown pairing.
    """
    if pairing not in PAIRINGS:
        raise ValueError(f"unknown pairing {pairing!r}; known: {sorted(PAIRINGS)}")
    if field is not None:
        sources = {of.sources_G[i] for i in field}
        if len(field) < 2 or (pairing == "across" and len(sources) < 2):
            return Pair(0, 1, math.nan, "truncated")
        found = pick(of.among(field), [texts[i] for i in field], pairing, min_margin=min_margin)
        return replace(found, chosen=field[found.chosen], rejected=field[found.rejected])
    if not bool(of.scores_MG.isfinite().all()):
        return Pair(0, 1, math.nan, "nan")
    one, other = PAIRINGS[pairing](of)
    scores = of.scores_G.tolist()
    return oriented(one, other, scores[one] - scores[other], texts, min_margin=min_margin)


def oriented(
    one: int, other: int, margin: float, texts: Sequence[str], *, min_margin: float = 0.0
) -> Pair:
    """The pair of two responses, `one` better by `margin`: the better first, and the reason where
    it is left out."""
    if math.isnan(margin):
        return Pair(0, 1, math.nan, "nan")
    if margin < 0:
        one, other, margin = other, one, -margin
    if texts[one] == texts[other]:
        reason = "duplicate"
    elif margin == 0:
        reason = "tie"
    else:
        reason = "margin" if margin < min_margin else ""
    return Pair(one, other, margin, reason)


Matches = Sequence[tuple[int, int, int]]
"""`(prompt, one response, another)` each."""


def knock_out(
    field: Sequence[Sequence[int]], prefers: Callable[[Matches], Sequence[float]], *, best: bool
) -> list[int]:
    """The best (or worst) response of every prompt by a comparator: the winner so far meets the
    next, `n - 1` matches a prompt (arXiv 2405.07863, section 4.2); an even match changes nothing.

    `field` has the responses of each prompt that take part; `prefers` gives p(the first of a match
    is better).
    """
    holders = [row[0] for row in field]
    for turn in range(1, max(map(len, field), default=0)):
        matches = [
            (prompt, holders[prompt], row[turn])
            for prompt, row in enumerate(field)
            if turn < len(row)
        ]
        for (prompt, _, rival), p in zip(matches, prefers(matches), strict=True):
            if (p < 0.5) if best else (p > 0.5):
                holders[prompt] = rival
    return holders
