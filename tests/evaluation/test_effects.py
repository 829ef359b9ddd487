"""Effects over paired runs: by hand, by enumeration, and by how often an interval holds."""

import itertools
import math

import numpy as np
import pytest

from nplus.evaluation.effects import (
    measure_effect,
    outcome_effect,
    over_seeds,
    over_seeds_and_posts,
)

T_2 = 4.302652729911275  # t quantile 0.975 at 2 degrees of freedom, from a printed table


def test_an_effect_by_hand():
    base = {1: {"a": 0, "b": 0.5}, 2: {"a": 1, "b": 0}, 3: {"a": 0, "b": 0}}
    flip = {1: {"a": 1, "b": 0.5}, 2: {"a": 1, "b": 1}, 3: {"a": 0.5, "b": 0}}
    found = outcome_effect(flip, base)
    assert found.per_seed == pytest.approx((0.5, 0.5, 0.25))
    assert found.value == pytest.approx(1.25 / 3)
    # deviations 1/12, 1/12, -1/6: variance (1/144 + 1/144 + 4/144) / 2 = 1/48
    half = T_2 * math.sqrt(1 / 48 / 3)
    assert (found.low, found.high) == pytest.approx((1.25 / 3 - half, 1.25 / 3 + half))
    assert (found.seeds, found.posts) == ((1, 2, 3), 2)


def test_only_common_seeds_and_posts_are_paired():
    base = {1: {"a": 0, "b": 1, "x": 1}, 2: {"b": 0, "a": 1}, 9: {"a": 0, "b": 0}}
    flip = {2: {"a": 0, "b": 1, "c": 1}, 1: {"b": 1, "a": 1}, 7: {"a": 1, "b": 1}}
    found = outcome_effect(flip, base)
    assert (found.seeds, found.posts) == ((1, 2), 2)
    assert found.per_seed == (0.5, 0.0)


def test_nothing_in_common_is_no_effect():
    assert outcome_effect({}, {1: {"a": 1}}) is None
    assert outcome_effect({1: {"a": 1}}, {2: {"a": 1}}) is None
    assert outcome_effect({1: {"a": 1}}, {1: {"b": 1}}) is None
    assert measure_effect({1: 2.0}, {2: 2.0}) is None


def test_one_seed_has_no_interval_over_seeds():
    found = outcome_effect({4: {"a": 1, "b": 0}}, {4: {"a": 0, "b": 0}})
    assert (found.value, found.low, found.high) == (0.5, -math.inf, math.inf)


def test_a_measure_leaves_out_seeds_that_broke():
    nan, inf = math.nan, math.inf
    found = measure_effect(
        {1: 5.0, 2: nan, 3: 9.0, 4: 1.0, 5: 8.0}, {1: 3.0, 2: 1.0, 3: 3.0, 4: inf, 5: 3.5}
    )
    assert (found.seeds, found.per_seed) == ((1, 3, 5), (2.0, 6.0, 4.5))
    # mean 25/6; deviations -13/6, 11/6, 2/6: sum of squares 294/36
    half = T_2 * math.sqrt(294 / 36 / 2 / 3)
    assert (found.low, found.high) == pytest.approx((25 / 6 - half, 25 / 6 + half))
    assert (found.boot_low, found.posts) == (None, 0)


def test_the_bootstrap_has_the_quantiles_of_every_possible_draw():
    difference = np.array([[0.0, 1.0, 0.5], [-1.0, 0.5, 0.0]])
    means = [
        np.mean([difference[s, p] for s in seeds for p in posts])
        for seeds in itertools.product(range(2), repeat=2)
        for posts in itertools.product(range(3), repeat=3)
    ]
    expected = np.quantile(means, [0.1, 0.9], method="inverted_cdf")
    found = over_seeds_and_posts(difference, level=0.8, draws=60_000)
    assert found == pytest.approx(tuple(expected), abs=1e-9)


def test_the_interval_over_seeds_covers_at_its_level():
    """Wins of 40 posts after 5 runs a side; a run's own win rate varies by 0.15."""
    rng = np.random.default_rng(5)
    posts = [f"p{i}" for i in range(40)]

    def runs(rate):
        rates = np.clip(rng.normal(rate, 0.15, 5), 0, 1)
        return {s: dict(zip(posts, rng.random(40) < r, strict=True)) for s, r in enumerate(rates)}

    hits = 0
    for _ in range(400):
        flip, base = (
            {s: {p: float(x) for p, x in r.items()} for s, r in side.items()}
            for side in (runs(0.55), runs(0.5))
        )
        found = outcome_effect(flip, base)
        hits += found.low <= 0.05 <= found.high
    assert hits / 400 == pytest.approx(0.95, abs=0.033)  # three standard errors


def test_with_many_seeds_the_bootstrap_covers_new_posts_where_t_does_not():
    rng = np.random.default_rng(6)
    hits = {"boot": 0, "t": 0}
    for _ in range(250):
        post = rng.normal(0, 0.5, (1, 30))
        difference = 0.1 + rng.normal(0, 0.2, (25, 1)) + post + rng.normal(0, 0.3, (25, 30))
        bounds = {
            "boot": over_seeds_and_posts(difference, draws=300),
            "t": over_seeds(difference.mean(1))[1:],
        }
        for name, (low, high) in bounds.items():
            hits[name] += low <= 0.1 <= high
    assert hits["boot"] / 250 == pytest.approx(0.95, abs=0.042)
    assert hits["t"] / 250 < 0.85


def test_over_seeds_is_scipys_t_interval():
    from scipy import stats

    x = np.array([0.1, -0.2, 0.4, 0.05])
    expected = stats.ttest_1samp(x, 0).confidence_interval(0.9)
    found = over_seeds(x, 0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
