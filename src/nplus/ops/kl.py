"""Estimators of KL(policy || reference) from tokens sampled by the policy (Detail F3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def k1(log_ratio: Tensor) -> Tensor:
    """`log p - log p_ref`: unbiased, may be negative. The paper's choice (Detail F3)."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """`(log p - log p_ref)^2 / 2`: biased, never negative."""
    return 0.5 * log_ratio.square()


def k3(log_ratio: Tensor) -> Tensor:
    """`p_ref/p - 1 - log(p_ref/p)`: unbiased, never negative (Schulman, "Approximating KL")."""
    return torch.expm1(-log_ratio) + log_ratio


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def kl_per_token(
    logprobs_BR: Tensor,
    ref_logprobs_BR: Tensor,
    mask_BR: Tensor,
    *,
    estimator: str = "k1",
    clamp: float | None = None,
) -> Tensor:
    """[B, R] nats: the estimate per token (Detail F3), exactly 0 outside `mask_BR`.

    Positive where the policy gives the sampled token more probability than the reference.
    `clamp` bounds every estimate to +-clamp (some systems use 10; the paper none).
    Raises ValueError for an unknown estimator.
    """
    if estimator not in KL_ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}; known: {sorted(KL_ESTIMATORS)}")
    log_ratio_BR = (logprobs_BR - ref_logprobs_BR).masked_fill(~mask_BR, 0.0)
    kl_BR = KL_ESTIMATORS[estimator](log_ratio_BR)
    return kl_BR if clamp is None else kl_BR.clamp(-clamp, clamp)
