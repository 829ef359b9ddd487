"""Golden vectors: three hand-worked rollout rows through rewards, GAE, whitening and the update.

R = 5, beta = 0.05, gamma = 1, lambda = 0.95, eps = 1e-8, printed to six digits; then literals of
other published code, hand-derived.
"""

import math

import pytest
import torch

from nplus.ops.kl import KL_ESTIMATORS, kl_per_token
from nplus.ops.losses import PolicyLoss, ValueLoss, ppo_policy_loss, ppo_value_loss
from nplus.ops.masking import masked_mean, masked_moments, masked_sum, masked_var, whiten
from nplus.ops.preference import hinge_loss, ipo_loss, sigmoid_loss
from nplus.ops.responses import (
    contains_eos,
    last_index_B,
    response_mask_BR,
    truncate_after,
    value_mask_BR,
)
from nplus.ops.returns import gae, missing_eos, token_rewards

EOS, PAD, JUNK = 0, 99, math.nan
TOKENS = torch.tensor([[5, 6, EOS, 7, 8], [5, 6, 7, 8, EOS], [5, 6, 7, 8, 9]])
SCORES = torch.tensor([1.5, 0.8, 123.0], dtype=torch.float64)


def table(*rows):
    return torch.tensor(rows, dtype=torch.float64)


LOGP = table([-1, -2, -0.5, -3, -4], [-0.7, -1.1, -0.2, -0.9, -0.3], [-2, -1, -1.5, -0.6, -0.4])
REF = table([-1.2, -1.8, -0.9, -9, -9], [-0.9, -1, -0.4, -0.7, -0.6], [-1, -1.3, -1.2, -0.9, -0.5])
VALUES = table([0.2, 0.4, 0.9, 1.4, 7], [0.1, 0.3, 0.5, 0.6, 0.7], [0, -0.2, -0.1, -0.4, -0.5])
NEW_LOGP = table(
    [-0.9, -2.3, -0.4, JUNK, JUNK], [-0.7, -0.9, -0.5, -0.9, -0.3], [-2, -1.1, -1.5, -0.3, -0.4]
)
NEW_VALUES = table(
    [0.3, 0.1, 0.9, 1.8, JUNK], [0.1, 0.6, 0.5, 0.6, 0.2], [0.1, -0.2, -0.6, -0.4, -0.5]
)
REWARDS = table(
    [-0.01, 0.01, -0.02, 1.5, 0],
    [-0.01, 0.005, -0.01, 0.01, 0.785],
    [0.05, -0.015, 0.015, -0.015, -1.005],
)
ADVANTAGES = table(
    [1.193437, 1.05625, 0.575, 0.1, 0],
    [0.629519, 0.462652, 0.271213, 0.19075, 0.085],
    [-0.836386, -0.722512, -0.850012, -0.59475, -0.505],
)
RETURNS = table(
    [1.393437, 1.45625, 1.475, 1.5, 0],
    [0.729519, 0.762652, 0.771213, 0.79075, 0.785],
    [-0.836386, -0.922512, -0.950012, -0.99475, -1.005],
)
WHITENED = table(
    [1.637559, 1.43697, 0.733308, 0, 0],
    [0.813024, 0.569038, 0.289124, 0.171476, 0.016853],
    [-1.330356, -1.163854, -1.350279, -0.977046, -0.845818],
)
WHITENED_REWARDS = table(
    [-0.104914, -0.06633, -0.124207, 2.808225, 0],
    [-0.104914, -0.075976, -0.104914, -0.06633, 1.428825],
    [0.01084, -0.11456, -0.056684, -0.11456, -2.024499],
)


def near(actual, expected, atol=6e-7):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(torch.as_tensor(actual).double(), expected, rtol=0.0, atol=atol)


@pytest.fixture
def mask():
    return response_mask_BR(TOKENS, EOS)


@pytest.fixture
def value_mask(mask):
    return value_mask_BR(mask)


@pytest.fixture
def kl(mask):
    return kl_per_token(LOGP, REF, mask)


@pytest.fixture
def rewards(kl, mask):
    scores = missing_eos(SCORES, contains_eos(TOKENS, EOS), penalty=1.0)
    return token_rewards(scores, kl, mask, kl_coef=0.05)


@pytest.fixture
def estimates(rewards, value_mask):
    return gae(rewards, VALUES.masked_fill(~value_mask, 0.0), gamma=1.0, lam=0.95)


@pytest.fixture
def advantages(estimates, mask):
    return whiten(estimates[0], mask, masked_moments(estimates[0], mask))


def update(rows, advantages, returns, mask, value_mask) -> tuple[PolicyLoss, ValueLoss]:
    policy = ppo_policy_loss(NEW_LOGP[rows], LOGP[rows], advantages[rows], mask[rows], clip=0.2)
    value = ppo_value_loss(
        NEW_VALUES[rows], VALUES[rows], returns[rows], value_mask[rows], clip=0.2
    )
    return policy, value


def test_last_index_and_masks(mask, value_mask):
    assert last_index_B(mask).tolist() == [2, 4, 4]
    assert (int(mask.sum()), int(value_mask.sum())) == (13, 14)


def test_kl_sums(kl, mask):
    near(kl.sum(-1), [0.4, 0.4, -0.6])
    near(kl.sum(-1).mean(), 0.066667)


def test_rewards(rewards):
    near(rewards, REWARDS)


def test_advantages_and_returns(estimates):
    near(estimates[0], ADVANTAGES)
    near(estimates[1], RETURNS)


@pytest.mark.detail("F4")
def test_score_on_eos_leaks_the_value_after_it(kl, mask, value_mask):
    # Detail F4: the score moved to s while V[s+1] is kept.
    rewards = token_rewards(SCORES, kl, mask, kl_coef=0.05, score_step="eos")
    advantages, _ = gae(rewards, VALUES.masked_fill(~value_mask, 0.0), gamma=1.0, lam=0.95)
    near(advantages[0, :4], [1.261125, 1.1275, 0.65, -1.4])


@pytest.mark.detail("F4")
def test_score_on_eos_with_policy_mask_on_values(kl, mask):
    # Detail F4: the self-consistent alternative, V[s+1] zeroed as well.
    rewards = token_rewards(SCORES, kl, mask, kl_coef=0.05, score_step="eos")
    advantages, _ = gae(rewards, VALUES.masked_fill(~mask, 0.0), gamma=1.0, lam=0.95)
    near(advantages[0], [1.19795, 1.061, 0.58, 0, 0])


def test_advantage_whitening(estimates, advantages, mask):
    near(masked_mean(estimates[0], mask), 0.073474)
    near(masked_var(estimates[0], mask, unbiased=False), 0.46775)
    near(masked_var(estimates[0], mask, unbiased=True), 0.506729)
    near(advantages, WHITENED)
    assert (advantages[~mask] == 0.0).all()


def test_optional_reward_whitening(rewards, value_mask):
    near(masked_mean(rewards, value_mask), 0.092143)
    near(masked_var(rewards, value_mask, unbiased=False), 0.268678)
    moments = masked_moments(rewards, value_mask)
    near(whiten(rewards, value_mask, moments, shift_mean=False), WHITENED_REWARDS)


def test_update_as_one_micro_batch(advantages, estimates, mask, value_mask):
    policy, value = update(slice(None), advantages, estimates[1], mask, value_mask)
    pg = masked_mean(policy.loss_BR, mask)
    vf = masked_mean(value.loss_BR, value_mask)
    near(pg, 0.024253)
    near(vf, 0.242972)
    near(pg + 0.1 * vf, 0.048550)
    near(masked_mean(policy.clipped_BR.double(), mask), 0.076923)
    near(masked_mean(value.clipped_BR.double(), value_mask), 2 / 14)


@pytest.mark.detail("G5")
def test_update_statistics_as_the_reference_counts_them(advantages, estimates, mask, value_mask):
    # Detail G5: over all 15 slots, pads included.
    policy, _ = update(slice(None), advantages, estimates[1], mask, value_mask)
    near(policy.clipped_BR.double().mean(), 0.066667)
    near(policy.approxkl_BR.mean(), 0.011333)
    near(policy.ratio_BR.mean(), 1.011205)
    near((-LOGP).masked_fill(~mask, -1.0).sum(-1).mean(), 3.4)


def test_update_statistics_over_real_tokens(advantages, estimates, mask, value_mask):
    policy, _ = update(slice(None), advantages, estimates[1], mask, value_mask)
    near(masked_sum(-LOGP, mask, dim=-1).mean(), 4.066667)
    near(masked_mean(policy.approxkl_BR, mask), 0.011333 * 15 / 13, atol=2e-6)
    near(masked_mean(policy.ratio_BR, mask), (1.011205 * 15 - 2) / 13, atol=2e-6)


@pytest.mark.detail("G4")
def test_update_as_micro_batches_of_one_row(advantages, estimates, mask, value_mask):
    # Detail G4: equal weight per micro-batch gives another loss than one mean over all tokens.
    pg, vf = [], []
    for row in range(3):
        rows = slice(row, row + 1)
        policy, value = update(rows, advantages, estimates[1], mask, value_mask)
        pg.append(masked_mean(policy.loss_BR, mask[rows]))
        vf.append(masked_mean(value.loss_BR, value_mask[rows]))
    near(torch.stack(pg), [-1.228249, -0.379677, 1.179685])
    near(torch.stack(pg).mean(), -0.142747)
    near(torch.stack(vf).mean(), 0.255570)


@pytest.mark.detail("E7")
def test_truncation_literals():
    # Detail E7.
    tokens = torch.tensor([[5, 7, 0, 9, 0], [0, 3, 4, 5, 6], [5, 7, 8, 9, 0], [5, 7, 8, 9, 1]])
    assert truncate_after(tokens, EOS, PAD).tolist() == [
        [5, 7, 0, PAD, PAD],
        [0, PAD, PAD, PAD, PAD],
        [5, 7, 8, 9, 0],
        [5, 7, 8, 9, 1],
    ]


@pytest.mark.detail("D9")
def test_dpo_literals():
    # Detail D9.
    log_ratio = table((-20.0 + 25.0) - (-22.0 + 24.0)).squeeze()
    near(sigmoid_loss(log_ratio, beta=0.05), 0.620957)
    near(ipo_loss(log_ratio, beta=0.05), 49.0)
    near(sigmoid_loss(table(0.0).squeeze(), beta=0.05), math.log(2), atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [(sigmoid_loss, [0.693147, 0.313262, 0.126928]), (hinge_loss, [1.0, 0.0, 0.0])],
)
def test_pair_losses_of_other_code(loss, expected):
    chosen, rejected = table([-0.5, -10, -1])[0], table([-0.1, -30, -21])[0]
    ref_chosen, ref_rejected = table([-0.5, -10.1, -0.1])[0], table([-0.1, -20.1, -0.1])[0]
    near(loss((chosen - ref_chosen) - (rejected - ref_rejected), beta=0.1), expected)


def test_returns_of_other_code():
    rewards = values = table([0, 0, 0, 1])
    near(gae(rewards, values, gamma=0.9, lam=0.95)[1], [[0.6579225, 0.7695, 0.9, 1]])


def test_advantages_and_their_whitening_in_three_dialects():
    rewards, values = table([-0.05, 0.1, 0, 2]), table([0.5, 0.2, -0.1, 0.4])
    advantages, returns = gae(rewards, values, gamma=1.0, lam=0.95)
    near(advantages, [[1.28305, 1.719, 2.02, 1.6]])
    near(returns, [[1.78305, 1.919, 1.92, 2.0]])
    mask = torch.ones_like(advantages, dtype=torch.bool)
    moments = masked_moments(advantages, mask)
    biased = [[-1.411076, 0.240523, 1.380863, -0.210309]]
    unbiased = [[-1.222028, 0.208299, 1.195862, -0.182133]]
    kept_mean = [[0.433485, 1.863811, 2.851375, 1.473379]]
    near(whiten(advantages, mask, moments), biased)
    near(whiten(advantages, mask, moments, unbiased=True), unbiased)
    near(whiten(advantages, mask, moments, unbiased=True, shift_mean=False), kept_mean)


@pytest.mark.parametrize(
    ("log_ratio", "expected"), [(0.2, [0.2, 0.02, 0.018730753]), (-1.5, [-1.5, 1.125, 1.981689])]
)
def test_kl_estimators(log_ratio, expected):
    ratio = torch.tensor(log_ratio, dtype=torch.float64)
    near(torch.stack([KL_ESTIMATORS[k](ratio) for k in ("k1", "k2", "k3")]), expected)


def test_rewards_with_score_on_the_last_token():
    kl = table([-0.1] * 3, [-0.2] * 3, [-0.3] * 3)
    mask = torch.ones_like(kl, dtype=torch.bool)
    rewards = token_rewards(table([1, 2, 3])[0], kl, mask, kl_coef=0.5)
    near(rewards[:, -1], [1.05, 2.1, 3.15])
    near(rewards[:, 0], [0.05, 0.1, 0.15])


def test_masked_statistics():
    values, mask = table([1, 2, 3, 4]), torch.tensor([[False, True, True, False]])
    near(masked_mean(values, mask), 2.5)
    near(masked_var(values, mask, unbiased=True), 0.5)
    near(masked_var(values, mask, unbiased=False), 0.25)
