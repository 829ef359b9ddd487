"""Group credit against definitions written out, numpy and numbers by hand."""

import numpy as np
import pytest
import torch

from nplus.ops.groups import (
    BASELINES,
    SCALES,
    all_equal,
    best_and_worst,
    group_advantages,
    overlong,
    preference,
    standardised,
    to_go,
)

REWARDS = torch.tensor([[1.0, 2.0, 6.0], [0.5, -1.0, 0.25]], dtype=torch.float64)
GREEDY = torch.tensor([[4.0] * 3, [0.5] * 3], dtype=torch.float64)


def advantages(baseline, scale="none", rewards=REWARDS, **options):
    return group_advantages(rewards, GREEDY, baseline=baseline, scale=scale, **options)


def test_leave_one_out_is_the_mean_of_the_others():
    expected = [
        [row[i] - sum(row[:i] + row[i + 1 :]) / (len(row) - 1) for i in range(len(row))]
        for row in REWARDS.tolist()
    ]
    assert advantages("leave_one_out").tolist() == [pytest.approx(row) for row in expected]


def test_leave_one_out_of_two_is_the_difference_of_the_pair():
    # RLOO with K = 2: the pair's gradient, averaged, is half the difference's.
    pair = torch.tensor([[3.0, 1.5]], dtype=torch.float64)
    found = advantages("leave_one_out", rewards=pair)
    assert found.tolist() == [[1.5, -1.5]]
    # Mean over the two responses of advantage * score function: (r1 - r2) / 2 * (s1 - s2).
    s1, s2 = 0.3, -0.7
    mean = (found[0, 0] * s1 + found[0, 1] * s2) / 2
    assert mean.item() == pytest.approx((3.0 - 1.5) / 2 * (s1 - s2))


def test_leave_one_out_scales_the_group_mean():
    # r - mean of others = G / (G - 1) * (r - mean of all).
    torch.testing.assert_close(advantages("leave_one_out"), 1.5 * advantages("group_mean"))


def test_grpo_by_hand():
    # Rewards 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, unbiased deviation sqrt(7).
    found = advantages("group_mean", "group_std", eps=0.0)[0]
    assert found.tolist() == pytest.approx([x / 7**0.5 for x in (-2.0, -1.0, 3.0)])


@pytest.mark.parametrize("eps", [0.0, 1e-4, 0.5])
def test_scales_are_unbiased_deviations_plus_eps(eps):
    rewards = REWARDS.numpy()
    group = rewards - rewards.mean(1, keepdims=True)
    by_group = group / (rewards.std(1, ddof=1, keepdims=True) + eps)
    np.testing.assert_allclose(advantages("group_mean", "group_std", eps=eps), by_group)
    by_batch = group / (rewards.std(ddof=1) + eps)
    np.testing.assert_allclose(advantages("group_mean", "batch_std", eps=eps), by_batch)


def test_the_other_baselines():
    np.testing.assert_allclose(advantages("batch_mean"), REWARDS.numpy() - 8.75 / 6)
    assert advantages("greedy").tolist() == (REWARDS - GREEDY).tolist()
    assert advantages("none").tolist() == REWARDS.tolist()


@pytest.mark.parametrize("baseline", ["leave_one_out", "group_mean"])
def test_a_group_of_equals_teaches_nothing(baseline):
    # 0.1 three times: a mean that misses by an ulp would be divided by a deviation of nothing.
    rewards = torch.tensor([[0.1, 0.1, 0.1], [0.0, 1.0, 2.0]])
    found = group_advantages(rewards, rewards, baseline=baseline, scale="group_std", eps=0.0)
    assert found[0].tolist() == [0.0, 0.0, 0.0]
    assert all_equal(rewards).tolist() == [True, False]
    assert all_equal(rewards[:, :1]).tolist() == [False, False]


@pytest.mark.parametrize("name", BASELINES)
def test_a_shift_of_all_rewards_changes_no_advantage(name):
    if name in ("none", "greedy"):
        pytest.skip("those do not look at the rewards")
    shifted = advantages(name, "group_std", rewards=REWARDS + 100.0)
    torch.testing.assert_close(shifted, advantages(name, "group_std"))


def test_unknown_names_are_told():
    for baseline, scale in (("mean", "none"), ("none", "std")):
        with pytest.raises(ValueError, match="unknown baseline or scale"):
            advantages(baseline, scale)
    assert set(SCALES) == {"none", "group_std", "batch_std"}
    with pytest.raises(ValueError, match="groups of two"):
        advantages("leave_one_out", rewards=REWARDS[:, :1])


def test_standardised_against_numpy():
    values = REWARDS.flatten()
    array = values.numpy()
    expected = (array - array.mean()) / (array.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(standardised(values), expected)
    assert standardised(values[:1]).tolist() == [0.0]


def test_overlong_by_hand():
    # DAPO, equation 13, with L_max 20 and L_cache 5: nothing up to 15, -1 at 20.
    lengths = torch.tensor([1.0, 15.0, 16.0, 18.0, 20.0, 25.0])
    found = overlong(lengths, limit=20, buffer=5)
    assert found.tolist() == pytest.approx([0.0, 0.0, -0.2, -0.6, -1.0, -1.0])


def test_to_go_is_the_sum_of_what_is_to_come():
    values = torch.tensor([[1.0, 2.0, 4.0], [0.0, -1.0, 3.0]])
    assert to_go(values).tolist() == [[7.0, 6.0, 4.0], [2.0, 2.0, 3.0]]


def test_a_preference_is_antisymmetric_and_bounded():
    ours, theirs = torch.tensor([0.0, 3.0, 900.0]), torch.tensor([0.0, 1.0, -900.0])
    found = preference(ours, theirs)
    assert found.tolist() == pytest.approx([0.0, 1 / (1 + np.exp(-2.0)) - 0.5, 0.5])
    torch.testing.assert_close(preference(theirs, ours), -found)


def test_best_and_worst_with_ties():
    scores = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, -1.0, -1.0]])
    best, worst, apart = best_and_worst(scores)
    assert (best.tolist()[::2], worst.tolist()[::2]) == ([1, 0], [0, 1])
    assert apart.tolist() == [True, False, True]
