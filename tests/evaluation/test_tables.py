"""Accuracy tables, win-rate rows and the difference in wrong facts, against hand counts."""

import math
import random

import numpy as np
import pytest

from nplus.evaluation.accuracy import accuracy_report, share
from nplus.evaluation.automatic import rouge
from nplus.evaluation.winrate import summarise
from nplus.records import Comparison, Judgement
from nplus.stages.systems import System, wrong_fact_difference

# --- accuracy -----------------------------------------------------------------------------------


def comparison(n, split="valid1", batch="batch9", policies=("sup", "ref"), confidence=7):
    return Comparison(
        f"t{n}", "Q", ("a", "b"), policies, n % 2, "w", batch, split, confidence=confidence
    )


@pytest.fixture
def drawn():
    draw = random.Random(0)
    rows = [
        comparison(
            n,
            split=draw.choice(["valid1", "valid2"]),
            batch=draw.choice(["batch9", "batch11", "batch13"]),
            policies=draw.choice([("ref", "sup"), ("sup", "ref"), ("ppo", "ref")]),
            confidence=draw.choice([1, 2, 6, 9, None]),
        )
        for n in range(97)
    ]
    return rows, [draw.choice([-1.5, 0.0, 0.25, 2.0]) for _ in rows]


@pytest.mark.detail("D6")
def test_groups_weighted_by_their_counts_make_the_whole(drawn):
    # Detail D6.
    rows, margins = drawn
    report = accuracy_report(rows, margins)
    hits = sum(margin > 0 for margin in margins)
    assert report["accuracy"]["rate"] == hits / 97
    for table in ("by_split", "by_batch", "by_policies"):
        groups = report[table]
        assert sum(group["n"] for group in groups) == 97
        weighted = sum(group["accuracy"] * group["n"] for group in groups)
        assert weighted == pytest.approx(hits)
    assert [group["name"] for group in report["by_policies"]] == ["ppo--ref", "ref--sup"]


def test_rows_without_confidence_leave_that_table_only(drawn):
    rows, margins = drawn
    groups = accuracy_report(rows, margins)["by_confidence"]
    known = [m > 0 for row, m in zip(rows, margins, strict=True) if row.confidence is not None]
    assert [group["name"] for group in groups] == ["1", "2", "6", "9"]
    assert sum(group["n"] for group in groups) == len(known) < 97
    assert sum(g["accuracy"] * g["n"] for g in groups) == pytest.approx(sum(known))


def test_a_tie_is_wrong():
    rows = [comparison(n) for n in range(4)]
    assert accuracy_report(rows, [0.0, 0.0, -1.0, 1.0])["accuracy"]["rate"] == 0.25


def test_a_share_of_nothing_is_unknown():
    found = share(0, 0)
    assert math.isnan(found["rate"])
    assert (found["low"], found["high"], found["n"]) == (0.0, 1.0, 0)


def test_a_share_has_wilsons_interval():
    # 8 of 10, z = 1.959964: (0.8 + z^2/20 -+ z sqrt(0.016 + z^2/400)) / (1 + z^2/10).
    found = share(8, 10)
    z = 1.959963984540054
    centre, half = 0.8 + z * z / 20, z * math.sqrt(0.8 * 0.2 / 10 + z * z / 400)
    expected = [(centre + sign * half) / (1 + z * z / 10) for sign in (-1, 1)]
    assert [found["low"], found["high"]] == pytest.approx(expected)


# --- win rates ----------------------------------------------------------------------------------


def judgement(score, other, tokens=10, other_tokens=12):
    return Judgement("t", "test", "ppo@0.7", "sft", "a", "b", score, other, tokens, other_tokens)


@pytest.mark.detail("H4")
def test_a_win_rate_row_by_hand():
    rows = [judgement(2.0, 1.0, 8), judgement(0.5, 0.0), judgement(1.0, 1.0), judgement(-1.0, 3.0)]
    found = summarise(rows)
    assert [found[k] for k in ("wins", "ties", "losses", "n")] == [2, 1, 1, 4]
    assert found["rate"] == 0.625  # a tie is half a win
    assert (found["tokens"], found["opponent_tokens"]) == (9.5, 12.0)
    assert 0.0 <= found["low"] < 0.625 < found["high"] <= 1.0


def test_swapped_sides_give_the_complement():
    rows = [judgement(a, b) for a, b in ((1, 0), (2, 0), (0, 0), (0, 5), (3, 1), (1, 2), (4, 1))]
    swapped = [judgement(r.opponent_score, r.score, r.opponent_tokens, r.tokens) for r in rows]
    found, other = summarise(rows), summarise(swapped)
    assert found["rate"] + other["rate"] == pytest.approx(1.0)
    assert found["low"] + other["high"] == pytest.approx(1.0)


def test_no_judgements_is_an_error():
    with pytest.raises(ValueError, match="no judgements"):
        summarise([])


# --- ROUGE --------------------------------------------------------------------------------------


@pytest.mark.detail("C3")
def test_rouge_on_fixed_strings():
    # "the cat sat" against "the cat ran away": 2 of 3 and 2 of 4 words, 1 of 2 and 1 of 3 pairs.
    found = rouge(["the cat sat", "same words"], ["the cat ran away", "same words"])
    assert found["rouge1"] == pytest.approx((4 / 7 + 1) / 2)
    assert found["rouge2"] == pytest.approx((0.4 + 1) / 2)
    assert found["rougeL"] == pytest.approx((4 / 7 + 1) / 2)


@pytest.mark.detail("C3")
def test_rouge_does_not_stem():
    assert rouge(["cats"], ["cat"])["rouge1"] == 0.0


# --- wrong facts --------------------------------------------------------------------------------


def system(policy, counts):
    """`counts`: (facts right, facts wrong) per response."""
    n = len(counts)
    return System(
        policy=policy,
        temperature=0.7,
        split="test",
        posts=[],
        texts=[""] * n,
        tokens=[1] * n,
        ended=[True] * n,
        proxy=[0.0] * n,
        score=[0.0] * n,
        covered=[("slot",) * right for right, _ in counts],
        wrong=[(("slot", "x"),) * wrong for _, wrong in counts],
    )


def test_the_difference_in_wrong_facts_by_hand():
    # 2 of 6 stated facts against 1 of 8: a ratio of sums, not a mean of ratios.
    ppo, sft = system("ppo", [(1, 2), (3, 0), (0, 0)]), system("sft", [(2, 1), (1, 0), (4, 0)])
    found = wrong_fact_difference(ppo, sft)
    assert (found["ppo"], found["sft"]) == (pytest.approx(2 / 6), pytest.approx(1 / 8))
    assert found["value"] == pytest.approx(2 / 6 - 1 / 8)
    assert found["low"] < found["value"] < found["high"]
    assert (found["temperature"], found["split"]) == (0.7, "test")


def test_its_interval_is_that_of_a_paired_bootstrap():
    rng = np.random.default_rng(3)
    n = 300
    hard = rng.random(n) * 0.5  # a post that is hard for one is hard for the other
    stated = rng.integers(2, 7, size=(2, n))
    wrong = rng.binomial(stated, np.clip(np.stack([hard + 0.1, hard]), 0, 1))
    ppo, sft = (
        system(name, [(int(s - w), int(w)) for s, w in zip(stated[i], wrong[i], strict=True)])
        for i, name in enumerate(("ppo", "sft"))
    )
    found = wrong_fact_difference(ppo, sft)
    draws = rng.integers(0, n, size=(4000, n))
    rates = wrong[:, draws].sum(-1) / stated[:, draws].sum(-1)
    low, high = np.quantile(rates[0] - rates[1], [0.025, 0.975])
    width = high - low
    assert found["low"] == pytest.approx(low, abs=0.06 * width)
    assert found["high"] == pytest.approx(high, abs=0.06 * width)
    # Unpaired, the interval would be wider: the posts are the same.
    shuffled = rng.permutation(n)
    counts = [(len(sft.covered[i]), len(sft.wrong[i])) for i in shuffled]
    apart = wrong_fact_difference(ppo, system("sft", counts))
    assert apart["high"] - apart["low"] > 1.05 * (found["high"] - found["low"])


def test_equal_systems_differ_by_nothing():
    same = system("ppo", [(1, 2), (3, 0), (2, 1)])
    found = wrong_fact_difference(same, same)
    assert (found["value"], found["low"], found["high"]) == (0.0, 0.0, 0.0)


def test_a_system_that_states_nothing_has_no_rate():
    found = wrong_fact_difference(system("ppo", [(0, 0)] * 3), system("sft", [(1, 1)] * 3))
    assert found["ppo"] is None
    assert found["value"] is None
