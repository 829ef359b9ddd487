"""Policy gradients without a critic: from groups of scored responses to a batch, and to a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from nplus.batches import GroupRollout, Objective, ReinforceBatch, Rollout
from nplus.config import GroupConfig, ReinforceConfig
from nplus.metrics import Mean, Metric, Sum
from nplus.ops.groups import (
    all_equal,
    group_advantages,
    overlong,
    preference,
    standardised,
    to_go,
)
from nplus.ops.kl import kl_per_token
from nplus.ops.losses import ppo_policy_loss
from nplus.ops.masking import masked_moments, whiten
from nplus.ops.policy import aggregated, aggregation_count, importance_weights, log_ratios
from nplus.ops.returns import missing_eos


def shaped(scores_B: Tensor, has_eos_B: Tensor, cfg: GroupConfig) -> Tensor:
    """[B] scores after the EOS trick (Detail E8)."""
    if cfg.missing_eos_penalty is None:
        return scores_B
    return missing_eos(scores_B, has_eos_B, penalty=cfg.missing_eos_penalty, mode=cfg.missing_eos)


def signals(grouped: GroupRollout, cfg: ReinforceConfig) -> Tensor:
    """[B] what is maximised, before any price of KL."""
    rollout = grouped.rollout
    scores_B = shaped(rollout.scores_B, rollout.has_eos_B, cfg)
    if cfg.overlong_share is not None:
        limit = cfg.sampling.response_length
        lengths_B = rollout.generation.response_mask_BR.sum(1).to(scores_B)
        late_B = overlong(lengths_B, limit=limit, buffer=cfg.overlong_share * limit)
        scores_B = scores_B + cfg.overlong_penalty * late_B
    if cfg.signal == "score":
        return scores_B
    return preference(scores_B, shaped(grouped.rival_scores_B, grouped.rival_has_eos_B, cfg))


def equal_groups(signals_B: Tensor, cfg: ReinforceConfig) -> Tensor:
    """[Q] whether all signals of a prompt are equal, so that none is better than another."""
    return all_equal(signals_B.view(-1, cfg.num_generations))


def missing(grouped: GroupRollout, cfg: ReinforceConfig) -> int:
    """Groups that the batch of an update lacks, where those of equals are left out."""
    return cfg.prompts - int((~equal_groups(signals(grouped, cfg), cfg)).sum())


def credit(
    grouped: GroupRollout, cfg: ReinforceConfig, *, kl_coef: float | None = None
) -> tuple[ReinforceBatch, dict[str, Metric]]:
    """Groups of scored responses become advantages; the metrics tell what was left out.

    Rows are [Q, G], those of a prompt side by side, of all processes. `kl_coef` replaces
    `cfg.kl_coef` where a controller steers it. With dynamic sampling the batch has fewer rows than
    the rollout, and may have none.
    """
    rollout, mask_BR = grouped.rollout, grouped.rollout.generation.response_mask_BR
    kl_coef = cfg.kl_coef if kl_coef is None else kl_coef
    kl_BR = kl_per_token(
        rollout.logprobs_BR, rollout.ref_logprobs_BR, mask_BR, estimator=cfg.kl_estimator
    )
    signals_B = signals(grouped, cfg)
    rewards_B = signals_B
    if cfg.kl_in == "reward" and cfg.kl_credit == "sequence":
        rewards_B = signals_B - kl_coef * kl_BR.sum(1)
    groups = (-1, cfg.num_generations)
    greedy_B = shaped(grouped.rival_scores_B, grouped.rival_has_eos_B, cfg)
    advantages_B = group_advantages(
        rewards_B.view(groups),
        greedy_B.view(groups),
        baseline=cfg.baseline,
        scale=cfg.scale,
        eps=cfg.scale_eps,
    ).flatten()
    equal_Q = equal_groups(signals_B, cfg)
    kept_B = torch.ones_like(rollout.has_eos_B)
    if cfg.dynamic_sampling:
        kept_B = ~equal_Q.repeat_interleave(cfg.num_generations)
    advantages_BR = _per_token(advantages_B, kl_BR, mask_BR, kept_B, cfg, kl_coef)
    metrics = rollout_metrics(grouped, signals_B)
    kl_B = kl_per_token(rollout.logprobs_BR, rollout.ref_logprobs_BR, mask_BR).sum(1)
    metrics |= {
        "objective/rival_scores": Mean.of(grouped.rival_scores_B),
        "objective/non_score_reward": Mean.of(-kl_coef * kl_B),
        "objective/rlhf_reward": Mean.of(signals_B - kl_coef * kl_B),
        "objective/advantage_size": Mean.of(advantages_BR[kept_B].abs(), mask_BR[kept_B])
        if bool(kept_B.any())
        else Mean(0.0, 1.0),
        "groups/score_std": Mean.of(_group_std(signals_B.view(groups))),
        "groups/equal": Mean.of(equal_Q),
        "groups/dropped": Sum(float(equal_Q.sum()) if cfg.dynamic_sampling else 0.0),
    }
    if cfg.dynamic_sampling_max > 1:
        metrics["groups/drawn"] = Sum(float(len(equal_Q)))
    if cfg.max_staleness and cfg.importance != "none":
        advantages_BR, told = corrected(advantages_BR, rollout, cfg)
        metrics |= told
    in_loss_BR = mask_BR
    if cfg.mask_truncated_completions:
        in_loss_BR = mask_BR & rollout.has_eos_B.unsqueeze(1)
    tokens_BT, mask_BT = rollout.generation.sequences()
    batch = ReinforceBatch(
        tokens_BT=tokens_BT,
        mask_BT=mask_BT,
        response_tokens_BR=rollout.generation.tokens_BR,
        response_mask_BR=in_loss_BR,
        old_logprobs_BR=rollout.logprobs_BR,
        ref_logprobs_BR=rollout.ref_logprobs_BR,
        advantages_BR=advantages_BR,
        kl_coef_B=torch.full_like(rewards_B, kl_coef, dtype=torch.float64),
    )
    return (batch if bool(kept_B.all()) else batch.rows(kept_B)), metrics


def corrected(
    advantages_BR: Tensor, rollout: Rollout, cfg: ReinforceConfig
) -> tuple[Tensor, dict[str, Metric]]:
    """The advantages times the bounded importance weights of the policy before the update over the
    one that sampled.

    The clip is around the former, as in decoupled PPO (Hilton et al. 2021, 2110.00641).
    The clipped loss of w * A is w times that of A, for w >= 0.
    """
    generation = rollout.generation
    mask_BR = generation.response_mask_BR
    level_BR = log_ratios(rollout.logprobs_BR, generation.logprobs_BR, mask_BR, level=cfg.ratio)
    weights_BR, bounded_BR = importance_weights(
        level_BR, mask_BR, bound=cfg.importance, cap=cfg.importance_cap
    )
    return advantages_BR * weights_BR, {
        "val/importance": Mean.of(weights_BR, mask_BR),
        "val/importance_bounded": Mean.of(bounded_BR, mask_BR),
    }


def _per_token(
    advantages_B: Tensor,
    kl_BR: Tensor,
    mask_BR: Tensor,
    kept_B: Tensor,
    cfg: ReinforceConfig,
    kl_coef: float,
) -> Tensor:
    """[B, R] the response's advantage at each of its tokens, with KL to go and whitening if asked.

    Rows that are not kept count in no mean.
    """
    if cfg.whitening == "sequence":
        advantages_B = advantages_B.masked_scatter(
            kept_B, standardised(advantages_B[kept_B], eps=cfg.scale_eps)
        )
    advantages_BR = advantages_B.unsqueeze(1).expand_as(kl_BR).masked_fill(~mask_BR, 0.0)
    if cfg.kl_in == "reward" and cfg.kl_credit == "to_go":
        advantages_BR = (advantages_BR - kl_coef * to_go(kl_BR)).masked_fill(~mask_BR, 0.0)
    if cfg.whitening == "token":
        counted_BR = mask_BR & kept_B.unsqueeze(1)
        moments = masked_moments(advantages_BR, counted_BR)
        advantages_BR = whiten(advantages_BR, counted_BR, moments)
    return advantages_BR


def _group_std(signals_QG: Tensor) -> Tensor:
    """[Q] unbiased; 0 for groups of one."""
    if signals_QG.shape[1] == 1:
        return torch.zeros_like(signals_QG[:, 0])
    return signals_QG.std(1)


def rollout_metrics(grouped: GroupRollout, signals_B: Tensor) -> dict[str, Metric]:
    """Under PPO's names what means the same; KL is by k1, whatever is priced."""
    rollout, mask_BR = grouped.rollout, grouped.rollout.generation.response_mask_BR
    kl_BR = kl_per_token(rollout.logprobs_BR, rollout.ref_logprobs_BR, mask_BR)
    kl_B, scores_B = kl_BR.sum(1), rollout.scores_B

    def std(values_B: Tensor) -> float:
        return float(values_B.double().std()) if len(values_B) > 1 else 0.0

    return {
        "objective/kl": Mean.of(kl_B),
        "objective/kl_per_token": Mean.of(kl_BR, mask_BR),
        "objective/kl_stderr": Mean(std(kl_B) / max(len(kl_B), 1) ** 0.5, 1.0),
        "objective/scores": Mean.of(scores_B),
        "objective/scores_std": Mean(std(scores_B), 1.0),
        "objective/signal": Mean.of(signals_B),
        "objective/entropy": Mean.of(-rollout.logprobs_BR.masked_fill(~mask_BR, 0.0).sum(1)),
        "val/eos_rate": Mean.of(rollout.has_eos_B),
        "val/response_length": Mean.of(mask_BR.sum(1)),
    }


def _priced(cfg: ReinforceConfig) -> bool:
    """Whether KL stands in the loss."""
    return cfg.kl_in == "loss" and cfg.kl_coef > 0


def counts(batch: ReinforceBatch, cfg: ReinforceConfig) -> dict[str, float]:
    """What each term is divided by, from the masks alone."""
    count = aggregation_count(
        batch.response_mask_BR, how=cfg.aggregation, width=cfg.sampling.response_length
    )
    return dict.fromkeys(("policy_avg", "kl_avg") if _priced(cfg) else ("policy_avg",), count)


def objective(
    logprobs_BR: Tensor, entropy_BR: Tensor, batch: ReinforceBatch, cfg: ReinforceConfig
) -> Objective:
    """The clipped loss at the configured level of ratio, and the price of KL where it is in the
    loss.

    At ratio 1 the gradient of the first is minus that of `sum_t advantage_t * log p_t`, divided as
    the aggregation says. KL has the gradient of its estimator: k2 `(log p - log p_ref) d log p`,
    k3 `(1 - p_ref / p) d log p`; with `use_bias_correction_kl` that of ratio times estimate.
    """
    mask_BR = batch.response_mask_BR
    level_BR = log_ratios(logprobs_BR, batch.old_logprobs_BR, mask_BR, level=cfg.ratio)
    loss = ppo_policy_loss(
        level_BR,
        torch.zeros_like(level_BR),
        batch.advantages_BR,
        mask_BR,
        clip=cfg.cliprange,
        clip_high=cfg.cliprange_high,
    )
    count = counts(batch, cfg)["policy_avg"]
    terms = {
        "policy_avg": (1.0, Mean(aggregated(loss.loss_BR, mask_BR, how=cfg.aggregation), count))
    }
    if _priced(cfg):
        kl_BR = kl_per_token(
            logprobs_BR, batch.ref_logprobs_BR, mask_BR, estimator=cfg.kl_estimator
        )
        if cfg.use_bias_correction_kl:
            kl_BR = kl_BR * level_BR.exp()
        price = float(batch.kl_coef_B[0])
        terms["kl_avg"] = (price, Mean(aggregated(kl_BR, mask_BR, how=cfg.aggregation), count))
    moved_BR = log_ratios(logprobs_BR.detach(), batch.old_logprobs_BR, mask_BR)
    return Objective(
        terms=terms,
        metrics={
            "policy/approxkl_avg": Mean.of(0.5 * moved_BR.square(), mask_BR),
            "policy/clipfrac_avg": Mean.of(loss.clipped_BR, mask_BR),
            "policy/entropy_avg": Mean.of(entropy_BR, mask_BR),
            "val/ratio": Mean.of(loss.ratio_BR, mask_BR),
        },
    )
