"""Choice frequencies, confidence, agreement and the best possible accuracy."""

from itertools import islice
from math import exp, log

import pytest

from nplus.data.world.export import WorldSpec, comparisons
from nplus.data.world.gold import GoldScorer
from nplus.data.world.labellers import (
    CREW,
    Labeller,
    Pair,
    bayes_accuracy,
    expected_agreement,
)
from nplus.seeding import stream


def _scripted(count=1500):
    gold = GoldScorer()
    for row, sheet in islice(comparisons(WorldSpec(seed=2), "train"), count):
        texts = [side["text"][1:] for side in row["summaries"]]
        scores = [gold.score(sheet, text).total for text in texts]
        yield Pair(*scores, *texts, sheet, row["info"]["post"])


@pytest.mark.parametrize("gap", [-2.0, -0.5, 0.0, 1.0])
def test_choices_follow_the_sigmoid(gap):
    worker, n = Labeller("w", 0.8), 4000
    pair = Pair(gap, 0.0, "a b.", "c d.")
    firsts = sum(worker.label(pair, stream(3, i)).choice == 0 for i in range(n))
    p = 1 / (1 + exp(-gap / 0.8))
    assert abs(firsts / n - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_a_unit_of_gold_is_73_percent_at_temperature_one():
    assert Labeller("w", 1.0).probability(Pair(1.0, 0.0, "", "")) == pytest.approx(0.7311, abs=1e-4)


def test_biases_shift_the_logit_by_the_difference_of_features():
    pair = Pair(0.0, 0.0, "one two three four?", "one two.", post="see one two three four")
    assert Labeller("w", 1.0, (("length", 0.5),)).logit(pair) == pytest.approx(0.1)
    assert Labeller("w", 1.0, (("asks", 0.5),)).logit(pair) == pytest.approx(0.5)
    # One of two three-word sequences stands in the post; the other text has none.
    assert Labeller("w", 1.0, (("copied", 0.5),)).logit(pair) == pytest.approx(0.25)


def test_swapping_the_texts_swaps_the_probability():
    for pair in _scripted(50):
        back = Pair(pair.gold2, pair.gold1, pair.text2, pair.text1, pair.sheet, pair.post)
        for worker in CREW:
            assert worker.probability(pair) + worker.probability(back) == pytest.approx(1.0)


def test_confidence_agrees_with_the_choice():
    seen = set()
    for i, pair in enumerate(_scripted(600)):
        label = CREW[i % len(CREW)].label(pair, stream(4, i))
        seen.add(label.confidence)
        if label.confidence is not None:
            assert (label.confidence < 5) == (label.choice == 0)
    assert seen == {None, 1, 2, 3, 4, 6, 7, 8, 9}


def test_two_workers_agree_about_three_times_in_four():
    pairs = list(_scripted())
    same = 0
    for i, pair in enumerate(pairs):
        rng = stream(5, i)
        first, second = rng.permutation(len(CREW))[:2]
        same += CREW[first].label(pair, rng).choice == CREW[second].label(pair, rng).choice
    assert 0.71 <= same / len(pairs) <= 0.79
    assert 0.72 <= expected_agreement(pairs) <= 0.78


def test_bayes_accuracy_by_hand():
    crew = (Labeller("a", 1.0), Labeller("b", 0.5))
    pair = Pair(log(3), 0.0, "", "")  # 3/4 and 9/10
    mirrored = Pair(0.0, log(3), "", "")
    assert bayes_accuracy([pair, mirrored], crew) == pytest.approx(0.825)
    assert expected_agreement([pair], crew) == pytest.approx(0.75 * 0.9 + 0.25 * 0.1)


def test_at_least_five_workers_of_different_taste():
    assert len({worker.worker for worker in CREW}) >= 5
    assert len({worker.biases for worker in CREW}) >= 5
