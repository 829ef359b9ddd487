"""Calibration of margins, its synthetic control, and agreement of two judges, by definition."""

import numpy as np
import pytest

from nplus.evaluation.agreement import agreement, seed_agreement
from nplus.evaluation.calibration import calibration_report, control_labels


def wilson(hits, n, z=1.959963984540054):
    rate = hits / n
    centre, half = rate + z * z / (2 * n), z * np.sqrt(rate * (1 - rate) / n + (z / 2 / n) ** 2)
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def drawn(rng, n, claimed=1.0):
    """Signed margins of a model that claims `claimed` times the margin it has a right to."""
    size = rng.exponential(1.0, n)
    right = rng.random(n) < 1 / (1 + np.exp(-size / claimed))
    return np.where(right, size, -size)


@pytest.mark.detail("D8")
def test_bins_by_hand():
    margins = [0.2, -0.4, 0.5, 0.7, 0.9, -0.6, 1.2, 3.0]
    found = calibration_report(margins, np.zeros(8), width=0.5)
    # q99.5 of the signed margins is nearly 3, so six bins; (0, 0.5] holds 0.2, -0.4 and 0.5.
    assert [part["n"] for part in found["bins"]] == [3, 3, 1, 0, 0, 1]
    first, second, *_ = found["bins"]
    assert (first["from"], first["to"]) == (0.0, 0.5)
    assert (first["accuracy"], second["accuracy"]) == (2 / 3, 2 / 3)
    assert (first["low"], first["high"]) == pytest.approx(wilson(2, 3))
    assert (first["expected"], second["expected"]) == pytest.approx((0.562, 0.679), abs=1e-3)
    sure = [1 / (1 + np.exp(-m)) for m in (0.2, 0.4, 0.5)]
    assert first["confidence"] == pytest.approx(np.mean(sure))
    assert found["bins"][3] == {
        **found["bins"][3],
        "accuracy": None,
        "low": None,
        "high": None,
        "confidence": None,
    }
    # With coin flips of 0 the control is always right.
    assert {part["control"]["accuracy"] for part in found["bins"] if part["n"]} == {1.0}


@pytest.mark.detail("D8")
def test_the_control_lies_on_the_diagonal_within_its_interval():
    """Over many draws about 95% of the bins hold what the scores claim, and no bin leans."""
    rng = np.random.default_rng(0)
    inside, gaps = [], []
    for _ in range(60):
        margins = drawn(rng, 1500, claimed=3.0)  # the real labels do not matter to it
        found = calibration_report(margins, rng.random(1500))
        for part in found["bins"]:
            if part["n"] >= 20:
                control = part["control"]
                inside.append(control["low"] <= part["confidence"] <= control["high"])
                gaps.append(control["accuracy"] - part["confidence"])
    assert len(inside) > 300
    assert np.mean(inside) == pytest.approx(0.95, abs=0.025)
    assert abs(np.mean(gaps)) < 3 * np.std(gaps) / np.sqrt(len(gaps))


@pytest.mark.detail("D8")
def test_a_model_that_claims_too_much_lies_below_and_one_that_does_not_on_the_line():
    rng = np.random.default_rng(1)
    honest = calibration_report(drawn(rng, 20_000), rng.random(20_000))
    bold = calibration_report(drawn(rng, 20_000, claimed=3.0), rng.random(20_000))
    assert honest["ece"] < 0.01
    assert bold["ece"] > 0.1
    assert bold["control_ece"] < 0.01
    large = [part for part in bold["bins"] if part["n"] > 200 and part["from"] >= 0.5]
    assert all(part["high"] < part["confidence"] for part in large)


def test_control_labels_are_right_as_often_as_claimed_whatever_the_sign():
    flips = np.linspace(0, 1, 100_000, endpoint=False)
    for margin in (2.0, -2.0):
        labels = control_labels([margin] * len(flips), flips)
        assert labels.mean() == pytest.approx(1 / (1 + np.exp(-2.0)), abs=1e-4)


def test_nothing_to_calibrate():
    found = calibration_report([], np.zeros(0))
    assert (found["n"], found["ece"], found["bins"]) == (0, None, [])


# --- agreement ----------------------------------------------------------------------------------


@pytest.mark.detail("D7")
def test_agreement_is_the_papers_formula_with_ties_disagreeing():
    judge = [2.0, 1.0, -1.0, -3.0, 0.0, 0.5, -0.5, 0.0, -1.0]
    model = [0.1, -0.1, -5.0, 2.0, 1.0, 0.0, -1.0, -1.0, 0.0]
    found = agreement(judge, model)
    ours = sum(j > 0 and m > 0 for j, m in zip(judge, model, strict=True))
    reference = sum(j < 0 and m < 0 for j, m in zip(judge, model, strict=True))
    assert (ours, reference) == (1, 2)
    assert found["rate"] == (ours + reference) / 9
    assert (found["low"], found["high"]) == pytest.approx(wilson(3, 9))
    assert (found["ties"], found["decided"]["n"]) == (2, 7)
    assert found["decided"]["rate"] == 3 / 7


@pytest.mark.detail("D7")
def test_a_shift_of_all_scores_changes_no_agreement_but_the_eos_trick_would():
    rng = np.random.default_rng(2)
    ours, theirs, judge = rng.normal(size=(3, 200))
    plain = agreement(judge, ours - theirs)
    assert agreement(judge, (ours + 7) - (theirs + 7)) == plain
    tricked = np.where(rng.random(200) < 0.3, -1.0, ours)
    assert agreement(judge, tricked - theirs)["rate"] != plain["rate"]


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="zip"):
        agreement([1.0], [1.0, 2.0])


def test_seeds_agree_pair_by_pair():
    margins = {
        "1": [1.0, 2.0, -1.0, 0.5],
        "2": [0.1, -2.0, -3.0, 0.5],
        "3": [-1.0, -2.0, 1.0, 0.0],
    }
    rows = {(row["a"], row["b"]): row for row in seed_agreement(margins)}
    assert {key: row["rate"] for key, row in rows.items()} == {
        ("1", "2"): 3 / 4,  # not the second
        ("1", "3"): 0.0,  # a margin of 0 agrees with nothing
        ("2", "3"): 1 / 4,  # the second
    }
    # Right 3/4 and 1/2, wrong 1/4 and 1/2.
    assert rows["1", "2"]["chance"] == 0.75 * 0.5 + 0.25 * 0.5
    assert (rows["1", "2"]["low"], rows["1", "2"]["high"]) == pytest.approx(wilson(3, 4))


def test_independent_mistakes_agree_as_often_as_chance_says():
    rng = np.random.default_rng(3)
    margins = {name: np.where(rng.random(20_000) < 0.7, 1.0, -1.0) for name in "ab"}
    [row] = seed_agreement(margins)
    assert row["low"] < row["chance"] < row["high"]
    [same] = seed_agreement({"a": margins["a"], "b": margins["a"]})
    assert same["rate"] == 1.0
