"""The gold scorer: how good a summary is, given the facts its post was written from.

    gold = sum_k  w_k * covered_k
           - wrong   * (number of distinct wrong facts)
           - length  * max(0, words - budget)
           - broken  * (unfinished + salad)
           - repeat  * repeats

covered_k    1 if the sheet's value of slot k occurs in any recognised wording.
wrong facts  recognised values of a slot's pool that are not the sheet's value: invented, swapped,
             or taken from a distractor of the post. The right head with the wrong modifier (`lazy
             uncle` for `bossy uncle`) is wrong. The identifying part alone (`uncle`) counts as
             nothing when it is the sheet's and as wrong when it is not.
words        words and numbers; punctuation is free.
unfinished   1 if the text does not end in `.`, `?` or `!` (so an empty text is unfinished).
salad        0..2, from the share of three neighbouring words, inside a clause and its two ends
             counted as words, that no sentence of this domain puts together (a value counts as
             one word, its slot), and of articles that lead nowhere:
             2 * min(1, max(0, share - 0.1) / 0.4). A text without words has 2.
repeats      mentions of a value beyond its first, plus separate four-word sequences that occurred
             before.

A labeller of temperature one prefers the better of two texts that differ by one unit with
probability 0.73.
"""

from dataclasses import dataclass

from nplus.data.world.facts import FactSheet, domains
from nplus.data.world.grammar import (
    DETERMINERS,
    Mention,
    Token,
    recogniser,
    segments,
    tokenise,
    word_triples,
)

TOLERATED_SHARE = 0.1
SALAD_RANGE = 0.4
REPEAT_NGRAM = 4


@dataclass(frozen=True, slots=True)
class GoldWeights:
    """Weights of the formula: one per slot (actor to reaction belong to the news), one per penalty.

    `budget` is in words and `length` per word beyond it.
    """

    event: float = 1.0
    question: float = 0.9
    complication: float = 0.9
    amount: float = 0.6
    person: float = 0.6
    setting: float = 0.4
    feeling: float = 0.35
    narrator: float = 0.25
    actor: float = 0.6
    place: float = 0.4
    cause: float = 0.9
    number: float = 0.6
    reaction: float = 0.6
    wrong: float = 1.2
    length: float = 0.15
    budget: int = 22
    broken: float = 1.0
    repeat: float = 0.4


@dataclass(frozen=True, slots=True)
class GoldScore:
    """The total and its parts; `broken` is unfinished + salad, `over` counts words over budget."""

    total: float
    covered: tuple[str, ...]
    wrong: tuple[tuple[str, str], ...]
    words: int
    over: int
    broken: float
    repeats: int


def judge_mentions(
    sheet: FactSheet, mentions: list[Mention]
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Slots stated rightly, in the sheet's order; distinct wrong (slot, value)s, in the text's."""
    facts = sheet.facts
    parts = _identifying_parts(sheet)
    right = {m.slot for m in mentions if m.whole and m.value == facts[m.slot]}
    wrong = {
        (m.slot, m.value): None
        for m in mentions
        if m.value != (facts[m.slot] if m.whole else parts[m.slot])
    }
    return tuple(slot for slot in facts if slot in right), tuple(wrong)


def _identifying_parts(sheet: FactSheet) -> dict[str, str | None]:
    by_name = domains()[sheet.domain].by_name
    return {slot: by_name[slot, value].part for slot, value in sheet.facts.items()}


def _salad(domain: str, tokens: list[Token], mentions: list[Mention]) -> float:
    if not any(token.is_word for token in tokens):
        return 2.0
    words: list[str] = []
    at = stray = 0
    for mention in mentions:
        words.extend(token.text for token in tokens[at : mention.first])
        words.append(f"<{mention.slot}>")
        at = mention.last
    words.extend(token.text for token in tokens[at:])
    seen = word_triples(domain)
    triples = [
        triple for run in segments(words) for triple in zip(run, run[1:], run[2:], strict=False)
    ]
    # A determiner must be followed by a word that is not one.
    for here, after in zip(words, [*words[1:], "."], strict=True):
        if here in DETERMINERS and (after in DETERMINERS or after in ".,;?!:"):
            stray += 1
    # A text of determiners alone has no triples and is all stray.
    share = (stray + sum(triple not in seen for triple in triples)) / max(1, len(triples))
    return 2.0 * min(1.0, max(0.0, share - TOLERATED_SHARE) / SALAD_RANGE)


def _repeats(tokens: list[Token], mentions: list[Mention]) -> int:
    values = [(m.slot, m.value) for m in mentions if m.whole]
    words = [token.text for token in tokens if token.is_word]
    count, at, seen = len(values) - len(set(values)), 0, set()
    while at + REPEAT_NGRAM <= len(words):
        gram = tuple(words[at : at + REPEAT_NGRAM])
        count += gram in seen
        at += REPEAT_NGRAM if gram in seen else 1
        seen.add(gram)
    return count


class GoldScorer:
    """Scores texts against fact sheets; see the module's formula."""

    def __init__(self, weights: GoldWeights | None = None):
        self.weights = weights or GoldWeights()

    def score(self, sheet: FactSheet, text: str) -> GoldScore:
        tokens = tokenise(text)
        mentions = recogniser(sheet.domain).mentions(tokens)
        covered, wrong = judge_mentions(sheet, mentions)
        words = sum(token.is_word for token in tokens)
        over = max(0, words - self.weights.budget)
        unfinished = not tokens or tokens[-1].text not in ".?!"
        broken = unfinished + _salad(sheet.domain, tokens, mentions)
        repeats = _repeats(tokens, mentions)
        w = self.weights
        total = (
            sum(getattr(w, slot) for slot in covered)
            - w.wrong * len(wrong)
            - w.length * over
            - w.broken * broken
            - w.repeat * repeats
        )
        return GoldScore(total, covered, wrong, words, over, broken, repeats)
