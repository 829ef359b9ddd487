"""Switches of PPO's credit and loss, each against numbers worked out without it."""

import math

import numpy as np
import pytest
import torch

from nplus.algorithms import ppo
from nplus.batches import Generation, PromptBatch, Rollout, ValuedRollout
from nplus.config import PPOConfig, SamplingConfig
from nplus.ops.masking import masked_moments, whiten
from nplus.ops.responses import contains_eos, response_mask_BR, value_mask_BR
from nplus.stages.ppo import minibatches

EOS = 0
TOKENS = torch.tensor([[5, 6, EOS, 7], [5, 6, 7, EOS], [5, 6, 7, 8], [5, EOS, 9, 9]])
SCORES = torch.tensor([1.5, 0.8, 2.0, -0.5], dtype=torch.float64)
LOGP = -torch.tensor(
    [[1, 2, 0.5, 3], [0.7, 1.1, 0.2, 0.9], [2, 1, 1.5, 0.6], [1.4, 0.3, 2, 2]], dtype=torch.float64
)
REF = LOGP + torch.tensor(
    [[0.2, -0.2, 15, 9], [-0.2, 0.1, -0.2, 0.2], [1, -0.3, 0.3, -0.3], [0.5, -12, 1, 1]],
    dtype=torch.float64,
)
VALUES = torch.linspace(-1, 1, 16, dtype=torch.float64).view(4, 4)


def valued():
    mask = response_mask_BR(TOKENS, EOS)
    prompts = PromptBatch(
        torch.full((4, 2), 3), torch.ones(4, 2, dtype=torch.bool), ("a", "b", "c", "d")
    )
    rollout = Rollout(
        generation=Generation(prompts, TOKENS, mask, LOGP),
        logprobs_BR=LOGP,
        ref_logprobs_BR=REF,
        scores_B=SCORES,
        has_eos_B=contains_eos(TOKENS, EOS),
        failed_B=torch.zeros(len(TOKENS), dtype=torch.long),
    )
    return ValuedRollout(rollout, VALUES, value_mask_BR(mask))


def credit(**settings):
    return ppo.credit(valued(), PPOConfig(sampling=SamplingConfig(response_length=4), **settings))


def selected(**settings):
    """Advantages of real tokens, raw and as the settings whiten them."""
    mask = response_mask_BR(TOKENS, EOS)
    raw, _ = credit(whiten_advantages=False)
    made, _ = credit(**settings)
    return raw.advantages_BR[mask].numpy(), made.advantages_BR[mask].numpy()


@pytest.mark.detail("F7")
@pytest.mark.parametrize(("name", "ddof"), [("biased", 0), ("unbiased", 1)])
def test_whitening_variance(name, ddof):
    raw, made = selected(whitening_variance=name)
    expected = (raw - raw.mean()) / np.sqrt(raw.var(ddof=ddof) + 1e-8)
    np.testing.assert_allclose(made, expected, rtol=1e-9)


@pytest.mark.detail("F7")
def test_whitening_that_keeps_the_mean():
    raw, made = selected(whitening_keeps_mean=True)
    assert made.mean() == pytest.approx(raw.mean())
    assert made.std() == pytest.approx(1.0, rel=1e-6)


def test_eps_under_the_root():
    # Variance far below eps: added it rules, clamped it is the floor itself.
    x = torch.tensor([1e-6, -1e-6], dtype=torch.float64)
    mask = torch.ones(2, dtype=torch.bool)
    added = whiten(x, mask, masked_moments(x, mask), eps_mode="add")
    clamped = whiten(x, mask, masked_moments(x, mask), eps_mode="clamp")
    assert added[0].item() == pytest.approx(1e-6 / math.sqrt(1e-12 + 1e-8))
    assert clamped[0].item() == pytest.approx(1e-6 / math.sqrt(1e-8))
    with pytest.raises(ValueError, match="eps_mode"):
        whiten(x, mask, masked_moments(x, mask), eps_mode="none")


@pytest.mark.detail("F7")
def test_whitening_of_each_process():
    cfg = PPOConfig(whitening_scope="rank")
    raw, _ = ppo.credit(valued(), PPOConfig(whiten_advantages=False))
    parted, _ = ppo.credit(valued(), cfg, parts=2)
    for rows in (slice(0, 2), slice(2, 4)):
        some = raw.advantages_BR[rows][raw.response_mask_BR[rows]].double().numpy()
        expected = (some - some.mean()) / np.sqrt(some.var() + 1e-8)
        found = parted.advantages_BR[rows][raw.response_mask_BR[rows]]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    alone, _ = ppo.credit(valued(), cfg)
    together, _ = ppo.credit(valued(), PPOConfig(), parts=2)
    assert torch.equal(alone.advantages_BR, together.advantages_BR)
    assert not torch.equal(parted.advantages_BR, alone.advantages_BR)


@pytest.mark.detail("F7")
def test_whitening_of_each_minibatch():
    cfg = PPOConfig(
        whitening_scope="minibatch",
        total_episodes=4,
        batch_size=4,
        num_mini_batches=2,
        micro_batch_size=1,
        num_ppo_epochs=2,
    )
    batch, _ = ppo.credit(valued(), cfg)
    raw, _ = ppo.credit(valued(), PPOConfig(whiten_advantages=False))
    assert torch.equal(batch.advantages_BR, raw.advantages_BR)
    steps = list(minibatches(batch, cfg, seed=1, step=0))
    assert [len(micros) for micros in steps] == [2] * 4
    for micros in steps:
        advantages = torch.cat([m.advantages_BR[m.response_mask_BR] for m in micros])
        assert advantages.mean().item() == pytest.approx(0.0, abs=1e-9)
        assert advantages.var(correction=0).item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.detail("E8")
def test_a_penalty_that_is_subtracted():
    _, metrics = credit(missing_eos="subtract", missing_eos_penalty=0.7)
    assert metrics["objective/scores_penalised"].value == pytest.approx((1.5 + 0.8 + 1.3 - 0.5) / 4)
    _, metrics = credit(missing_eos_penalty=0.7)
    assert metrics["objective/scores_penalised"].value == pytest.approx((1.5 + 0.8 - 0.7 - 0.5) / 4)


@pytest.mark.detail("F3")
def test_a_clamp_on_every_kl_estimate():
    # Log ratios of real tokens beyond 10 are -15 in row 0 and 12 in row 3.
    _, plain = credit()
    _, clamped = credit(kl_clamp=10.0)
    rows = [-0.2 + 0.2 - 15, 0.2 - 0.1 + 0.2 - 0.2, -1 + 0.3 - 0.3 + 0.3, -0.5 + 12]
    assert plain["objective/kl"].value == pytest.approx(sum(rows) / 4)
    assert clamped["objective/kl"].value == pytest.approx((sum(rows) + 5 - 2) / 4)


@pytest.mark.detail("F2")
def test_values_without_the_slot_after_eos():
    batch, _ = credit(value_mask="response", whiten_advantages=False, kl_coef=0.0)
    assert torch.equal(batch.value_mask_BR, batch.response_mask_BR)
    assert (batch.old_values_BR[~batch.response_mask_BR] == 0).all()
    # Row 3, EOS at 1: the score comes one step later, and nothing stands between but lambda.
    delta_eos = -VALUES[3, 1]
    assert batch.advantages_BR[3, 1].item() == pytest.approx(float(delta_eos + 0.95 * -0.5))


@pytest.mark.detail("G5")
def test_metrics_as_the_papers_code_counts_them():
    # Pads after EOS: 1, 0, 0 and 2 of 4 slots; each counts -1 in the paper's entropy.
    _, metrics = credit()
    entropy, reference = (metrics[f"objective/entropy{s}"].value for s in ("", "_reference"))
    assert entropy - reference == pytest.approx(3 / 4)
    batch, _ = credit()
    new = LOGP + 0.3
    found = ppo.objective(
        new,
        torch.zeros_like(new),
        VALUES,
        batch,
        PPOConfig(sampling=SamplingConfig(response_length=4)),
    ).metrics
    real = 13 / 16
    assert found["policy/approxkl_avg"].value == pytest.approx(0.5 * 0.09)
    assert found["policy/approxkl_avg_reference"].value == pytest.approx(0.5 * 0.09 * real)
    assert found["val/ratio_reference"].value == pytest.approx(math.exp(0.3) * real + 3 / 16)
    clipped = found["policy/clipfrac_avg"].value
    assert clipped > 0
    assert found["policy/clipfrac_avg_reference"].value == pytest.approx(clipped * real)


@pytest.mark.detail("F3")
def test_the_kl_coefficient_follows_its_target():
    # Ziegler et al. 2019, section 2.2, by hand: errors 0.5 (cut to 0.2), -0.1, -1 (cut to -0.2).
    kl = ppo.KLController(0.05, target=6.0, horizon=10_000)
    expected = 0.05
    for mean_kl, error in ((9.0, 0.2), (5.4, -0.1), (0.0, -0.2)):
        kl.observe(mean_kl, 512)
        expected *= 1 + error * 512 / 10_000
        assert kl.value == pytest.approx(expected, rel=1e-12)
    fixed = ppo.KLController(0.05, target=None, horizon=10_000)
    fixed.observe(50.0, 512)
    assert fixed.value == 0.05
    again = ppo.KLController(1.0, target=6.0, horizon=10_000)
    again.load_state_dict(kl.state_dict())
    assert again.value == kl.value


@pytest.mark.detail("F3")
@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
def test_a_kl_that_is_no_number_leaves_the_coefficient_as_it_is(spoilt):
    # A step whose log-probs are NaN is left out; the next one is priced as if it had not been.
    kl = ppo.KLController(0.05, target=6.0, horizon=1_000)
    kl.observe(spoilt, 512)
    assert kl.value == 0.05
    resumed = ppo.KLController(1.0, target=6.0, horizon=1_000)
    resumed.load_state_dict(kl.state_dict())
    resumed.observe(9.0, 500)  # by hand: 0.05 * (1 + 0.2 * 500 / 1000)
    assert resumed.value == pytest.approx(0.055, rel=1e-12)
