import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as reference

from nplus.stats import (
    bootstrap_mean,
    calibration,
    length_matched_win_rate,
    matched_win_rate,
    mean_difference,
    newcombe,
    weighted_rate,
    wilson,
    win_rate,
    win_rate_of_scores,
)

# --- one proportion, two proportions, means


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (1, 1), (640, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_against_scipy(successes, n, level):
    expected = reference.binomtest(successes, n).proportion_ci(level, method="wilson")
    mine = wilson(successes, n, level)
    assert mine.value == successes / n
    assert mine[1:] == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_without_data_and_out_of_range():
    assert math.isnan(wilson(0, 0).value)
    assert wilson(0, 0)[1:] == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


def test_newcombe_against_the_examples_of_the_paper():
    # Newcombe 1998, Statistics in Medicine 17, 873-890, table II, method 10.
    for counts, low, high in [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((10, 10, 0, 20), 0.6791, 1.0),
    ]:
        mine = newcombe(*counts)
        assert mine[1:] == pytest.approx((low, high), abs=6e-5)


def test_newcombe_is_antisymmetric():
    one, other = newcombe(5, 10, 2, 9), newcombe(2, 9, 5, 10)
    assert one == pytest.approx((-other.value, -other.high, -other.low))


def test_weighted_rates_against_the_examples_of_newcombe():
    # p - q = 2 (p + (1 - q)) / 2 - 1: a mean of two rates is a difference in other units.
    for (s1, n1, s2, n2), low, high in [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((10, 10, 0, 20), 0.6791, 1.0),
    ]:
        mine = weighted_rate([(3.0, s1, n1), (3.0, n2 - s2, n2)])
        assert mine.value == pytest.approx((s1 / n1 - s2 / n2 + 1) / 2)
        assert mine[1:] == pytest.approx(((low + 1) / 2, (high + 1) / 2), abs=3e-5)


def test_weighted_rate_of_one_is_wilson():
    assert weighted_rate([(7.0, 3, 10)]) == pytest.approx(wilson(3, 10))


def test_weighted_rate_covers():
    rates, sizes, weights = (0.9, 0.6, 0.75), (30, 134, 46), (2.0, 1.0, 1.0)
    truth = (2 * 0.9 + 0.6 + 0.75) / 4
    rng, inside = np.random.default_rng(3), 0
    for _ in range(2000):
        drawn = [int(rng.binomial(n, p)) for n, p in zip(sizes, rates, strict=True)]
        found = weighted_rate(list(zip(weights, drawn, sizes, strict=True)))
        inside += found.low <= truth <= found.high
    assert 0.935 < inside / 2000 < 0.97


def test_bootstrap_mean_is_near_the_normal_interval_and_repeats():
    x = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    mine = bootstrap_mean(x, seed=1)
    half = 1.96 * x.std(ddof=1) / math.sqrt(len(x))
    assert mine == pytest.approx((x.mean(), x.mean() - half, x.mean() + half), abs=0.02)
    assert bootstrap_mean(x, seed=1) == mine
    assert bootstrap_mean(x, seed=2) != mine
    assert all(math.isnan(v) for v in bootstrap_mean([], seed=0))


@pytest.mark.parametrize("paired", [True, False])
def test_mean_difference_against_scipy(paired):
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 12), rng.normal(0, 3, 12)
    test = reference.ttest_rel(a, b) if paired else reference.ttest_ind(a, b, equal_var=False)
    expected = test.confidence_interval(0.9)
    mine = mean_difference(a, b, paired, level=0.9)
    assert mine == pytest.approx((a.mean() - b.mean(), expected.low, expected.high))


def test_mean_difference_of_little_data():
    assert mean_difference([2.0], [1.0]) == (1.0, -math.inf, math.inf)
    assert mean_difference([1.0, 1.0], [1.0, 1.0], paired=False) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="lengths differ"):
        mean_difference([1.0, 2.0], [1.0])


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        bootstrap_mean([1.0, math.nan], seed=0)


# --- win rates


def test_a_tie_is_half_a_win():
    mine = win_rate(6, 2, 2)
    assert (mine.wins, mine.ties, mine.losses, mine.n, mine.rate) == (6, 2, 2, 10, 0.7)
    assert 0 < mine.low < 0.7 < mine.high < 1


def test_without_ties_it_is_wilson():
    mine, expected = win_rate(7, 0, 3), wilson(7, 10)
    assert (mine.rate, mine.low, mine.high) == pytest.approx(tuple(expected))


counts = st.integers(0, 60)


@given(counts, counts, counts)
def test_win_rate_is_bounded_and_symmetric(wins, ties, losses):
    mine, mirrored = win_rate(wins, ties, losses), win_rate(losses, ties, wins)
    assert 0 <= mine.low < mine.high <= 1
    if mine.n:
        assert mine.low <= mine.rate <= mine.high
        assert mine.rate + mirrored.rate == pytest.approx(1.0)
        assert mine.low + mirrored.high == pytest.approx(1.0)


def test_ties_narrow_the_interval():
    coins, ties = win_rate(50, 0, 50), win_rate(20, 60, 20)
    assert ties.high - ties.low < coins.high - coins.low


@pytest.mark.parametrize("shares", [(0.5, 0.0, 0.5), (0.3, 0.5, 0.2), (0.8, 0.1, 0.1)])
@pytest.mark.parametrize("n", [20, 200])
def test_win_rate_interval_covers_the_truth(shares, n):
    truth = shares[0] + shares[1] / 2
    draws = np.random.default_rng(0).multinomial(n, shares, size=2000)
    intervals = [win_rate(*map(int, draw)) for draw in draws]
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert 0.93 <= covered <= 0.99


def test_win_rate_of_scores():
    mine = win_rate_of_scores([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 5.0, 1.0])
    assert (mine.wins, mine.ties, mine.losses) == (2, 1, 1)
    nothing = win_rate_of_scores([], [])
    assert nothing.n == 0
    assert math.isnan(nothing.rate)


# --- calibration


@pytest.mark.detail("D8")
def test_calibrated_margins_lie_on_the_diagonal():
    # Detail D8. The size of a margin is drawn, its sign by sigmoid(size).
    rng = np.random.default_rng(0)
    size = rng.uniform(0, 3, size=200_000)
    signed = np.where(rng.random(size.shape) < 1 / (1 + np.exp(-size)), size, -size)
    mine = calibration(signed)
    assert mine.bins[0].expected == pytest.approx(0.562, abs=5e-4)
    assert mine.bins[1].expected == pytest.approx(0.679, abs=5e-4)
    assert len(mine.bins) == 6
    for one in mine.bins:
        assert one.accuracy == pytest.approx(one.expected, abs=0.01)
    assert mine.ece < 0.01
    overconfident = calibration(signed * 2)
    assert overconfident.ece > 0.05


def test_calibration_bins_by_hand():
    # Half-open on the left: 0.5 is in the first bin, 0 in none, and -9 lies beyond the quantile.
    mine = calibration([0.0, 0.5, -0.2, 0.6, 1.0, -9.0])
    assert [(b.low, b.high, b.n, b.accuracy) for b in mine.bins] == [
        (0.0, 0.5, 2, 0.5),
        (0.5, 1.0, 2, 1.0),
    ]
    assert mine.outside == 2

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    low, high = (sigmoid(0.5) + sigmoid(0.2)) / 2, (sigmoid(0.6) + sigmoid(1.0)) / 2
    assert mine.ece == pytest.approx((2 * abs(0.5 - low) + 2 * abs(1 - high)) / 4)


def test_calibration_against_a_judge_and_of_nothing():
    mine = calibration([0.4, 0.3, -0.4], correct=[False, True, True])
    assert mine.bins[0].accuracy == pytest.approx(2 / 3)
    assert calibration([]).bins == ()
    assert calibration([-1.0, -2.0]).bins[0].n == 0


# --- comparison at matched length


def simulated(seed, n, intercept, slope, shift=0.0, ties=0.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(shift, 0.5, n)
    wins = rng.random(n) < 1 / (1 + np.exp(-(intercept + slope * x)))
    return np.where(rng.random(n) < ties, 0.5, wins.astype(float)), x


@pytest.mark.detail("H3")
def test_logistic_trend_against_a_general_minimiser():
    y, x = simulated(0, 500, 0.4, 1.5, shift=0.3, ties=0.1)

    def loss(beta):
        z = beta[0] + beta[1] * x
        return float(np.sum(np.logaddexp(0.0, z) - y * z))

    expected = optimize.minimize(loss, [0.0, 0.0], method="Nelder-Mead", tol=1e-12).x
    mine = matched_win_rate(y, x)
    assert mine.method == "logistic"
    assert mine.rate == pytest.approx(1 / (1 + math.exp(-expected[0])), abs=1e-6)
    assert mine.slope == pytest.approx(expected[1], abs=1e-5)


@pytest.mark.detail("H3")
def test_length_bias_is_taken_out():
    # Judged by length alone, longer a: a high raw win rate, and a coin toss at equal length.
    y, x = simulated(1, 4000, 0.0, 3.0, shift=0.5)
    mine = matched_win_rate(y, x)
    assert mine.raw.rate > 0.7
    assert mine.low < 0.5 < mine.high
    assert mine.high - mine.low < 0.1


@pytest.mark.parametrize("ties", [0.0, 0.4])
def test_matched_interval_covers_the_truth(ties):
    truth = (1 - ties) / (1 + math.exp(-0.5)) + ties / 2
    fits = [matched_win_rate(*simulated(s, 150, 0.5, 0.0, 0.2, ties)) for s in range(400)]
    covered = np.mean([fit.low <= truth <= fit.high for fit in fits])
    assert 0.92 <= covered <= 0.98


def test_swapping_sides_mirrors_everything():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=80).round(1), rng.normal(size=80).round(1)
    long_a, long_b = rng.integers(5, 50, 80), rng.integers(5, 50, 80)
    one = length_matched_win_rate(a, b, long_a, long_b)
    other = length_matched_win_rate(b, a, long_b, long_a)
    assert one.rate + other.rate == pytest.approx(1.0)
    assert one.low + other.high == pytest.approx(1.0)
    assert one.slope == pytest.approx(other.slope)


@pytest.mark.parametrize("y", [[1.0] * 6, [0.0] * 6, [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]])
def test_separated_outcomes_give_finite_bounds(y):
    mine = matched_win_rate(y, [-0.9, -0.5, -0.2, 0.1, 0.4, 0.8])
    assert mine.method == "firth"
    assert 0 < mine.low < mine.rate < mine.high < 1
    assert mine.high - mine.low > 0.1
    assert math.isfinite(mine.slope)


def test_equal_lengths_are_the_raw_win_rate():
    mine = length_matched_win_rate([1, 2, 3], [0, 2, 4], [10, 20, 30], [10, 20, 30])
    assert (mine.method, mine.rate) == ("raw", 0.5)
    assert (mine.low, mine.high) == (mine.raw.low, mine.raw.high)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_one_length_ratio_tells_nothing_about_equal_length(n):
    mine = matched_win_rate([1.0] * n, [math.log(2.0)] * n)
    assert mine.method == "unidentified"
    assert math.isnan(mine.rate)
    assert (mine.low, mine.high, mine.n) == (0.0, 1.0, n)


def test_extrapolation_is_said():
    y, x = simulated(3, 200, 0.0, 1.0)
    assert not matched_win_rate(y, x).extrapolated
    assert matched_win_rate(y, np.abs(x) + 0.1).extrapolated


def test_quantile_bins_hold_everyone_once():
    # Quirk Q15: with quantile edges no bin is left to the maximum alone.
    y, x = simulated(4, 1000, 0.2, 1.0, ties=0.2)
    mine = matched_win_rate(y, x)
    assert [one.win_rate.n for one in mine.bins] == [100] * 10
    for one, after in zip(mine.bins, mine.bins[1:], strict=False):
        assert one.high == after.low
    inside = (x >= mine.bins[3].low) & (x < mine.bins[3].high)
    assert mine.bins[3].win_rate.rate == pytest.approx(y[inside].mean())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([-0.7, -0.1, 0.0, 0.3, 1.2])),
        max_size=12,
    )
)
def test_no_small_sample_breaks_it(rows):
    y, x = [r[0] for r in rows], [r[1] for r in rows]
    mine = matched_win_rate(y, x, bins=4)
    assert sum(one.win_rate.n for one in mine.bins) == len(rows)
    assert 0 <= mine.low <= mine.high <= 1
    if mine.method != "unidentified":
        assert mine.low <= mine.rate <= mine.high


def test_bad_requests():
    with pytest.raises(ValueError, match="positive"):
        length_matched_win_rate([1.0], [0.0], [0], [3])
    with pytest.raises(ValueError, match="outcomes"):
        matched_win_rate([0.3], [0.0])
    with pytest.raises(ValueError, match="level"):
        wilson(1, 2, level=95)
