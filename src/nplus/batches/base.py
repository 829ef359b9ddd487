"""Row-wise operations that all batches share, and the loss as sums and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from nplus.metrics import Mean


class Batch:
    """Row-wise operations shared by all frozen batches: the first axis of every tensor is rows."""

    __slots__ = ()

    def _map(self, fn: Any) -> Self:
        changed = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor | Batch | tuple):
                changed[field.name] = fn(value)
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on `device`."""
        return self._map(lambda x: x if isinstance(x, tuple) else x.to(device))

    @classmethod
    def cat(cls, parts: Sequence[Self], prepared: Callable[[Tensor, str], Tensor]) -> Self:
        """All rows of `parts`; `prepared(tensor, name of its field)` makes them fit each other."""

        def together(values: Sequence[Any], name: str) -> Any:
            if isinstance(values[0], Batch):
                return type(values[0]).cat(values, prepared)
            if isinstance(values[0], Tensor):
                return torch.cat([prepared(value, name) for value in values])
            return sum(values, ()) if isinstance(values[0], tuple) else values[0]

        return cls(
            **{
                field.name: together([getattr(part, field.name) for part in parts], field.name)
                for field in fields(cls)  # type: ignore[arg-type]
            }
        )

    def rows(self, index: Tensor) -> Self:
        """The rows at `index` (int64 tensor of positions, or bool mask), in that order."""
        picked = index.nonzero().flatten() if index.dtype == torch.bool else index
        listed = picked.tolist()

        def pick(value: Any) -> Any:
            if isinstance(value, Batch):
                return value.rows(picked)
            if isinstance(value, tuple):
                return tuple(value[i] for i in listed)
            return value[picked.to(value.device)]

        return self._map(pick)

    def split(self, size: int) -> Iterator[Self]:
        """Consecutive pieces of at most `size` rows."""
        for start in range(0, len(self), size):  # type: ignore[arg-type]
            stop = min(start + size, len(self))  # type: ignore[arg-type]
            yield self.rows(torch.arange(start, stop))


def check(
    name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None
) -> None:
    """ValueError unless a tensor has this shape, and dtype where one is given."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{name} has dtype {tensor.dtype}, expected {dtype}")


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss told as sums and counts: `loss = sum over terms of weight * sum / count`.

    The counts are known from masks alone, so `training.update` can divide by those of the whole
    minibatch, whatever the micro-batches.
    """

    terms: Mapping[str, tuple[float, Mean]]
    metrics: Mapping[str, Mean]
