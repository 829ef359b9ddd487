"""Levels of the probability ratio, and what a policy loss is divided by."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def token_level(log_ratio_BR: Tensor, mask_BR: Tensor) -> Tensor:
    """A ratio for each token."""
    return log_ratio_BR


def sequence_level(log_ratio_BR: Tensor, mask_BR: Tensor) -> Tensor:
    """The ratio of the whole response, at each of its tokens (RLOO)."""
    return log_ratio_BR.sum(1, keepdim=True).expand_as(log_ratio_BR)


def sequence_mean_level(log_ratio_BR: Tensor, mask_BR: Tensor) -> Tensor:
    """Its geometric mean over tokens, at each of them (Zheng et al. 2025, equation 7)."""
    lengths_B1 = mask_BR.sum(1, keepdim=True).clamp(min=1)
    return (log_ratio_BR.sum(1, keepdim=True) / lengths_B1).expand_as(log_ratio_BR)


RATIOS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "token": token_level,
    "sequence": sequence_level,
    "sequence_mean": sequence_mean_level,
}


def log_ratios(
    logprobs_BR: Tensor, old_logprobs_BR: Tensor, mask_BR: Tensor, *, level: str = "token"
) -> Tensor:
    """[B, R] log of new over old probability at a level of `RATIOS`, 0 outside the mask.

    Raises ValueError for an unknown level.
    """
    if level not in RATIOS:
        raise ValueError(f"unknown ratio {level!r}; known: {sorted(RATIOS)}")
    log_ratio_BR = (logprobs_BR - old_logprobs_BR).masked_fill(~mask_BR, 0.0)
    return RATIOS[level](log_ratio_BR, mask_BR).masked_fill(~mask_BR, 0.0)


def truncated(weights_BR: Tensor, cap: float) -> Tensor:
    """`min(w, C)` (Espeholt et al. 2018, IMPALA; Ionides 2008)."""
    return weights_BR.clamp(max=cap)


def within(weights_BR: Tensor, cap: float) -> Tensor:
    """`w` where `1 / C <= w <= C`, elsewhere 0."""
    return weights_BR.masked_fill((weights_BR > cap) | (weights_BR * cap < 1.0), 0.0)


BOUNDS: dict[str, Callable[[Tensor, float], Tensor]] = {"truncate": truncated, "mask": within}


def importance_weights(
    log_ratio_BR: Tensor, mask_BR: Tensor, *, bound: str, cap: float
) -> tuple[Tensor, Tensor]:
    """`weights_BR, bounded_BR`: the ratio as a weight, bounded by an entry of `BOUNDS`, and where
    the bound took hold; outside the mask 1 and False. Without gradient.

    Raises ValueError for an unknown bound.
    """
    if bound not in BOUNDS:
        raise ValueError(f"unknown bound {bound!r}; known: {sorted(BOUNDS)}")
    ratio_BR = log_ratio_BR.detach().masked_fill(~mask_BR, 0.0).exp()
    weights_BR = BOUNDS[bound](ratio_BR, cap)
    return weights_BR, weights_BR != ratio_BR


AGGREGATIONS = ("sequence", "token", "constant", "sequence_sum")
"""`sequence`: mean over a response's tokens, then over responses; `token`: over all tokens;
`constant`: over responses times a fixed width; `sequence_sum`: sums of responses, averaged."""


def aggregated(loss_BR: Tensor, mask_BR: Tensor, *, how: str) -> Tensor:
    """0-d sum of a loss that is 0 outside the mask, to be divided by `aggregation_count`.

    Raises ValueError for an unknown aggregation.
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"unknown aggregation {how!r}; known: {AGGREGATIONS}")
    if how != "sequence":
        return loss_BR.sum()
    return (loss_BR.sum(1) / mask_BR.sum(1).clamp(min=1)).sum()


def aggregation_count(mask_BR: Tensor, *, how: str, width: int) -> float:
    """What `aggregated` is divided by; `width` is the fixed one, in tokens.

    Raises ValueError for an unknown aggregation.
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"unknown aggregation {how!r}; known: {AGGREGATIONS}")
    rows = float(len(mask_BR))
    return {
        "sequence": rows,
        "token": float(mask_BR.sum()),
        "constant": rows * width,
        "sequence_sum": rows,
    }[how]
