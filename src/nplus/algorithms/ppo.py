"""PPO: from a valued rollout to a training batch, and from new log-probs and values to a loss."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from nplus.batches import Objective, PPOBatch, ValuedRollout
from nplus.config import PPOConfig
from nplus.metrics import Mean, Metric
from nplus.ops.kl import kl_per_token
from nplus.ops.losses import ppo_policy_loss, ppo_value_loss
from nplus.ops.masking import masked_moments, whiten
from nplus.ops.returns import gae, missing_eos, token_rewards


class KLController(torch.nn.Module):
    """The KL coefficient beta: fixed as in the paper (Detail F3), or steered to a target.

    Steered as in Ziegler et al. 2019, section 2.2: after n episodes of mean KL k, beta grows by the
    factor `1 + clip(k / target - 1, -0.2, 0.2) * n / horizon`. A module, so that checkpoints hold
    it.
    """

    coefficient: Tensor

    def __init__(self, coefficient: float, *, target: float | None, horizon: int) -> None:
        super().__init__()
        self.target, self.horizon = target, horizon
        self.register_buffer("coefficient", torch.tensor(coefficient, dtype=torch.float64))

    @property
    def value(self) -> float:
        return float(self.coefficient)

    def observe(self, kl: float, episodes: int) -> None:
        """Take in the mean KL, in nats a response, of `episodes` responses.

        One that is not finite tells nothing, and would stay in the coefficient for good.
        """
        if self.target is not None and math.isfinite(kl):
            error = min(max(kl / self.target - 1.0, -0.2), 0.2)
            self.coefficient *= 1.0 + error * episodes / self.horizon


def _whiten(
    values_BR: Tensor, mask_BR: Tensor, cfg: PPOConfig, parts: int, *, shift_mean: bool
) -> Tensor:
    """Detail F7: with the statistics of all rows, or each of `parts` processes' own with its."""
    pieces = parts if cfg.whitening_scope == "rank" else 1
    rows = zip(values_BR.tensor_split(pieces), mask_BR.tensor_split(pieces), strict=True)
    return torch.cat(
        [
            whiten(
                some_BR,
                of_BR,
                masked_moments(some_BR, of_BR),
                unbiased=cfg.whitening_variance == "unbiased",
                shift_mean=shift_mean,
                eps_mode=cfg.whitening_eps,
            )
            for some_BR, of_BR in rows
        ]
    )


def credit(
    valued: ValuedRollout,
    cfg: PPOConfig,
    *,
    kl_coef: float | None = None,
    parts: int = 1,
) -> tuple[PPOBatch, dict[str, Metric]]:
    """Scores, KL and values become advantages and returns (details E8, F2 to F7).

    `valued` is the rollout of all processes, in the prompts' order; `parts` is how many they are
    (Detail F7). `kl_coef` replaces `cfg.kl_coef` where a controller steers it. With
    `whitening_scope=minibatch` the advantages are still raw: `whitened` comes later.
    """
    rollout, mask_BR = valued.rollout, valued.rollout.generation.response_mask_BR
    kl_coef = cfg.kl_coef if kl_coef is None else kl_coef
    kl_BR = kl_per_token(
        rollout.logprobs_BR,
        rollout.ref_logprobs_BR,
        mask_BR,
        estimator=cfg.kl_estimator,
        clamp=cfg.kl_clamp,
    )
    scores_B = rollout.scores_B
    if cfg.missing_eos_penalty is not None:
        scores_B = missing_eos(
            scores_B, rollout.has_eos_B, penalty=cfg.missing_eos_penalty, mode=cfg.missing_eos
        )
    rewards_BR = token_rewards(scores_B, kl_BR, mask_BR, kl_coef=kl_coef, score_step=cfg.score_step)
    value_mask_BR = valued.value_mask_BR if cfg.value_mask == "extra_slot" else mask_BR
    if cfg.whiten_rewards:
        # Detail F6 whitens where rewards are: after EOS too if the score lands there.
        paid_BR = valued.value_mask_BR if cfg.score_step == "after_eos" else mask_BR
        rewards_BR = _whiten(rewards_BR, paid_BR, cfg, parts, shift_mean=False)
    values_BR = valued.values_BR.masked_fill(~value_mask_BR, 0.0)
    advantages_BR, returns_BR = gae(rewards_BR, values_BR, gamma=cfg.gamma, lam=cfg.lam)
    metrics = _rollout_metrics(valued, kl_BR, scores_B, kl_coef, cfg.sampling.response_length)
    metrics |= explained_variance(values_BR, returns_BR, value_mask_BR)
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
    if cfg.whiten_advantages and cfg.whitening_scope != "minibatch":
        batch = whitened(batch, cfg, parts)
    return batch, metrics


def whitened(batch: PPOBatch, cfg: PPOConfig, parts: int = 1) -> PPOBatch:
    """The batch with its advantages whitened over itself (Detail F7).

    The paper whitens a process's rollout batch, profile `nplus` that of all processes, OpenAI 2019
    each minibatch of the update.
    """
    shift = not cfg.whitening_keeps_mean
    white_BR = _whiten(batch.advantages_BR, batch.response_mask_BR, cfg, parts, shift_mean=shift)
    return replace(batch, advantages_BR=white_BR)


def _rollout_metrics(
    valued: ValuedRollout, kl_BR: Tensor, scores_B: Tensor, kl_coef: float, slots: int
) -> dict[str, Metric]:
    """`slots` is the response length: the paper's entropy counts each slot after EOS as -1 (Q5)."""
    rollout, mask_BR = valued.rollout, valued.rollout.generation.response_mask_BR
    kl_B = kl_BR.sum(1)
    surprise_B = -rollout.logprobs_BR.masked_fill(~mask_BR, 0.0).sum(1)
    return {
        "objective/kl": Mean.of(kl_B),
        "objective/kl_per_token": Mean.of(kl_BR, mask_BR),
        "objective/kl_stderr": Mean(_std(kl_B) / max(len(kl_B), 1) ** 0.5, 1.0),
        "objective/scores": Mean.of(rollout.scores_B),
        "objective/scores_std": Mean(_std(rollout.scores_B), 1.0),
        "objective/scores_penalised": Mean.of(scores_B),
        "objective/non_score_reward": Mean.of(-kl_coef * kl_B),
        "objective/rlhf_reward": Mean.of(scores_B - kl_coef * kl_B),
        "objective/entropy": Mean.of(surprise_B),
        "objective/entropy_reference": Mean.of(surprise_B - (slots - mask_BR.sum(1))),
        "val/eos_rate": Mean.of(rollout.has_eos_B),
        "val/response_length": Mean.of(mask_BR.sum(1)),
    }


def _std(values_B: Tensor) -> float:
    """Unbiased, over the sequences of this process; 0 for a single one."""
    return float(values_B.double().std()) if len(values_B) > 1 else 0.0


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
    policy = policy_objective(logprobs_BR, entropy_BR, batch, cfg)
    value = value_objective(values_BR, batch, cfg)
    return Objective({**policy.terms, **value.terms}, {**policy.metrics, **value.metrics})


def policy_objective(
    logprobs_BR: Tensor, entropy_BR: Tensor, batch: PPOBatch, cfg: PPOConfig
) -> Objective:
    """The clipped policy loss (details G2, G5).

    Metrics named `*_reference` average over every slot of the response length, masked ones
    included, as the paper's code does (Q5); the others over the mask.
    """
    mask_BR = batch.response_mask_BR
    policy = ppo_policy_loss(
        logprobs_BR,
        batch.old_logprobs_BR,
        batch.advantages_BR,
        mask_BR,
        clip=cfg.cliprange,
        clip_high=cfg.cliprange_high,
        dual_clip=cfg.dual_clip,
        log_ratio_clamp=cfg.log_ratio_clamp,
    )
    approxkl, clipped = Mean.of(policy.approxkl_BR, mask_BR), Mean.of(policy.clipped_BR, mask_BR)
    ratio = Mean.of(policy.ratio_BR, mask_BR)
    slots = float(len(batch) * cfg.sampling.response_length)
    return Objective(
        terms={"policy_avg": (1.0, Mean(policy.loss_BR.sum(), mask_BR.sum()))},
        metrics={
            "policy/approxkl_avg": approxkl,
            "policy/approxkl_avg_reference": Mean(approxkl.sum, slots),
            "policy/clipfrac_avg": clipped,
            "policy/clipfrac_avg_reference": Mean(clipped.sum, slots),
            "policy/entropy_avg": Mean.of(entropy_BR, mask_BR),
            "val/ratio": ratio,
            "val/ratio_reference": Mean(ratio.sum + slots - mask_BR.sum(), slots),
        },
    )


def value_objective(values_BR: Tensor, batch: PPOBatch, cfg: PPOConfig) -> Objective:
    """`vf_coef` times the clipped value loss (Detail G3)."""
    mask_BR = batch.value_mask_BR
    value = ppo_value_loss(
        values_BR, batch.old_values_BR, batch.returns_BR, mask_BR, clip=cfg.cliprange_value
    )
    return Objective(
        terms={"value_avg": (cfg.vf_coef, Mean(value.loss_BR.sum(), mask_BR.sum()))},
        metrics={"val/clipfrac_avg": Mean.of(value.clipped_BR, mask_BR)},
    )
