"""Values that reduce exactly over micro-batches and ranks: keep sums and counts, divide once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nplus.ops.masking import masked_sum

Number = Tensor | float
Reduction = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean kept as `sum / count`; the unit is that of the summed quantity."""

    sum: Number
    count: Number

    @classmethod
    def of(cls, values: Tensor, mask: Tensor | None = None) -> Mean:
        """Mean over the True entries of `mask`, or over all of `values`; without gradient.

        Accumulates in float64, so that adding parts is exact to far below float32 resolution.
        """
        values = values.detach().double()
        if mask is None:
            return cls(values.sum(), float(values.numel()))
        return cls(masked_sum(values, mask), mask.sum())

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.sum + other.sum, self.count + other.count)

    @property
    def value(self) -> float:
        """NaN when nothing was counted."""
        count = float(self.count)
        return float(self.sum) / count if count else math.nan


@dataclass(frozen=True, slots=True)
class Sum:
    """A total, such as tokens seen."""

    total: Number

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.total + other.total)

    @property
    def value(self) -> float:
        return float(self.total)


@dataclass(frozen=True, slots=True)
class Max:
    """The largest value seen; NaN, once seen, stays."""

    largest: Number

    def __add__(self, other: Max) -> Max:
        mine, theirs = _scalar(self.largest), _scalar(other.largest)
        return Max(torch.maximum(mine, theirs.to(mine.device)))

    @property
    def value(self) -> float:
        return float(self.largest)


Metric = Mean | Sum | Max


def _scalar(x: Number, device: torch.device | None = None) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64, device=device).detach()


def merge(parts: Iterable[Mapping[str, Metric]]) -> dict[str, Metric]:
    """Add up mappings by name, for example over micro-batches; a name may be absent from some.

    Raises TypeError when one name stands for two kinds of metric.
    """
    merged: dict[str, Metric] = {}
    for part in parts:
        for name, metric in part.items():
            before = merged.get(name)
            if before is not None and type(before) is not type(metric):
                raise TypeError(f"{name}: {type(before).__name__} meets {type(metric).__name__}")
            merged[name] = metric if before is None else before + metric  # type: ignore[operator]
    return merged


def _device(metrics: Mapping[str, Metric]) -> torch.device | None:
    for metric in metrics.values():
        for name in metric.__slots__:
            if isinstance(value := getattr(metric, name), Tensor):
                return value.device
    return None


def _stacked(numbers: list[Number], device: torch.device | None, over_ranks: Reduction) -> Tensor:
    return over_ranks(torch.stack([_scalar(x, device) for x in numbers]))


def reduce(
    metrics: Mapping[str, Metric],
    collectives_sum: Reduction,
    collectives_max: Reduction | None = None,
    *,
    device: torch.device | None = None,
) -> dict[str, Metric]:
    """The same metrics over all ranks, with one sum (and one max, where a Max is present).

    Each callable takes a 1-d float64 tensor and returns its reduction over ranks; every rank
    passes the same names. Tensors go to `device`, by default the device of the first tensor.
    Raises ValueError for a Max without `collectives_max`.
    """
    device = device or _device(metrics)
    names = sorted(metrics)
    maxima = [name for name in names if isinstance(metrics[name], Max)]
    if maxima and collectives_max is None:
        raise ValueError(f"{maxima} are maxima: pass collectives_max")
    additive = [name for name in names if name not in maxima]
    numbers: list[Number] = []
    for name in additive:
        metric = metrics[name]
        numbers += [metric.sum, metric.count] if isinstance(metric, Mean) else [metric.total]  # type: ignore[union-attr]
    reduced: dict[str, Metric] = {}
    if numbers:
        summed = iter(_stacked(numbers, device, collectives_sum).unbind())
        for name in additive:
            is_mean = isinstance(metrics[name], Mean)
            reduced[name] = Mean(next(summed), next(summed)) if is_mean else Sum(next(summed))
    if maxima and collectives_max is not None:
        numbers = [metrics[name].largest for name in maxima]  # type: ignore[union-attr]
        largest = _stacked(numbers, device, collectives_max)
        reduced |= {name: Max(x) for name, x in zip(maxima, largest.unbind(), strict=True)}
    return {name: reduced[name] for name in metrics}


def values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Plain numbers for a journal."""
    return {name: metric.value for name, metric in metrics.items()}
