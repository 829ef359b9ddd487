"""Credit and loss of the algorithms without a critic, on numbers that are followed by hand."""

import numpy as np
import pytest
import torch

from nplus.algorithms import reinforce
from nplus.batches import Generation, GroupRollout, PromptBatch, Rollout
from nplus.config import ReinforceConfig
from nplus.config.relatives import ALGORITHMS

R = 4
LENGTHS = (4, 2, 1, 3)
SCORES = (1.0, 3.0, -2.0, 0.5)
MASK = torch.tensor([[r < n for r in range(R)] for n in LENGTHS])


def settings(algorithm, **changed):
    sizes = {"batch_size": 4, "total_episodes": 4, "micro_batch_size": 4, "num_generations": 2}
    if algorithm in ("reinforce++", "remax", "nash_md"):
        sizes["num_generations"] = 1
    plain = {"missing_eos_penalty": None, "sampling": {"response_length": 8}}
    return ReinforceConfig.model_validate(
        {"algorithm": algorithm, **sizes, **plain, "overlong_share": None, **changed}
    )


def grouped(scores=SCORES, rivals=(0.0,) * 4, seed=0, has_eos=(True,) * 4):
    """Four responses of 4, 2, 1 and 3 tokens with random log-probs."""
    g = torch.Generator().manual_seed(seed)

    def drawn():
        x = -torch.rand(4, R, generator=g, dtype=torch.float64)
        return x.masked_fill(~MASK, 0.0)

    prompts = PromptBatch(
        torch.ones(4, 1, dtype=torch.int64), torch.ones(4, 1).bool(), tuple("aabb")
    )
    tokens = torch.randint(2, 9, (4, R), generator=g).masked_fill(~MASK, 1)
    generation = Generation(prompts, tokens, MASK, drawn())
    rollout = Rollout(
        generation,
        drawn(),
        drawn(),
        torch.tensor(scores).double(),
        torch.tensor(has_eos),
        torch.zeros(4, dtype=torch.long),
    )
    return GroupRollout(rollout, torch.tensor(rivals).double(), torch.ones(4).bool())


def kl_of(rollout):
    return (rollout.logprobs_BR - rollout.ref_logprobs_BR).masked_fill(~MASK, 0.0)


def credited(cfg, **options):
    found = grouped(**options)
    return found, *reinforce.credit(found, cfg)


def per_row(batch):
    """The advantage of each row, which all its tokens must share."""
    rows = [
        row[mask] for row, mask in zip(batch.advantages_BR, batch.response_mask_BR, strict=True)
    ]
    assert all(bool((row == row[0]).all()) for row in rows)
    return [float(row[0]) for row in rows]


# --- credit -------------------------------------------------------------------------------------


def test_rloo_prices_kl_before_the_baseline():
    found, batch, _ = credited(settings("rloo", kl_coef=0.5))
    kl = kl_of(found.rollout).sum(1).tolist()
    rewards = [s - 0.5 * k for s, k in zip(SCORES, kl, strict=True)]
    first, second = rewards[0] - rewards[1], rewards[2] - rewards[3]
    assert per_row(batch) == pytest.approx([first, -first, second, -second])
    assert not batch.advantages_BR[~MASK].any()


def test_grpo_leaves_kl_to_the_loss():
    _, batch, _ = credited(settings("grpo", kl_coef=0.5, scale_eps=0.0))
    # A pair's mean lies half its difference d away, its unbiased deviation is d / sqrt(2).
    assert per_row(batch) == pytest.approx([-(0.5**0.5), 0.5**0.5, -(0.5**0.5), 0.5**0.5])
    assert batch.kl_coef_B.tolist() == [0.5] * 4


def test_remax_takes_the_greedy_score_and_kl_to_go():
    cfg = settings("remax", kl_coef=0.5)
    found, batch, _ = credited(cfg, rivals=(2.0, 1.0, 0.0, 0.5))
    kl = kl_of(found.rollout)
    for b, (score, rival) in enumerate(zip(SCORES, (2.0, 1.0, 0.0, 0.5), strict=True)):
        for r in range(LENGTHS[b]):
            expected = score - rival - 0.5 * float(kl[b, r:].sum())
            assert float(batch.advantages_BR[b, r]) == pytest.approx(expected)


def test_reinforce_plus_plus_whitens_over_all_tokens():
    cfg = settings("reinforce++", kl_coef=0.3)
    found, batch, _ = credited(cfg)
    kl = kl_of(found.rollout)
    raw = [SCORES[b] - 0.3 * float(kl[b, r:].sum()) for b in range(4) for r in range(LENGTHS[b])]
    mean = sum(raw) / len(raw)
    deviation = (sum((x - mean) ** 2 for x in raw) / len(raw)) ** 0.5
    expected = [(x - mean) / deviation for x in raw]
    assert batch.advantages_BR[MASK].tolist() == pytest.approx(expected, rel=1e-6)


def test_whitening_by_sequence():
    _, batch, _ = credited(settings("rloo", whitening="sequence", kl_coef=0.0, scale_eps=0.0))
    raw = torch.tensor([-2.0, 2.0, -2.5, 2.5], dtype=torch.float64)
    assert per_row(batch) == pytest.approx((raw / raw.std()).tolist())


def test_nash_md_maximises_the_preference():
    _, batch, metrics = credited(settings("nash_md"), rivals=(1.0, 1.0, 0.0, 0.0))
    expected = [
        1 / (1 + 2.718281828459045 ** -(s - r)) - 0.5
        for s, r in zip(SCORES, (1.0, 1.0, 0.0, 0.0), strict=True)
    ]
    assert per_row(batch) == pytest.approx(expected)
    assert metrics["objective/signal"].value == pytest.approx(sum(expected) / 4)


def test_a_controller_takes_the_coefficients_place():
    found = grouped()
    batch, metrics = reinforce.credit(found, settings("grpo"), kl_coef=2.0)
    assert batch.kl_coef_B.tolist() == [2.0] * 4
    kl = kl_of(found.rollout).sum(1).mean()
    assert metrics["objective/non_score_reward"].value == pytest.approx(float(-2.0 * kl))


def test_missing_eos_and_overlong_shape_the_score():
    cfg = settings(
        "rloo",
        kl_coef=0.0,
        missing_eos_penalty=1.0,
        missing_eos="subtract",
        overlong_share=0.5,
        overlong_penalty=2.0,
        sampling={"response_length": 4},
    )
    _, _, metrics = credited(cfg, has_eos=(False, True, True, True))
    # Lengths 4, 2, 1, 3 of 4, the last half priced: -1, 0, 0, -1/2 times 2.
    shaped = [1.0 - 1.0 - 2.0, 3.0, -2.0, 0.5 - 1.0]
    assert metrics["objective/signal"].value == pytest.approx(sum(shaped) / 4)


def test_dynamic_sampling_leaves_groups_of_equals_out_and_says_so():
    cfg = settings("dapo")
    found, batch, metrics = credited(cfg, scores=(1.0, 1.0, 0.0, 2.0))
    assert len(batch) == 2
    assert torch.equal(batch.response_tokens_BR, found.rollout.generation.tokens_BR[2:])
    assert (metrics["groups/dropped"].value, metrics["groups/equal"].value) == (1.0, 0.5)
    plain = settings("dapo", dynamic_sampling=False)
    _, batch, metrics = credited(plain, scores=(1.0, 1.0, 0.0, 2.0))
    assert (len(batch), metrics["groups/dropped"].value) == (4, 0.0)
    assert per_row(batch)[:2] == [0.0, 0.0]
    assert len(credited(cfg, scores=(1.0,) * 4)[1]) == 0


def test_rows_that_are_left_out_count_in_no_mean():
    cfg = settings("dapo", whitening="token", scale="none", baseline="none")
    _, batch, _ = credited(cfg, scores=(9.0, 9.0, 0.0, 2.0))
    kept = torch.tensor([0.0] * 1 + [2.0] * 3, dtype=torch.float64)
    expected = (kept - kept.mean()) / kept.std(unbiased=False)
    assert batch.advantages_BR[batch.response_mask_BR].tolist() == pytest.approx(
        expected.tolist(), rel=1e-6
    )


@pytest.mark.parametrize("importance", ["truncate", "mask"])
@pytest.mark.parametrize(
    ("algorithm", "level"),
    [
        ("grpo", lambda row: row),  # a weight for each token
        ("rloo", lambda row: np.full_like(row, row.sum())),  # one for the response
        ("gspo", lambda row: np.full_like(row, row.mean())),  # its geometric mean
    ],
)
def test_stale_advantages_weigh_their_bounded_ratio(algorithm, level, importance):
    cap = 1.2
    fresh = settings(algorithm, kl_coef=0.0)
    # Two updates, or there would be none to be stale in.
    changed = {"max_staleness": 1, "total_episodes": 8, "importance_cap": cap}
    cfg = settings(algorithm, kl_coef=0.0, importance=importance, **changed)
    found, batch, metrics = credited(cfg)
    plain = reinforce.credit(found, fresh)[0].advantages_BR
    now, drew = found.rollout.logprobs_BR.numpy(), found.rollout.generation.logprobs_BR.numpy()
    weights, ratios = [], []
    for b, n in enumerate(LENGTHS):
        ratio = np.exp(level(now[b, :n] - drew[b, :n]))
        inside = (ratio >= 1 / cap) & (ratio <= cap)
        kept = np.minimum(ratio, cap) if importance == "truncate" else np.where(inside, ratio, 0)
        np.testing.assert_allclose(batch.advantages_BR[b, :n], plain[b, :n].numpy() * kept)
        weights.extend(kept)
        ratios.extend(ratio)
    assert not batch.advantages_BR[~MASK].any()
    assert 0 < np.mean(np.array(weights) != ratios) < 1
    assert metrics["val/importance"].value == pytest.approx(np.mean(weights))
    share = np.mean(np.array(weights) != ratios)
    assert metrics["val/importance_bounded"].value == pytest.approx(share)
    # The loss is weighted, and its ratio is that to the policy before the update.
    ours, theirs = loss_and_gradient(batch, cfg), loss_and_gradient(batch, fresh)
    assert ours[0] == theirs[0]
    assert torch.equal(batch.old_logprobs_BR, found.rollout.logprobs_BR)


def test_stale_responses_may_be_taken_for_fresh():
    cfg = settings("rloo", max_staleness=1, total_episodes=8, importance="none")
    _, batch, metrics = credited(cfg)
    assert torch.equal(batch.advantages_BR, credited(settings("rloo"))[1].advantages_BR)
    assert "val/importance" not in metrics


def test_truncated_responses_may_stay_out_of_the_loss():
    cfg = settings("grpo", mask_truncated_completions=True)
    _, batch, _ = credited(cfg, has_eos=(False, True, True, True))
    assert batch.response_mask_BR.sum(1).tolist() == [0, 2, 1, 3]


# --- the loss -----------------------------------------------------------------------------------


def loss_and_gradient(batch, cfg, logprobs=None):
    """The loss as `training.update` divides it, and its gradient by the new log-probs."""
    new = (batch.old_logprobs_BR if logprobs is None else logprobs).clone().requires_grad_()
    found = reinforce.objective(new, torch.zeros_like(new), batch, cfg)
    assert {name: mean.count for name, (_, mean) in found.terms.items()} == reinforce.counts(
        batch, cfg
    )
    loss = sum(weight * mean.sum / mean.count for weight, mean in found.terms.values())
    loss.backward()
    return float(loss.detach()), new.grad


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_at_ratio_one_the_gradient_is_the_policy_gradient(algorithm):
    cfg = settings(
        algorithm, **({"kl_coef": 0.0} if ALGORITHMS[algorithm]["kl_in"] == "loss" else {})
    )
    _, batch, _ = credited(cfg)
    _, gradient = loss_and_gradient(batch, cfg)
    lengths = torch.tensor(LENGTHS).double().unsqueeze(1)
    weight = {
        "sequence": 1 / (4 * lengths),
        "token": torch.full((4, 1), 1 / sum(LENGTHS)).double(),
        "constant": torch.full((4, 1), 1 / (4 * 8)).double(),
        "sequence_sum": torch.full((4, 1), 1 / 4).double(),
    }[cfg.aggregation]
    if cfg.ratio == "sequence":  # a response's ratio moves with each of its tokens as a whole
        weight = torch.full((4, 1), 1 / 4).double()
    expected = (-batch.advantages_BR * weight).masked_fill(~MASK, 0.0)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("estimator", "slope"), [("k2", lambda d: d), ("k3", lambda d: 1 - (-d).exp())]
)
def test_kl_in_the_loss_adds_the_gradient_of_its_estimator(estimator, slope):
    cfg = settings("grpo", kl_coef=0.7, kl_estimator=estimator)
    found, batch, _ = credited(cfg)
    without = loss_and_gradient(batch, settings("grpo", kl_coef=0.0))[1]
    _, gradient = loss_and_gradient(batch, cfg)
    lengths = torch.tensor(LENGTHS).double().unsqueeze(1)
    expected = 0.7 * slope(kl_of(found.rollout)) / (4 * lengths)
    torch.testing.assert_close(gradient - without, expected.masked_fill(~MASK, 0.0))


@pytest.mark.parametrize(
    ("estimator", "value"), [("k1", lambda d: d), ("k3", lambda d: (-d).exp() - 1 + d)]
)
def test_a_corrected_kl_has_the_gradient_of_the_ratio_too(estimator, value):
    cfg = settings("grpo", kl_coef=0.7, kl_estimator=estimator, use_bias_correction_kl=True)
    found, batch, _ = credited(cfg)
    logprobs = batch.old_logprobs_BR + 0.1
    without = loss_and_gradient(batch, settings("grpo", kl_coef=0.0), logprobs)[1]
    _, gradient = loss_and_gradient(batch, cfg, logprobs)
    gap = logprobs - found.rollout.ref_logprobs_BR
    slope = torch.ones_like(gap) if estimator == "k1" else 1 - (-gap).exp()
    expected = 0.7 * torch.tensor(0.1).double().exp() * (value(gap) + slope)
    lengths = torch.tensor(LENGTHS).double().unsqueeze(1)
    torch.testing.assert_close(
        gradient - without, (expected / (4 * lengths)).masked_fill(~MASK, 0.0)
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_clip_higher_by_hand(sign):
    cfg = settings(
        "dapo",
        cliprange=0.2,
        cliprange_high=0.28,
        dynamic_sampling=False,
        baseline="none",
        scale="none",
    )
    _, batch, _ = credited(cfg, scores=(sign,) * 4)
    for ratio, clipped in ((1.25, False), (1.3, sign > 0), (0.85, False), (0.7, sign < 0)):
        logprobs = batch.old_logprobs_BR + torch.tensor(ratio).double().log()
        _, gradient = loss_and_gradient(batch, cfg, logprobs)
        assert (gradient[MASK] == 0).all() == clipped, ratio


def test_gspo_clips_whole_responses():
    cfg = settings("gspo", baseline="none", scale="none", cliprange=0.1, cliprange_high=0.1)
    _, batch, _ = credited(cfg, scores=(1.0,) * 4)
    moved = batch.old_logprobs_BR.clone()
    moved[0] += torch.tensor([0.5, -0.1, 0.0, 0.0])  # a mean of 0.1: exp is 1.105
    moved[3, 0] += 0.2  # a mean of 0.067: 1.069
    _, gradient = loss_and_gradient(batch, cfg, moved)
    assert not gradient[0].any()
    assert gradient[3][MASK[3]].all()


def test_length_decides_under_grpo_but_not_under_dr_grpo():
    # Two wrong answers of one worth, one of 1 token and one of 4: GRPO pushes a token of the long
    # one down a quarter as hard, so long wrong answers survive (Liu et al. 2025, section 3.1).
    scores = (-1.0, 1.0, -1.0, 1.0)
    pushed = {}
    for algorithm in ("grpo", "dr_grpo"):
        cfg = settings(algorithm, kl_coef=0.0)
        _, batch, _ = credited(cfg, scores=scores)
        _, gradient = loss_and_gradient(batch, cfg)
        pushed[algorithm] = float(gradient[0, 0] / gradient[2, 0])
    assert pushed == pytest.approx({"grpo": 1 / 4, "dr_grpo": 1.0})


def test_deviation_favours_easy_and_hard_prompts_under_grpo_alone():
    # Rewards 1, 0 of one prompt and 1, 0.9 of the other: GRPO makes both equally loud.
    scores = (1.0, 0.0, 1.0, 0.9)
    loud = {}
    for algorithm in ("grpo", "dr_grpo"):
        _, batch, _ = credited(settings(algorithm, scale_eps=0.0), scores=scores)
        rows = per_row(batch)
        loud[algorithm] = rows[2] / rows[0]
    assert loud == pytest.approx({"grpo": 1.0, "dr_grpo": 0.1})
