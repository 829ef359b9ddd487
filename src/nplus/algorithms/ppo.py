"""PPO: from a valued rollout to a training batch, and from new log-probs and values to a loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nplus.batches import Objective, PPOBatch, ValuedRollout
from nplus.config import PPOConfig
from nplus.metrics import Mean, Metric
from nplus.ops.kl import kl_per_token
from nplus.ops.losses import ppo_policy_loss, ppo_value_loss
from nplus.ops.masking import Moments, masked_moments, whiten
from nplus.ops.returns import gae, missing_eos, token_rewards


def _over_ranks(moments: Moments, all_sum: Callable[[Tensor], Tensor]) -> Moments:
    return Moments(*all_sum(torch.stack(list(moments))).unbind())


def credit(
    valued: ValuedRollout, cfg: PPOConfig, all_sum: Callable[[Tensor], Tensor] = lambda x: x
) -> tuple[PPOBatch, dict[str, Metric]]:
    """Scores, KL and values become advantages and returns (details E8, F3 to F7).

    Whitening takes its moments over the whole rollout batch of all ranks (profile `nplus`).
    """
    rollout, mask_BR = valued.rollout, valued.rollout.generation.response_mask_BR
    kl_BR = kl_per_token(
        rollout.logprobs_BR, rollout.ref_logprobs_BR, mask_BR, estimator=cfg.kl_estimator
    )
    scores_B = rollout.scores_B
    if cfg.missing_eos_penalty is not None:
        scores_B = missing_eos(scores_B, rollout.has_eos_B, penalty=-cfg.missing_eos_penalty)
    rewards_BR = token_rewards(
        scores_B, kl_BR, mask_BR, kl_coef=cfg.kl_coef, score_step=cfg.score_step
    )
    value_mask_BR = valued.value_mask_BR if cfg.score_step == "after_eos" else mask_BR
    if cfg.whiten_rewards:
        moments = _over_ranks(masked_moments(rewards_BR, value_mask_BR), all_sum)
        rewards_BR = whiten(rewards_BR, value_mask_BR, moments, shift_mean=False)
    values_BR = valued.values_BR.masked_fill(~value_mask_BR, 0.0)
    advantages_BR, returns_BR = gae(rewards_BR, values_BR, gamma=cfg.gamma, lam=cfg.lam)
    metrics = _rollout_metrics(valued, kl_BR, scores_B, cfg.kl_coef)
    metrics |= explained_variance(values_BR, returns_BR, value_mask_BR)
    if cfg.whiten_advantages:
        moments = _over_ranks(masked_moments(advantages_BR, mask_BR), all_sum)
        advantages_BR = whiten(advantages_BR, mask_BR, moments)
    tokens_BT, mask_BT = rollout.generation.sequences()
    batch = PPOBatch(
        tokens_BT=tokens_BT,
        mask_BT=mask_BT,
        response_tokens_BR=rollout.generation.tokens_BR,
        response_mask_BR=mask_BR,
        value_mask_BR=value_mask_BR,
        old_logprobs_BR=rollout.logprobs_BR,
        old_values_BR=values_BR,
        advantages_BR=advantages_BR.masked_fill(~mask_BR, 0.0),
        returns_BR=returns_BR,
    )
    return batch, metrics


def _rollout_metrics(
    valued: ValuedRollout, kl_BR: Tensor, scores_B: Tensor, kl_coef: float
) -> dict[str, Metric]:
    rollout, mask_BR = valued.rollout, valued.rollout.generation.response_mask_BR
    kl_B = kl_BR.sum(1)
    return {
        "objective/kl": Mean.of(kl_B),
        "objective/kl_per_token": Mean.of(kl_BR, mask_BR),
        "objective/scores": Mean.of(rollout.scores_B),
        "objective/scores_penalised": Mean.of(scores_B),
        "objective/non_score_reward": Mean.of(-kl_coef * kl_B),
        "objective/rlhf_reward": Mean.of(scores_B - kl_coef * kl_B),
        "objective/entropy": Mean.of(-rollout.logprobs_BR.masked_fill(~mask_BR, 0.0).sum(1)),
        "val/eos_rate": Mean.of(rollout.has_eos_B),
        "val/response_length": Mean.of(mask_BR.sum(1)),
    }


def explained_variance(values_BR: Tensor, returns_BR: Tensor, mask_BR: Tensor) -> dict[str, Metric]:
    """`1 - var(returns - values) / var(returns)` over the value mask, before training."""
    residual = float(masked_moments(returns_BR - values_BR, mask_BR).var())
    total = float(masked_moments(returns_BR, mask_BR).var())
    return {"val/explained_variance": Mean(1.0 - residual / max(total, 1e-12), 1.0)}


def counts(batch: PPOBatch) -> dict[str, float]:
    """Policy terms count response tokens, value terms the extra slot too (details G2, G3)."""
    return {
        "policy_avg": float(batch.response_mask_BR.sum()),
        "value_avg": float(batch.value_mask_BR.sum()),
    }


def objective(
    logprobs_BR: Tensor, entropy_BR: Tensor, values_BR: Tensor, batch: PPOBatch, cfg: PPOConfig
) -> Objective:
    """Clipped policy loss plus `vf_coef` times the clipped value loss (details G2, G3, G5)."""
    mask_BR, value_mask_BR = batch.response_mask_BR, batch.value_mask_BR
    policy = ppo_policy_loss(
        logprobs_BR, batch.old_logprobs_BR, batch.advantages_BR, mask_BR, clip=cfg.cliprange
    )
    value = ppo_value_loss(
        values_BR, batch.old_values_BR, batch.returns_BR, value_mask_BR, clip=cfg.cliprange_value
    )
    terms = {
        "policy_avg": (1.0, Mean(policy.loss_BR.sum(), mask_BR.sum())),
        "value_avg": (cfg.vf_coef, Mean(value.loss_BR.sum(), value_mask_BR.sum())),
    }
    metrics = {
        "policy/approxkl_avg": Mean.of(policy.approxkl_BR, mask_BR),
        "policy/clipfrac_avg": Mean.of(policy.clipped_BR, mask_BR),
        "policy/entropy_avg": Mean.of(entropy_BR, mask_BR),
        "val/clipfrac_avg": Mean.of(value.clipped_BR, value_mask_BR),
        "val/ratio": Mean.of(policy.ratio_BR, mask_BR),
    }
    return Objective(terms=terms, metrics=metrics)
