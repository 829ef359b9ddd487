"""Credit from a prompt's own responses: baselines, deviations, shaped scores; without a critic."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def leave_one_out(rewards_QG: Tensor, greedy_QG: Tensor) -> Tensor:
    """Mean of the group's other rewards: unbiased, since it does not know the response it is for.

    Source: Ahmadian et al. 2024, section 2.1.4. Raises ValueError for groups of one.
    """
    others = rewards_QG.shape[1] - 1
    if not others:
        raise ValueError("leave_one_out needs groups of two or more")
    return (rewards_QG.sum(1, keepdim=True) - rewards_QG) / others


def group_mean(rewards_QG: Tensor, greedy_QG: Tensor) -> Tensor:
    """Mean of the group, the response itself included (Shao et al. 2024)."""
    return rewards_QG.mean(1, keepdim=True).expand_as(rewards_QG)


def batch_mean(rewards_QG: Tensor, greedy_QG: Tensor) -> Tensor:
    """Mean of all rewards."""
    return rewards_QG.mean().expand_as(rewards_QG)


def greedy(rewards_QG: Tensor, greedy_QG: Tensor) -> Tensor:
    """What the prompt's greedy response is worth (Li et al. 2023, equation 6)."""
    return greedy_QG


def none(rewards_QG: Tensor, greedy_QG: Tensor) -> Tensor:
    """Zero."""
    return torch.zeros_like(rewards_QG)


BASELINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "leave_one_out": leave_one_out,
    "group_mean": group_mean,
    "batch_mean": batch_mean,
    "greedy": greedy,
    "none": none,
}
"""[Q, G] from rewards and the greedy responses' scores, both [Q, G]."""


def _group_std(rewards_QG: Tensor) -> Tensor:
    return rewards_QG.std(1, keepdim=True)


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.ones_like,
    "group_std": _group_std,
    "batch_std": torch.std,
}
"""What broadcasts to [Q, G]; deviations are unbiased."""


def group_advantages(
    rewards_QG: Tensor,
    greedy_QG: Tensor,
    *,
    baseline: str,
    scale: str = "none",
    eps: float = 1e-4,
) -> Tensor:
    """[Q, G] `(reward - baseline) / (deviation + eps)`; without a scale nothing divides.

    `greedy_QG` are the scores of the prompts' greedy responses, read by that baseline alone. Where
    all rewards of a group are equal, its advantages under a group's baseline are exactly 0. Raises
    ValueError for an unknown baseline or scale.
    """
    for name, known in ((baseline, BASELINES), (scale, SCALES)):
        if name not in known:
            raise ValueError(f"unknown baseline or scale {name!r}; known: {sorted(known)}")
    gain_QG = rewards_QG - BASELINES[baseline](rewards_QG, greedy_QG)
    if scale != "none":
        gain_QG = gain_QG / (SCALES[scale](rewards_QG) + eps)
    if baseline in ("group_mean", "leave_one_out"):
        # A mean of equal numbers may miss them by an ulp, which a deviation near 0 magnifies.
        gain_QG = gain_QG.masked_fill(all_equal(rewards_QG).unsqueeze(1), 0.0)
    return gain_QG


def all_equal(rewards_QG: Tensor) -> Tensor:
    """[Q] bool: groups whose rewards are all the same, which teach a group's baseline nothing;
    False for groups of one."""
    if rewards_QG.shape[1] == 1:
        return torch.zeros_like(rewards_QG[:, 0], dtype=torch.bool)
    return torch.eq(rewards_QG.amax(1), rewards_QG.amin(1))


def best_and_worst(scores_QG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`best_Q, worst_Q, apart_Q`: the first highest and the first lowest of each group, and whether
    they differ at all."""
    best_Q, worst_Q = scores_QG.argmax(1), scores_QG.argmin(1)
    highest_Q1 = scores_QG.gather(1, best_Q.unsqueeze(1))
    lowest_Q1 = scores_QG.gather(1, worst_Q.unsqueeze(1))
    return best_Q, worst_Q, torch.ne(highest_Q1, lowest_Q1).squeeze(1)


def standardised(values_B: Tensor, *, eps: float = 1e-4) -> Tensor:
    """[B] less the mean, over the unbiased deviation plus `eps`; 0 for a single value."""
    if len(values_B) < 2:
        return torch.zeros_like(values_B)
    return (values_B - values_B.mean()) / (values_B.std() + eps)


def overlong(lengths_B: Tensor, *, limit: int, buffer: float) -> Tensor:
    """[B] in [-1, 0]: 0 up to `limit - buffer` tokens, then linearly down to -1 at `limit`.

    Source: Yu et al. 2025, equation 13.
    """
    return ((limit - buffer - lengths_B) / buffer).clamp(-1.0, 0.0)


def to_go(values_BR: Tensor) -> Tensor:
    """[B, R] each entry with all that follow it in its row, undiscounted."""
    return values_BR.flip(-1).cumsum(-1).flip(-1)


def preference(scores_B: Tensor, rival_scores_B: Tensor) -> Tensor:
    """[B] in [-1/2, 1/2]: Bradley-Terry probability of being preferred to the rival, less 1/2."""
    return torch.sigmoid(scores_B - rival_scores_B) - 0.5
