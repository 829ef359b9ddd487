"""Workers who compare two summaries: Bradley-Terry over gold, each with own noise and taste.

P(first is chosen) = sigmoid((gold_1 - gold_2) / temperature + sum_f bias_f * (f_1 - f_2))
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp

import numpy as np

from nplus.data.world.dice import Dice
from nplus.data.world.facts import FactSheet

NO_CONFIDENCE = 0.05


@dataclass(frozen=True, slots=True)
class Pair:
    """Two summaries of one post with their gold scores."""

    gold1: float
    gold2: float
    text1: str
    text2: str
    sheet: FactSheet | None = None
    post: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """A worker's choice.

    choice: 0 or 1. confidence: 1 (surely the first) to 9 (surely the second), never 5, None now
    and then. probability: what this worker's chance of choosing the first was.
    """

    worker: str
    choice: int
    confidence: int | None
    probability: float


def _length(text: str, pair: Pair) -> float:
    """Tens of words."""
    return len(text.split()) / 10


def _copied(text: str, pair: Pair) -> float:
    """Share of three-word sequences that stand in the post."""
    words, post = text.split(), f" {' '.join(pair.post.split())} "
    grams = [f" {' '.join(words[i : i + 3])} " for i in range(len(words) - 2)]
    return sum(gram in post for gram in grams) / len(grams) if grams else 0.0


def _feeling(text: str, pair: Pair) -> float:
    """1 if the post's feeling is mentioned."""
    feeling = pair.sheet.facts.get("feeling") if pair.sheet else None
    return float(feeling is not None and feeling in text)


def _asks(text: str, pair: Pair) -> float:
    """1 if there is a question mark."""
    return float("?" in text)


FEATURES = {"length": _length, "copied": _copied, "feeling": _feeling, "asks": _asks}


@dataclass(frozen=True, slots=True)
class Labeller:
    """A worker; `biases` are pairs (name in FEATURES, weight on the difference first - second)."""

    worker: str
    temperature: float
    biases: tuple[tuple[str, float], ...] = ()

    def logit(self, pair: Pair) -> float:
        bias = sum(
            weight * (FEATURES[name](pair.text1, pair) - FEATURES[name](pair.text2, pair))
            for name, weight in self.biases
        )
        return (pair.gold1 - pair.gold2) / self.temperature + bias

    def probability(self, pair: Pair) -> float:
        """Probability that the first summary is chosen."""
        return _sigmoid(self.logit(pair))

    def label(self, pair: Pair, rng: np.random.Generator | Dice) -> Label:
        dice = rng if isinstance(rng, Dice) else Dice(rng)
        logit = self.logit(pair)
        first = dice.chance(_sigmoid(logit))
        # A choice against one's own leaning is made with little confidence.
        leaning = max(0.0, logit if first else -logit)
        strength = 1 + min(3, int(leaning + 1.2 * dice.unit()))
        confidence = None if dice.chance(NO_CONFIDENCE) else 5 - strength if first else 5 + strength
        return Label(self.worker, 0 if first else 1, confidence, _sigmoid(logit))


def _sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x)) if x >= 0 else exp(x) / (1 + exp(x))


CREW = (
    Labeller("w_exact", 0.5),
    Labeller("w_lengthy", 0.68, (("length", 0.5),)),
    Labeller("w_terse", 0.68, (("length", -0.4),)),
    Labeller("w_copyist", 0.68, (("copied", 0.8),)),
    Labeller("w_sober", 0.6, (("feeling", -0.5),)),
    Labeller("w_curious", 0.76, (("asks", 0.5),)),
)


def bayes_accuracy(pairs: Iterable[Pair], crew: tuple[Labeller, ...] = CREW) -> float:
    """Accuracy of the best predictor of a label by an unknown random worker: mean max(p, 1 - p)."""
    means = [sum(worker.probability(pair) for worker in crew) / len(crew) for pair in pairs]
    return sum(max(p, 1 - p) for p in means) / len(means)


def expected_agreement(pairs: Iterable[Pair], crew: tuple[Labeller, ...] = CREW) -> float:
    """Probability that two different workers, drawn at random, make the same choice."""
    total = count = 0.0
    for pair in pairs:
        chances = [worker.probability(pair) for worker in crew]
        for i, p in enumerate(chances):
            for q in chances[:i]:
                total += p * q + (1 - p) * (1 - q)
                count += 1
    return total / count
