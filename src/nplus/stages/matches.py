"""Who is set against whom, post by post, and what comes of it (details H3, H4, D7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nplus.evaluation.agreement import agreement
from nplus.evaluation.comparators import Comparator, judged, position_report
from nplus.evaluation.winrate import summarise
from nplus.records import Comparison, Judgement, Verdict
from nplus.stages.systems import POLICIES, REFERENCE, System


@dataclass(frozen=True, slots=True)
class Match:
    """Two systems on the same posts: a judgement each, None where the judge gave no answer.

    `verdicts` are a comparator's; empty where scores decide.
    """

    ours: System
    theirs: System
    judgements: list[Judgement | None]
    verdicts: list[Verdict]

    @property
    def valid(self) -> list[Judgement]:
        """The judgements there are."""
        return [row for row in self.judgements if row is not None]

    def part(self, name: str, index: Sequence[int]) -> Match:
        """The same of some of the posts."""
        verdicts = [self.verdicts[i] for i in index] if self.verdicts else []
        sides = (self.ours.part(name, index), self.theirs.part(name, index))
        return Match(*sides, [self.judgements[i] for i in index], verdicts)

    def summary(self, length_bins: int) -> dict[str, Any]:
        """One row of the win rates; a comparator's adds `invalid` and `position`.

        The rate is None where the judge answered nothing.
        """
        unknown = {"wins": 0, "ties": 0, "losses": 0, "n": 0, "rate": None}
        found = summarise(self.valid, length_bins=length_bins) if self.valid else unknown
        row = {**self._head(), **found}
        if self.verdicts:
            row["invalid"] = len(self.judgements) - len(self.valid)
            row["position"] = position_report(self.verdicts)
        return row

    def agreement(self) -> dict[str, Any]:
        """How often the reward model orders the two responses as the judge does (Detail D7)."""
        there = [(i, row) for i, row in enumerate(self.judgements) if row is not None]
        preferred = [row.score - row.opponent_score for _, row in there]
        scored = [self.ours.proxy[i] - self.theirs.proxy[i] for i, _ in there]
        return {**self._head(), **agreement(preferred, scored)}

    def _head(self) -> dict[str, Any]:
        ours = self.ours
        return {
            "policy": ours.policy,
            "opponent": self.theirs.policy,
            "temperature": ours.temperature,
            "split": ours.split,
        }


def play(ours: System, theirs: System, comparator: Comparator | None = None) -> Match:
    """Judge every pair: by the systems' scores, or by a comparator that sees both responses.

    Tuned policies meet the references, and the SFT policy too (Detail H4).
    """
    rows = [
        Judgement(
            id=post.id,
            split=ours.split,
            policy=ours.label,
            opponent=theirs.policy,
            response=ours.texts[i],
            opponent_response=theirs.texts[i],
            score=ours.score[i],
            opponent_score=theirs.score[i],
            tokens=max(1, ours.tokens[i]),
            opponent_tokens=max(1, theirs.tokens[i]),
        )
        for i, post in enumerate(ours.posts)
    ]
    if comparator is None:
        return Match(ours, theirs, list(rows), [])
    asked = [
        Comparison(
            id=post.id,
            query=post.query,
            responses=(row.response, row.opponent_response),
            policies=(row.policy, row.opponent),
            choice=0,
        )
        for post, row in zip(ours.posts, rows, strict=True)
    ]
    verdicts = comparator.compare(asked)
    answers = [next(iter(judged([r], [v])), None) for r, v in zip(rows, verdicts, strict=True)]
    return Match(ours, theirs, answers, verdicts)


def pairings(systems: Mapping[str, System]) -> list[tuple[System, System]]:
    """Every policy against the references, then every tuned one against SFT (details H1, H4)."""
    names = [name for name in POLICIES if name in systems]
    against_references = [(systems[name], systems[REFERENCE]) for name in names]
    tuned = [name for name in names if name != POLICIES[0]]
    return against_references + [
        (systems[name], systems[POLICIES[0]]) for name in tuned if POLICIES[0] in systems
    ]


def verdict_line(win_rates: Sequence[Mapping[str, Any]]) -> str:
    """The near-greedy verdict on the main split in one sentence."""
    first = win_rates[0]
    main = [
        row
        for row in win_rates
        if row["rate"] is not None
        and all(row[key] == first[key] for key in ("split", "temperature"))
    ]

    def told(opponent: str, verb: str = "") -> str:
        rows = [row for row in main if row["opponent"] == opponent]
        shares = [f"{r['rate']:.0%} [{r['low']:.0%}, {r['high']:.0%}]" for r in rows]
        verbs = [verb, *[""] * len(rows)]
        return _listed(
            [f"{r['policy'].upper()} {v}{s}" for r, v, s in zip(rows, verbs, shares, strict=False)]
        )

    tuned = told(POLICIES[0], "beats SFT in ")
    line = f"Against the references {told(REFERENCE, 'wins ')}"
    return f"{line}; {tuned}." if tuned else f"{line}."


def _listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
