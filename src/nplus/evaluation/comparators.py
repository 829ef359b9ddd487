"""Which of two responses is better: by an LLM judge or by scores, in either order (Detail H2)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from nplus.evaluation.accuracy import share
from nplus.records import Comparison, InputError, Judgement, Sample, Scorer, Verdict, Winner
from nplus.seeding import uniforms
from nplus.stats import newcombe, win_rate

EOS_TEXT = "<|endoftext|>"

JUDGE_PROMPT = """\
Two people have each summarised the same forum post. Find out which summary serves a reader better.

### Post
{post}

### Summary A
{first}

### Summary B
{second}

### Instructions
The better summary states the points of the post that matter most and leaves out details that do \
not matter. Judge three things: accuracy (it says nothing that the post does not say), coverage \
(the important points are there) and coherence (it is clear and reads well by itself).

Answer with exactly two lines. The first compares the two summaries in one sentence. The second \
names the better one by its letter alone:
Comparison: <one sentence>
Better: <A or B>
"""
"""Takes `post`, `first` and `second`."""

_ANSWER = re.compile(
    r"^[\W_]*(?:better|preferred|answer)(?: summary)?[\W_]*?:[\W_]*(.*)$", re.I | re.M
)
_LETTER = re.compile(r"[\W_]*(?:summary[\W_]*)?([AB])[\W_]*", re.I)

_MIRROR: dict[str, Winner] = {
    "ours": "opponent",
    "opponent": "ours",
    "tie": "tie",
    "invalid": "invalid",
}
_POINTS = {"ours": (1.0, 0.0), "tie": (0.5, 0.5), "opponent": (0.0, 1.0)}


class Comparator(Protocol):
    """Says of each comparison which response it prefers; `choice` is not looked at."""

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """One verdict a comparison, in their order. Where responses are shown, `responses[0]`
        ("ours") is shown first."""
        ...


# --- the LLM judge ------------------------------------------------------------------------------


def shown(response: str, eos_text: str = EOS_TEXT) -> str:
    """A response as the judge sees it: cut at the EOS marker, without outer white space."""
    return response.partition(eos_text)[0].strip()


def judge_prompt(query: str, first: str, second: str, *, eos_text: str = EOS_TEXT) -> str:
    """The question to the judge: `first` is Summary A, the post is the whole query (Detail H2)."""
    return JUDGE_PROMPT.format(
        post=query.strip(), first=shown(first, eos_text), second=shown(second, eos_text)
    )


def parse_reply(reply: str) -> str | None:
    """`"A"`, `"B"`, or None for a reply that does not name exactly one of them.

    Every labelled line counts (`Better: A`); a reply without any is read by its last line, which
    must be the letter alone. None is neither a loss nor a coin (quirk Q7).
    """
    lines = [line for line in reply.splitlines() if line.strip()]
    said = _ANSWER.findall(reply) or lines[-1:]
    found = [_LETTER.fullmatch(text) for text in said]
    letters = {match[1].upper() if match else "" for match in found}
    return letters.pop() if letters in ({"A"}, {"B"}) else None


@dataclass(frozen=True, slots=True)
class LLMJudge:
    """Asks a language model (Detail H2); Summary A is `responses[0]`, so mind the order: see
    `ordered`."""

    ask: Callable[[str], str]
    """From a prompt to the model's reply."""
    each: Callable[[Callable[[str], str], Sequence[str]], Iterable[str]] = map
    """How prompts are put: `map` one by one, `ChatClient.each` side by side."""
    eos_text: str = EOS_TEXT

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """One question a comparison; equal questions are asked once."""
        prompts = [judge_prompt(c.query, *c.responses, eos_text=self.eos_text) for c in comparisons]
        different = list(dict.fromkeys(prompts))
        replies = dict(zip(different, self.each(self.ask, different), strict=True))
        return [
            _verdict_of_reply(row.id, replies[prompt])
            for row, prompt in zip(comparisons, prompts, strict=True)
        ]


def _verdict_of_reply(id: str, reply: str) -> Verdict:
    letter = parse_reply(reply)
    winner: Winner = "invalid" if letter is None else "ours" if letter == "A" else "opponent"
    return Verdict(id, winner, shown_first=("ours",), votes=(winner,), replies=(reply,))


# --- scores -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScoreComparator:
    """The higher score wins, equal scores tie, and NaN is no answer."""

    scorer: Scorer

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        samples = [Sample(c.id, c.query, text) for c in comparisons for text in c.responses]
        scores = self.scorer.score(samples)
        pairs = zip(comparisons, scores[::2], scores[1::2], strict=True)
        return [Verdict(row.id, _higher(ours, theirs)) for row, ours, theirs in pairs]


def _higher(ours: float, theirs: float) -> Winner:
    if math.isnan(ours) or math.isnan(theirs):
        return "invalid"
    return "tie" if ours == theirs else "ours" if ours > theirs else "opponent"


# --- order --------------------------------------------------------------------------------------


def swapped(row: Comparison) -> Comparison:
    """The same comparison with the other response first."""
    return replace(
        row, responses=row.responses[::-1], policies=row.policies[::-1], choice=1 - row.choice
    )


def mirrored(verdict: Verdict) -> Verdict:
    """A verdict on a swapped comparison, said of the comparison as it was."""
    return replace(
        verdict,
        winner=_MIRROR[verdict.winner],
        shown_first=tuple(_MIRROR[side] for side in verdict.shown_first),
        votes=tuple(_MIRROR[vote] for vote in verdict.votes),
    )


def ours_first(seed: int, id: str) -> bool:
    """The coin of an item: index 0 is ours first (Detail H2). It depends on seed and id only."""
    return int(2 * uniforms(seed, "judge", id, n=1)[0]) == 0


@dataclass(frozen=True, slots=True)
class RandomOrder:
    """Asks once, in an order drawn per item by name (Detail H2)."""

    comparator: Comparator
    seed: int

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        keep = [ours_first(self.seed, row.id) for row in comparisons]
        rows = [row if k else swapped(row) for row, k in zip(comparisons, keep, strict=True)]
        found = zip(self.comparator.compare(rows), keep, strict=True)
        return [verdict if k else mirrored(verdict) for verdict, k in found]


@dataclass(frozen=True, slots=True)
class Symmetrised:
    """Asks in both orders: what they agree on stands, what they disagree on is a tie.

    An invalid answer in either order makes the item invalid: one order alone is not symmetric.
    """

    comparator: Comparator

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        n = len(comparisons)
        found = self.comparator.compare([*comparisons, *map(swapped, comparisons)])
        return [_merged(a, mirrored(b)) for a, b in zip(found[:n], found[n:], strict=True)]


def _merged(a: Verdict, b: Verdict) -> Verdict:
    if "invalid" in (a.winner, b.winner):
        winner: Winner = "invalid"
    else:
        winner = a.winner if a.winner == b.winner else "tie"
    return Verdict(
        a.id, winner, a.shown_first + b.shown_first, a.votes + b.votes, a.replies + b.replies
    )


ORDERS: dict[str, Callable[[Comparator, int], Comparator]] = {
    "random": RandomOrder,
    "both": lambda comparator, seed: Symmetrised(comparator),
}


def ordered(comparator: Comparator, order: str, seed: int) -> Comparator:
    """`comparator` with its order effects handled: `random` or `both`."""
    if order not in ORDERS:
        raise InputError(f"judge.order={order}: not an order; choose one of {sorted(ORDERS)}")
    return ORDERS[order](comparator, seed)


# --- what verdicts come to ----------------------------------------------------------------------


def verdict_report(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Win rate over valid answers (a tie is half a win), invalid ones apart, and position bias.

    `n` counts valid answers, `asked` all; `invalid_share` is their share with a Wilson interval.
    `position` is None where no order is shown. Raises ValueError without verdicts.
    """
    if not verdicts:
        raise ValueError("no verdicts to report")
    counts = Counter(verdict.winner for verdict in verdicts)
    rate = win_rate(counts["ours"], counts["tie"], counts["opponent"])
    return {
        "wins": rate.wins,
        "ties": rate.ties,
        "losses": rate.losses,
        "invalid": counts["invalid"],
        "n": rate.n,
        "asked": len(verdicts),
        "rate": rate.rate,
        "low": rate.low,
        "high": rate.high,
        "invalid_share": share(counts["invalid"], len(verdicts)),
        "position": position_report(verdicts),
    }


def position_report(verdicts: Sequence[Verdict]) -> dict[str, Any] | None:
    """How much the place decides, from single answers; None where nothing is shown in order.

    `ours_first` and `ours_second`: our win rate by our place, with Wilson intervals. `difference`:
    the first minus the second, 0 for a judge that ignores the place; its interval (Newcombe) takes
    the two as independent, which is cautious where both orders are asked of the same items.
    `first_wins`: share of answers for whatever stands first. `consistent`: share of the items
    asked and answered in both orders whose two answers agree.
    """
    answers = [
        (side, vote)
        for verdict in verdicts
        for side, vote in zip(verdict.shown_first, verdict.votes, strict=True)
    ]
    if not answers:
        return None
    first = _place(vote for side, vote in answers if side == "ours")
    second = _place(vote for side, vote in answers if side == "opponent")
    points = [row["rate"] * row["n"] if row["n"] else 0.0 for row in (first, second)]
    difference = newcombe(points[0], first["n"], points[1], second["n"])
    decided = [(side, vote) for side, vote in answers if vote in ("ours", "opponent")]
    twice = [v.votes for v in verdicts if len(v.votes) > 1 and "invalid" not in v.votes]
    return {
        "ours_first": first,
        "ours_second": second,
        "difference": {
            "value": difference.value,
            "low": difference.low,
            "high": difference.high,
        },
        "first_wins": share(sum(side == vote for side, vote in decided), len(decided)),
        "consistent": share(sum(len(set(votes)) == 1 for votes in twice), len(twice)),
    }


def _place(votes: Iterable[str]) -> dict[str, Any]:
    counts = Counter(votes)
    rate = win_rate(counts["ours"], counts["tie"], counts["opponent"])
    return {
        "rate": rate.rate,
        "low": rate.low,
        "high": rate.high,
        "n": rate.n,
        "invalid": counts["invalid"],
    }


def judged(judgements: Sequence[Judgement], verdicts: Sequence[Verdict]) -> list[Judgement]:
    """Judgements with the verdicts' points (1, 0; both 1/2 for a tie) in place of their scores.

    So `winrate.summarise` gives lengths and the rate at matched length (Detail H3) for any
    comparator. Items without a valid answer are left out. Raises ValueError where ids differ.
    """
    found = []
    for row, verdict in zip(judgements, verdicts, strict=True):
        if row.id != verdict.id:
            raise ValueError(f"verdict {verdict.id!r} stands beside judgement {row.id!r}")
        if verdict.winner != "invalid":
            ours, theirs = _POINTS[verdict.winner]
            found.append(replace(row, score=ours, opponent_score=theirs))
    return found
