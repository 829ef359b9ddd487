"""Statistics over the True entries of a mask: select, then average.

A masked slot is never multiplied by zero: inf or NaN in it would poison the result (Q20).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Additive statistics of selected values: three 0-d float64 tensors.

    Moments of parts (micro-batches, ranks) add up to the moments of the whole; to reduce them
    over ranks in one call: `Moments(*collectives.sum(torch.stack(moments)).unbind())`.
    Sums are kept in float64, so that `sumsq - sum^2 / count` does not cancel for float32 data.
    """

    sum: Tensor
    sumsq: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count on purpose

    def __add__(self, other: Moments) -> Moments:  # type: ignore[override]
        return Moments(self.sum + other.sum, self.sumsq + other.sumsq, self.count + other.count)

    @property
    def mean(self) -> Tensor:
        """0-d float64; NaN when nothing was selected."""
        return self.sum / self.count

    def var(self, *, unbiased: bool = False) -> Tensor:
        """0-d float64, biased by default (Detail F7); 0 for a single value either way."""
        centred = (self.sumsq - self.sum * self.mean).clamp(min=0.0)
        return centred / ((self.count - 1).clamp(min=1) if unbiased else self.count)


def _check(values: Tensor, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask is bool (True = real), not {mask.dtype}")
    if mask.shape != values.shape:
        raise ValueError(f"mask {tuple(mask.shape)} does not fit values {tuple(values.shape)}")


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of `values` where `mask` is True, over `dim` or everything; 0 where none is.

    Raises ValueError when the mask is not bool or its shape is not that of `values`.
    """
    _check(values, mask)
    selected = values.masked_fill(~mask, 0.0)
    return selected.sum() if dim is None else selected.sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of `values` where `mask` is True, over `dim` or everything; NaN where none is.

    Raises ValueError when the mask is not bool or its shape is not that of `values`.
    """
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(values, mask, dim) / count


def masked_moments(values: Tensor, mask: Tensor) -> Moments:
    """Moments of the entries of `values` (any shape) where `mask` is True, without gradient."""
    _check(values, mask)
    selected = values.detach().double().masked_fill(~mask, 0.0)
    return Moments(selected.sum(), selected.square().sum(), mask.sum().double())


def masked_var(values: Tensor, mask: Tensor, *, unbiased: bool) -> Tensor:
    """Variance of the selected entries, 0-d in the dtype of `values`, without gradient."""
    return masked_moments(values, mask).var(unbiased=unbiased).to(values.dtype)


def whiten(
    values: Tensor,
    mask: Tensor,
    moments: Moments,
    *,
    unbiased: bool = False,
    shift_mean: bool = True,
    eps: float = 1e-8,
    eps_mode: str = "add",
) -> Tensor:
    """`(x - mean) / sqrt(var + eps)` on the mask, exactly 0 outside; shape and dtype kept.

    `moments` decide the scope: those of one rank (the paper), or reduced over all ranks.
    `shift_mean=False` adds the mean back; `eps_mode="clamp"` takes `max(var, eps)` for `var + eps`
    (OpenRLHF). Raises ValueError for another mode.

    Detail F7: advantages use the response mask, the biased variance and `shift_mean=True`.
    Detail F6: rewards use the value mask and `shift_mean=False`.
    """
    _check(values, mask)
    if eps_mode not in ("add", "clamp"):
        raise ValueError(f"unknown eps_mode {eps_mode!r}; known: add, clamp")
    mean, var = moments.mean, moments.var(unbiased=unbiased)
    floored = var + eps if eps_mode == "add" else var.clamp(min=eps)
    white = (values.double() - mean) * torch.rsqrt(floored)
    if not shift_mean:
        white = white + mean
    return white.to(values.dtype).masked_fill(~mask, 0.0)
