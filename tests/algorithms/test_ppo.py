"""The hand-worked rollout of the golden vectors, through `credit` and `objective`.

R = 5 and PPOConfig's own values: beta 0.05, gamma 1, lambda 0.95, clips 0.2, vf_coef 0.1.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from nplus.algorithms import ppo
from nplus.batches import Generation, PromptBatch, Rollout, ValuedRollout
from nplus.config import OptimConfig, PPOConfig
from nplus.metrics import Mean
from nplus.ops.responses import contains_eos, response_mask_BR, value_mask_BR
from nplus.training.optim import Optimizer
from nplus.training.update import update

EOS, JUNK = 0, math.nan


def table(*rows):
    return torch.tensor(rows, dtype=torch.float64)


TOKENS = torch.tensor([[5, 6, EOS, 7, 8], [5, 6, 7, 8, EOS], [5, 6, 7, 8, 9]])
SCORES = torch.tensor([1.5, 0.8, 123.0], dtype=torch.float64)
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
    [1.193437, 1.05625, 0.575, 0, 0],  # the slot after EOS has a return, and no token to credit
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


def valued(tokens=TOKENS, scores=SCORES, logp=LOGP, ref=REF, values=VALUES):
    rows = len(tokens)
    mask = response_mask_BR(tokens, EOS)
    prompts = PromptBatch(
        torch.full((rows, 2), 3), torch.ones(rows, 2, dtype=torch.bool), tuple("abcdefgh"[:rows])
    )
    rollout = Rollout(
        generation=Generation(prompts, tokens, mask, logp),
        logprobs_BR=logp,
        ref_logprobs_BR=ref,
        scores_B=scores,
        has_eos_B=contains_eos(tokens, EOS),
        failed_B=torch.zeros(len(tokens), dtype=torch.long),
    )
    return ValuedRollout(rollout, values, value_mask_BR(mask))


def credit(cfg=None, **changed):
    return ppo.credit(valued(**changed), cfg or PPOConfig())


# --- credit -------------------------------------------------------------------------------------


def test_rewards():
    # With gamma 0 and no values a return is the reward itself.
    cfg = PPOConfig(gamma=0.0, whiten_advantages=False)
    batch, _ = credit(cfg, values=torch.zeros(3, 5, dtype=torch.float64))
    near(batch.returns_BR, REWARDS)


def test_advantages_and_returns():
    batch, _ = credit(PPOConfig(whiten_advantages=False))
    near(batch.advantages_BR, ADVANTAGES)
    near(batch.returns_BR, RETURNS)


@pytest.mark.detail("F5", "F7")
def test_whitened_advantages():
    # Detail F7; Detail F5: returns are those of before whitening.
    batch, _ = credit()
    near(batch.advantages_BR, WHITENED)
    near(batch.returns_BR, RETURNS)


@pytest.mark.detail("F6")
def test_optional_reward_whitening():
    # Detail F6.
    cfg = PPOConfig(gamma=0.0, whiten_advantages=False, whiten_rewards=True)
    batch, _ = credit(cfg, values=torch.zeros(3, 5, dtype=torch.float64))
    near(batch.returns_BR, WHITENED_REWARDS)


@pytest.mark.detail("F4")
def test_score_on_the_eos_takes_the_value_after_it_away():
    # Detail F4: the self-consistent alternative.
    batch, _ = credit(PPOConfig(score_step="eos", value_mask="response", whiten_advantages=False))
    near(batch.advantages_BR[0], [1.19795, 1.061, 0.58, 0, 0])
    assert torch.equal(batch.value_mask_BR, batch.response_mask_BR)


@pytest.mark.detail("E8")
def test_a_missing_eos_replaces_the_score():
    # Detail E8: EOS in the last slot (row 1) keeps its score; whatever row 2 scored, it gets -1.
    for raw in (123.0, -7.0):
        scores = torch.tensor([1.5, 0.8, raw], dtype=torch.float64)
        batch, metrics = credit(PPOConfig(whiten_advantages=False), scores=scores)
        near(batch.returns_BR, RETURNS)
        assert metrics["objective/scores"].value == pytest.approx((1.5 + 0.8 + raw) / 3)
        assert metrics["objective/scores_penalised"].value == pytest.approx(1.3 / 3)


def test_without_the_penalty_the_raw_score_stays():
    cfg = PPOConfig(missing_eos_penalty=None, gamma=0.0, whiten_advantages=False)
    batch, _ = credit(cfg, values=torch.zeros(3, 5, dtype=torch.float64))
    near(batch.returns_BR[2, -1], 123.0 - 0.005)


def test_another_penalty_is_another_score():
    cfg = PPOConfig(missing_eos_penalty=2.5, gamma=0.0, whiten_advantages=False)
    batch, _ = credit(cfg, values=torch.zeros(3, 5, dtype=torch.float64))
    near(batch.returns_BR[2, -1], -2.5 - 0.005)


def test_rollout_metrics():
    _, metrics = credit()
    expected = {
        "objective/kl": 0.2 / 3,  # 0.066667: sums 0.4, 0.4, -0.6
        "objective/kl_per_token": 0.2 / 13,
        "objective/non_score_reward": -0.05 * 0.2 / 3,
        "objective/rlhf_reward": (1.5 + 0.8 - 1.0 - 0.05 * 0.2) / 3,
        "objective/entropy": 4.066667,
        "val/eos_rate": 2 / 3,
        "val/response_length": 13 / 3,
    }
    for name, value in expected.items():
        assert metrics[name].value == pytest.approx(value, abs=1e-6), name


@pytest.mark.detail("F1", "F2")
def test_what_follows_the_eos_means_nothing():
    junk = [x.clone() for x in (LOGP, REF, VALUES)]
    for x in junk:
        x[0, 4:] = JUNK
    junk[0][0, 3] = junk[1][0, 3] = JUNK  # values live one step longer (Detail F1)
    batch, metrics = credit(logp=junk[0], ref=junk[1], values=junk[2])
    near(batch.advantages_BR, WHITENED)
    near(batch.returns_BR, RETURNS)
    assert all(math.isfinite(metric.value) for metric in metrics.values())


def test_explained_variance():
    _, metrics = credit()
    keep = value_mask_BR(response_mask_BR(TOKENS, EOS)).numpy()
    values, returns = VALUES.numpy()[keep], RETURNS.numpy()[keep]
    expected = 1 - np.var(returns - values) / np.var(returns)
    assert metrics["val/explained_variance"].value == pytest.approx(expected, abs=1e-6)


def test_explained_variance_of_perfect_and_of_useless_values():
    mask = torch.ones(1, 4, dtype=torch.bool)
    returns = table([1, 2, 3, 6])
    found = [
        ppo.explained_variance(values, returns, mask)["val/explained_variance"].value
        for values in (returns, returns + 5, table([0.5] * 4))
    ]
    assert found == pytest.approx([1.0, 1.0, 0.0])


# --- objective ----------------------------------------------------------------------------------


@pytest.mark.detail("G2", "G3")
def test_the_update_as_one_micro_batch():
    batch, _ = credit()
    found = ppo.objective(NEW_LOGP, torch.zeros(3, 5), NEW_VALUES, batch, PPOConfig())
    (one, pg), (vf_coef, vf) = found.terms["policy_avg"], found.terms["value_avg"]
    assert (one, vf_coef) == (1.0, 0.1)
    near(pg.sum / pg.count, 0.024253)
    near(vf.sum / vf.count, 0.242972)
    near(pg.sum / pg.count + vf_coef * vf.sum / vf.count, 0.048550)
    told = {name: metric.value for name, metric in found.metrics.items()}
    assert told["policy/clipfrac_avg"] == pytest.approx(0.076923, abs=6e-7)
    assert told["val/clipfrac_avg"] == pytest.approx(2 / 14)
    assert told["policy/approxkl_avg"] == pytest.approx(0.011333 * 15 / 13, abs=1e-6)
    assert told["val/ratio"] == pytest.approx((1.011205 * 15 - 2) / 13, abs=1e-6)


def test_the_entropy_is_a_mean_over_real_tokens():
    batch, _ = credit()
    entropy = torch.full((3, 5), 2.0).masked_fill(~batch.response_mask_BR, JUNK)
    found = ppo.objective(NEW_LOGP, entropy, NEW_VALUES, batch, PPOConfig())
    assert found.metrics["policy/entropy_avg"].value == 2.0


def test_counts_are_those_of_the_terms():
    batch, _ = credit()
    found = ppo.objective(NEW_LOGP, torch.zeros(3, 5), NEW_VALUES, batch, PPOConfig())
    assert ppo.counts(batch) == {"policy_avg": 13.0, "value_avg": 14.0}
    assert {n: float(mean.count) for n, (_, mean) in found.terms.items()} == ppo.counts(batch)


@pytest.mark.detail("G4")
@pytest.mark.parametrize(
    ("normalise", "rows", "pg", "vf"),
    [
        ("global", (3,), 0.024253, 0.242972),
        ("global", (1, 1, 1), 0.024253, 0.242972),
        ("global", (2, 1), 0.024253, 0.242972),
        ("micro", (3,), 0.024253, 0.242972),
        ("micro", (1, 1, 1), -0.142747, 0.255570),
    ],
)
def test_the_loss_that_an_update_descends(normalise, rows, pg, vf):
    # Detail G4. The gradient with respect to a factor of 1 on each term is that term.
    factors = {name: nn.Parameter(torch.ones(1).double()) for name in ("policy_avg", "value_avg")}
    optimizer = Optimizer(factors.items(), OptimConfig(learning_rate=1.0, adam_beta1=0.0))
    batch, _ = credit()
    new = {"logprobs": NEW_LOGP.split(list(rows)), "values": NEW_VALUES.split(list(rows))}
    starts = [sum(rows[:i]) for i in range(len(rows))]
    micros = [
        (i, batch.rows(torch.arange(start, start + n)))
        for i, (start, n) in enumerate(zip(starts, rows, strict=True))
    ]

    def objective(micro):
        i, part = micro
        logprobs, values = new["logprobs"][i], new["values"][i]
        found = ppo.objective(logprobs, torch.zeros_like(values), values, part, PPOConfig())
        terms = {
            name: (1.0, Mean(mean.sum * factors[name], mean.count))
            for name, (_, mean) in found.terms.items()
        }
        return type(found)(terms=terms, metrics=found.metrics)

    update(
        micros,
        counts=lambda micro: ppo.counts(micro[1]),
        objectives=[objective],
        optimizers=[optimizer],
        normalise=normalise,
    )
    descended = optimizer.tensors()  # with beta1 0 the first moment is the gradient
    near(descended["0.0.exp_avg"], [pg])
    near(descended["0.1.exp_avg"], [vf])


def test_no_gradient_flows_through_masked_slots():
    batch, _ = credit()
    logprobs, values = (nn.Parameter(torch.nan_to_num(x, nan=3.0)) for x in (NEW_LOGP, NEW_VALUES))
    found = ppo.objective(logprobs, torch.zeros(3, 5), values, batch, PPOConfig())
    sum(weight * mean.sum for weight, mean in found.terms.values()).backward()
    assert logprobs.grad[0, 3:].tolist() == [0.0, 0.0]
    assert values.grad[0, 4] == 0.0
    assert values.grad[0, 3] != 0.0  # the state after EOS, whose target is the score
