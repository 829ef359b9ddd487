"""From numbers to a choice: counted by hand, without a clock."""

import math

import pytest

from nplus.stages.tuning.choose import choose, overall, refused_precisions
from nplus.stages.tuning.turns import compared

TEN = [10.0] * 5


def test_the_fastest_is_taken_and_the_reason_says_by_how_much(cell):
    cells = [cell(sdpa=TEN, eager=[8.0] * 5, batched=[4.0] * 5)]
    assert choose(cells, "sdpa") == ("batched", "2.50 times as fast as sdpa")


@pytest.mark.parametrize(("seconds", "taken"), [(9.71, "a"), (9.69, "b"), (10.5, "a")])
def test_the_default_stays_within_three_percent(cell, seconds, taken):
    assert choose([cell(a=TEN, b=[seconds] * 5)], "a")[0] == taken


def test_a_gain_that_rounds_do_not_agree_on_is_none(cell):
    # Ratios 0.6, 0.7, 0.9, 1.1, 1.2: the median 0.9 gains 10%, the rounds are 0.2 apart.
    noisy = cell(a=TEN, b=[6.0, 7.0, 9.0, 11.0, 12.0])
    found, why = choose([noisy], "a")
    assert found == "a"
    assert why == "b gains 10.0%, which is less than 20%"
    steady = cell(a=TEN, b=[8.9, 9.0, 9.0, 9.0, 9.1])
    assert choose([steady], "a")[0] == "b"


def test_a_machine_that_slows_down_changes_no_ratio():
    # Each round twice as slow as the one before; b takes nine tenths of a in each.
    a = [1.0, 2.0, 4.0, 8.0, 16.0]
    found = {way.name: way for way in compared({"a": a, "b": [0.9 * x for x in a]}, "a")}
    assert found["b"].ratio == pytest.approx(0.9)
    assert found["b"].spread == pytest.approx(0.0, abs=1e-12)
    assert (found["b"].seconds, found["b"].low, found["b"].high) == pytest.approx((3.6, 0.9, 14.4))


def test_a_ratio_is_that_of_most_rounds_not_of_the_medians():
    # 0.5, 1.5 and 0.5 of the default's time in the same round; the medians are 10 and 15.
    found = compared({"a": [1.0, 10.0, 100.0], "b": [0.5, 15.0, 50.0]}, "a")
    assert [way.ratio for way in found] == [1.0, 0.5]


def test_several_works_count_by_their_geometric_mean(cell):
    cells = [cell(a=TEN, b=[5.0] * 5), cell(a=TEN, b=[12.0] * 5)]
    assert overall(cells, "b") == pytest.approx(math.sqrt(0.5 * 1.2))
    assert choose(cells, "a")[0] == "b"


def test_no_work_may_suffer_for_the_others(cell):
    cells = [cell(a=TEN, b=[2.0] * 5), cell(a=TEN, b=[20.0] * 5)]
    assert choose(cells, "a") == ("a", "b takes 2.0 times as long for some of the work")


def test_of_two_alike_the_first_is_taken_whichever_is_ahead(cell):
    for eager, batched in ((5.0, 4.9), (4.9, 5.0)):
        cells = [cell(sdpa=TEN, eager=[eager] * 5, batched=[batched] * 5)]
        assert choose(cells, "sdpa")[0] == "eager"


def test_what_is_refused_or_not_asked_for_is_not_taken(cell):
    cells = [cell(highest=TEN, high=[6.0] * 5, medium=[2.0] * 5)]
    assert choose(cells, "highest", refused={"medium"})[0] == "high"
    assert choose(cells, "highest", among=("highest", "high"))[0] == "high"
    found = choose(cells, "highest", refused={"medium", "high"})
    assert found == ("highest", "nothing else to take")


def test_a_larger_margin_may_be_asked_for(cell):
    cells = [cell(one_arena=TEN, keep=[9.2] * 5)]
    assert choose(cells, "one_arena", margin=0.1)[0] == "one_arena"
    assert choose(cells, "one_arena")[0] == "keep"


@pytest.mark.parametrize(
    ("medium", "refused"),
    [(2.5e-7, False), (9.9e-7, False), (1.1e-6, True), (2e-3, True), (math.nan, True)],
)
def test_a_precision_with_fewer_digits_is_refused(medium, refused):
    errors = {"highest": 2.5e-7, "high": 2.5e-7, "medium": medium}
    assert set(refused_precisions(errors)) == ({"medium"} if refused else set())


def test_the_refusal_says_how_much_worse():
    errors = {"highest": 2e-7, "medium": 2e-3}
    assert refused_precisions(errors) == {"medium": "errs 10,000 times as much as highest"}
