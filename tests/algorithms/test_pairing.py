"""Pairs of responses against hand-made scores, and the published selection's known mistakes."""

import math

import pytest
import torch

from nplus.algorithms.pairing import (
    PAIRINGS,
    Candidates,
    knock_out,
    oriented,
    penalised,
    pick,
)

TEXTS = ("a", "b", "c", "d")


def candidates(*rows, sources=(0, 0, 1, 1), draws=(0.5, 0.5), aggregate="mean"):
    return Candidates(torch.tensor(rows, dtype=torch.float64), sources, draws, aggregate)


@pytest.mark.parametrize(
    ("pairing", "expected"),
    [
        ("best_worst", (2, 3)),
        ("best_second", (2, 0)),
        ("first_two", (0, 1)),
        ("across", (2, 0)),
    ],
)
def test_single_scorer(pairing, expected):
    found = pick(candidates([2.0, 1.0, 5.0, 0.5]), TEXTS, pairing)
    assert (found.chosen, found.rejected, found.reason) == (*expected, "")


def test_margin_is_the_difference_of_the_two():
    assert pick(candidates([2.0, 1.0, 5.0, 0.5]), TEXTS, "best_worst").margin == 4.5


@pytest.mark.parametrize(
    ("pairing", "field", "expected"),
    [
        ("best_worst", [0, 1, 3], (0, 3, "")),
        ("best_worst", [0, 2], (2, 0, "")),
        ("best_second", [3, 1, 0], (0, 1, "")),
        ("across", [0, 1, 3], (0, 3, "")),
        ("across", [0, 1], (0, 1, "truncated")),
        ("best_worst", [2], (0, 1, "truncated")),
        ("best_worst", [], (0, 1, "truncated")),
    ],
)
def test_only_those_of_the_field_take_part(pairing, field, expected):
    found = pick(candidates([2.0, 1.0, 5.0, 0.5]), TEXTS, pairing, field=field)
    assert (found.chosen, found.rejected, found.reason) == expected


def test_an_unreadable_score_outside_the_field_does_no_harm():
    of = candidates([2.0, math.nan, 5.0, 0.5])
    assert pick(of, TEXTS, "best_worst").reason == "nan"
    assert pick(of, TEXTS, "best_worst", field=[0, 2]).reason == ""
    assert pick(of, TEXTS, "best_worst", field=[0, 1]).reason == "nan"


def test_best_random_takes_every_other_response_equally_often():
    counts = [0, 0, 0, 0]
    for k in range(300):
        of = candidates([9.0, 1.0, 5.0, 0.5], draws=((k + 0.5) / 300, 0.5))
        found = pick(of, TEXTS, "best_random")
        assert found.chosen == 0
        counts[found.rejected] += 1
    assert counts == [0, 100, 100, 100]


def test_best_of_worst_case_is_not_best_of_mean():
    rows = ([5.0, 2.0, 0.0, 0.0], [-4.0, 2.0, 0.0, 0.0], [5.0, 1.0, 0.0, 0.0])
    assert pick(candidates(*rows), TEXTS, "best_worst").chosen == 0
    assert pick(candidates(*rows, aggregate="min"), TEXTS, "best_worst").chosen == 1


def test_thompson_sets_favourites_of_two_members_against_each_other():
    of = candidates([3.0, 2.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0], draws=(0.1, 0.1))
    assert {pick(of, TEXTS, "thompson").chosen, pick(of, TEXTS, "thompson").rejected} == {0, 1}


def test_thompson_where_all_agree_takes_the_members_second_best():
    of = candidates([3.0, 0.0, 2.0, 0.0], [3.0, 2.5, 2.0, 0.0], draws=(0.1, 0.1))
    found = pick(of, TEXTS, "thompson")
    assert (found.chosen, found.rejected) == (0, 2)


def test_bai_takes_the_least_certain_rival():
    # advantage over response 0: (-1, -1, 3) of response 1, (-2, -2, -2) of 2, (-3, -3, -2.5) of 3
    of = candidates(
        [3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0], [3.0, 6.0, 1.0, 0.5], draws=(0.1, 0)
    )
    assert sorted((pick(of, TEXTS, "bai").chosen, pick(of, TEXTS, "bai").rejected)) == [0, 1]


def test_uncertain_takes_the_most_disputed_difference():
    of = candidates([0.0, 0.0, 4.0, -4.0], [0.0, 0.0, -4.0, 4.0])
    assert {PAIRINGS["uncertain"](of)[0], PAIRINGS["uncertain"](of)[1]} == {2, 3}


def test_the_penalty_orients_too():
    """The published `max_min_p` turns this pair back to the raw order (spec trap)."""
    raw = torch.tensor([[1.0, 0.9, 0.5, 0.4]], dtype=torch.float64)
    lengths, ended = torch.tensor([900.0, 100.0, 500.0, 500.0]), torch.ones(4, dtype=torch.bool)
    scores = penalised(raw, lengths, ended, length=0.001, missing_eos=0.0)
    torch.testing.assert_close(scores[0], torch.tensor([0.1, 0.8, 0.0, -0.1], dtype=torch.float64))
    found = pick(Candidates(scores, (0, 0, 0, 0), (0.5, 0.5)), TEXTS, "best_worst")
    assert (found.chosen, found.rejected) == (1, 3)
    two = pick(Candidates(scores[:, :2], (0, 0), (0.5, 0.5)), TEXTS[:2], "best_worst")
    assert (two.chosen, two.rejected) == (1, 0)


def test_cut_off_responses_are_penalised():
    raw, lengths = torch.zeros(1, 3), torch.zeros(3)
    found = penalised(raw, lengths, torch.tensor([True, False, True]), length=0, missing_eos=2.0)
    assert found.tolist() == [[0.0, -2.0, 0.0]]


@pytest.mark.parametrize(
    ("scores", "texts", "reason"),
    [
        ((1.0, 1.0), ("a", "b"), "tie"),
        ((2.0, 1.0), ("a", "a"), "duplicate"),
        ((1.0, 1.0), ("a", "a"), "duplicate"),
        ((1.2, 1.0), ("a", "b"), "margin"),
        ((math.nan, 1.0), ("a", "b"), "nan"),
        ((math.inf, 1.0), ("a", "b"), "nan"),
        ((2.0, 1.0), ("a", "b"), ""),
    ],
)
def test_what_is_left_out(scores, texts, reason):
    of = Candidates(torch.tensor([scores], dtype=torch.float64), (0, 0), (0.5, 0.5))
    assert pick(of, texts, "best_worst", min_margin=0.5).reason == reason


def test_nan_is_left_out_wherever_it_stands():
    of = candidates([1.0, 2.0, math.nan, 3.0])
    assert all(pick(of, TEXTS, name).reason == "nan" for name in PAIRINGS)


def test_unknown_pairing():
    with pytest.raises(ValueError, match="best_worst"):
        pick(candidates([1.0, 2.0, 3.0, 4.0]), TEXTS, "max_min")


# --- knock-out ------------------------------------------------------------------------------------


def by_strength(strength):
    """A comparator that prefers the stronger response of a prompt, and counts its matches."""
    asked = []

    def prefers(matches):
        asked.extend(matches)
        return [
            0.5 + 0.1 * ((strength[at][i] > strength[at][j]) - (strength[at][i] < strength[at][j]))
            for at, i, j in matches
        ]

    return prefers, asked


def test_knock_out_finds_best_and_worst_in_n_less_one_matches():
    strength = [[3, 1, 4, 1.5], [9, 2], [5]]
    prefers, asked = by_strength(strength)
    field = [range(4), range(2), range(1)]
    assert knock_out(field, prefers, best=True) == [2, 0, 0]
    assert len(asked) == 3 + 1
    assert knock_out(field[:2], prefers, best=False) == [1, 1]


def test_an_even_match_keeps_the_holder():
    prefers, _ = by_strength([[1, 1, 1]])
    assert knock_out([range(3)], prefers, best=True) == [0]
    assert knock_out([range(3)], prefers, best=False) == [0]


def test_a_pair_is_turned_by_its_own_match():
    found = oriented(0, 1, -0.4, ("a", "b"))
    assert (found.chosen, found.rejected, found.margin, found.reason) == (1, 0, 0.4, "")
    assert oriented(0, 1, 0.0, ("a", "b")).reason == "tie"
    assert oriented(0, 1, math.nan, ("a", "b")).reason == "nan"
