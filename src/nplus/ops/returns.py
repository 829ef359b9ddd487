"""From scores and KL to rewards per token, advantages and returns."""

from __future__ import annotations

import torch
from torch import Tensor

from nplus.ops.responses import last_index_B

SCORE_STEPS: dict[str, int] = {"after_eos": 1, "eos": 0}
"""Detail F4: steps between the last real token and the one that receives the score."""

MISSING_EOS_MODES = ("replace", "subtract")


def missing_eos(
    scores_B: Tensor, has_eos_B: Tensor, *, penalty: float, mode: str = "replace"
) -> Tensor:
    """[B] scores after the EOS trick; rows with an EOS keep theirs (Detail E8).

    `penalty` is a magnitude, 1.0 in the paper. "replace": a row without EOS scores exactly
    `-penalty`, whatever its raw score (the paper); "subtract": its score minus `penalty` (TRL).
    Raises ValueError for another mode.
    """
    if mode not in MISSING_EOS_MODES:
        raise ValueError(f"unknown mode {mode!r}; known: {MISSING_EOS_MODES}")
    replaced_B = torch.full_like(scores_B, -penalty)
    penalised_B = replaced_B if mode == "replace" else scores_B - penalty
    return torch.where(has_eos_B, scores_B, penalised_B)


def token_rewards(
    scores_B: Tensor,
    kl_BR: Tensor,
    response_mask_BR: Tensor,
    *,
    kl_coef: float,
    score_step: str = "after_eos",
) -> Tensor:
    """[B, R]: `-kl_coef * kl` on every real token, plus the score on one step of each row.

    Detail F4: "after_eos" puts the score on step s+1, where V starts as the reward model's
    score, so its delta starts at 0 and credit flows back to the EOS; on s when s+1 would be R.
    "eos" puts it on s; it is consistent only with values masked by the response mask.
    Raises ValueError for another score step.
    """
    if score_step not in SCORE_STEPS:
        raise ValueError(f"unknown score step {score_step!r}; known: {sorted(SCORE_STEPS)}")
    width = kl_BR.shape[-1]
    step_B = (last_index_B(response_mask_BR) + SCORE_STEPS[score_step]).clamp(max=width - 1)
    lands_BR = torch.arange(width, device=kl_BR.device) == step_B.unsqueeze(-1)
    penalty_BR = (-kl_coef * kl_BR).masked_fill(~response_mask_BR, 0.0)
    return torch.where(lands_BR, penalty_BR + scores_B.unsqueeze(-1), penalty_BR)


def gae(
    rewards_BR: Tensor, values_BR: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: `(advantages_BR, returns_BR)` (Detail F5).

    `delta_t = r_t + gamma * V_{t+1} - V_t`, `A_t = delta_t + gamma * lam * A_{t+1}`, V past the
    last column is 0 and `returns = A + V`, taken before any whitening. Both inputs are 0 outside
    the value mask, which makes the tail 0. Source: Schulman et al. 2015, equation 16.
    """
    next_values_BR = torch.cat([values_BR[:, 1:], torch.zeros_like(values_BR[:, :1])], dim=-1)
    deltas_BR = rewards_BR + gamma * next_values_BR - values_BR
    running_B = torch.zeros_like(deltas_BR[:, 0])
    reversed_advantages: list[Tensor] = []
    for delta_B in reversed(deltas_BR.unbind(-1)):
        running_B = delta_B + gamma * lam * running_B
        reversed_advantages.append(running_B)
    advantages_BR = torch.stack(reversed_advantages[::-1], dim=-1)
    return advantages_BR, advantages_BR + values_BR
