"""Losses per token and of rewards. Whoever calls them selects, sums and divides once (rule 6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nplus.ops.logprobs import gather_logprobs


class PolicyLoss(NamedTuple):
    """All [B, R]; outside the response mask loss and approxkl are 0, ratio 1, clipped False."""

    loss_BR: Tensor
    clipped_BR: Tensor
    ratio_BR: Tensor
    approxkl_BR: Tensor


class ValueLoss(NamedTuple):
    """Both [B, R]; outside the value mask loss is 0 and clipped False."""

    loss_BR: Tensor
    clipped_BR: Tensor


class PairLoss(NamedTuple):
    """All [N]; `correct_N` is bool and strict: a tie is not correct."""

    loss_N: Tensor
    correct_N: Tensor
    chosen_rewards_N: Tensor
    rejected_rewards_N: Tensor


def ppo_policy_loss(
    logprobs_BR: Tensor,
    old_logprobs_BR: Tensor,
    advantages_BR: Tensor,
    mask_BR: Tensor,
    *,
    clip: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    log_ratio_clamp: float | None = None,
) -> PolicyLoss:
    """`max(-A * ratio, -A * clamp(ratio, 1 - clip, 1 + clip_high))` per token (Detail G2).

    `clip_high` defaults to `clip`. `dual_clip` (above 1, off in the paper) bounds the loss of a
    negative advantage to `-A * dual_clip`; `log_ratio_clamp` (off in the paper) bounds the log
    ratio before it is exponentiated. `mask_BR` is the response mask; log-probs outside it may hold
    anything. `approxkl_BR` is `(new - old)^2 / 2` (Detail G5). Source: Schulman et al. 2017,
    equation 7.
    """
    log_ratio_BR = (logprobs_BR - old_logprobs_BR).masked_fill(~mask_BR, 0.0)
    if log_ratio_clamp is not None:
        log_ratio_BR = log_ratio_BR.clamp(-log_ratio_clamp, log_ratio_clamp)
    advantages_BR = advantages_BR.masked_fill(~mask_BR, 0.0)
    ratio_BR = log_ratio_BR.exp()
    high = clip if clip_high is None else clip_high
    plain_BR = -advantages_BR * ratio_BR
    clamped_BR = -advantages_BR * ratio_BR.clamp(1.0 - clip, 1.0 + high)
    loss_BR = torch.maximum(plain_BR, clamped_BR)
    if dual_clip is not None:
        bounded_BR = torch.minimum(loss_BR, -advantages_BR * dual_clip)
        loss_BR = torch.where(advantages_BR < 0, bounded_BR, loss_BR)
    return PolicyLoss(
        loss_BR=loss_BR,
        clipped_BR=(clamped_BR > plain_BR).detach(),
        ratio_BR=ratio_BR.detach(),
        approxkl_BR=0.5 * log_ratio_BR.detach().square(),
    )


def ppo_value_loss(
    values_BR: Tensor,
    old_values_BR: Tensor,
    returns_BR: Tensor,
    mask_BR: Tensor,
    *,
    clip: float | None,
) -> ValueLoss:
    """`max((v - ret)^2, (v_clipped - ret)^2) / 2` per step, v kept within old +- clip (Detail G3).

    `mask_BR` is the value mask (j <= s+1), not the response mask. `clip=None` switches the
    clipping off.
    """
    error_BR = (values_BR - returns_BR).masked_fill(~mask_BR, 0.0)
    plain_BR = error_BR.square()
    if clip is None:
        return ValueLoss(0.5 * plain_BR, torch.zeros_like(mask_BR))
    near_old_BR = old_values_BR + (values_BR - old_values_BR).clamp(-clip, clip)
    clamped_BR = (near_old_BR - returns_BR).masked_fill(~mask_BR, 0.0).square()
    return ValueLoss(
        loss_BR=0.5 * torch.maximum(plain_BR, clamped_BR),
        clipped_BR=(clamped_BR > plain_BR).detach(),
    )


def bradley_terry(chosen_N: Tensor, rejected_N: Tensor, margin_N: Tensor | None = None) -> PairLoss:
    """`-log sigmoid(chosen - rejected - margin)` per pair of rewards (Detail D3).

    Equal rewards give ln 2 and count as wrong. The margin (Llama 2, equation 2) enters the loss,
    not the accuracy.
    """
    difference_N = chosen_N - rejected_N
    shifted_N = difference_N if margin_N is None else difference_N - margin_N
    return PairLoss(-F.logsigmoid(shifted_N), difference_N > 0, chosen_N, rejected_N)


def target_mask(mask_BT: Tensor, loss_mask_BT: Tensor) -> Tensor:
    """[B, T] bool: tokens that are trained on *and* predicted from a real token.

    Detail C2: `loss_mask_BT` is the mask of real tokens (prompt included) in the paper. Column 0
    and a first token after left padding have no real predecessor and drop out (Q8).
    """
    predecessor_BT = torch.cat([torch.zeros_like(mask_BT[:, :1]), mask_BT[:, :-1]], dim=-1)
    return mask_BT & loss_mask_BT & predecessor_BT


def cross_entropy(logits_BTV: Tensor, tokens_BT: Tensor, target_mask_BT: Tensor) -> Tensor:
    """[B, T] float32 nats: NLL of each target token, 0 elsewhere (Detail C2).

    Entry t scores `tokens_BT[:, t]` with the logits of column t-1; column 0 is always 0. The
    number of terms is `target_mask_BT.sum()` of a mask made by `target_mask`.
    """
    # Detail A7, Q11: PAD may lie beyond the logits' vocabulary, so no masked id is looked up.
    safe_BT = tokens_BT.masked_fill(~target_mask_BT, 0)
    # The targets shift, not the logits: sliced logits would cost one more [B, T, V] of zeros.
    next_BT = F.pad(safe_BT[:, 1:], (0, 1))
    nll_BT = F.pad(-gather_logprobs(logits_BTV, next_BT)[:, :-1], (1, 0))
    return nll_BT.masked_fill(~target_mask_BT, 0.0)
