"""THE optimiser step: streams micro-batches, divides once by the counts of the whole minibatch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar

import torch
from torch import Tensor

from nplus.batches import Objective
from nplus.metrics import Mean, Metric, merge
from nplus.training.optim import Optimizer
from nplus.training.threads import side_by_side

Micro = TypeVar("Micro")
Normalise = Literal["global", "micro"]


class NonFiniteLossError(RuntimeError):
    """A loss or gradient is NaN or infinite; the weights were not touched."""


def denominators(
    counts: Sequence[Mapping[str, float]],
    normalise: Normalise,
    all_sum: Callable[[Tensor], Tensor],
) -> list[dict[str, float]]:
    """What each micro-batch's sums are divided by, per term.

    Detail G4: `global` divides by the count over all micro-batches and ranks, so the gradient does
    not depend on how rows are split; `micro` is the paper's mean of micro-batch means.
    """
    if normalise == "micro":
        parts = float(all_sum(torch.tensor(float(len(counts)), dtype=torch.float64)))
        return [{name: max(c, 1e-30) * parts for name, c in part.items()} for part in counts]
    names = list(counts[0])
    totals = torch.tensor([sum(part[n] for part in counts) for n in names], dtype=torch.float64)
    reduced = dict(zip(names, all_sum(totals).tolist(), strict=True))
    return [{name: max(reduced[name], 1e-30) for name in names} for _ in counts]


def update(
    micros: Sequence[Micro],
    *,
    counts: Callable[[Micro], Mapping[str, float]],
    objectives: Sequence[Callable[[Micro], Objective]],
    optimizers: Sequence[Optimizer],
    normalise: Normalise = "global",
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
    workers: int = 1,
) -> dict[str, Metric]:
    """One optimiser step over a minibatch; returns its metrics, `loss/*` per term and `grad_norm`.

    `counts(micro)` tells every term's count from the masks alone, before any forward. The loss is
    the sum of `objectives`. So many `workers` share the micro-batches, a thread each; their
    gradients are added in their order, which no clock decides. Raises NonFiniteLossError before
    stepping when a loss or a gradient is not finite.
    """
    sizes = [counts(micro) for micro in micros]
    divisors = denominators(sizes, normalise, all_sum)
    shares = _shares([sum(size.values()) for size in sizes], workers)
    parameters = [p for optimizer in optimizers for p in optimizer.parameters]
    apart = [_Apart(parameters) for _ in shares[1:]]

    def work(share: list[int], backward: Callable[[Tensor], Any]) -> dict[str, Metric]:
        own = [(micros[i], divisors[i]) for i in share]
        return merge([_accumulate(own, objective, backward) for objective in objectives])

    backwards: list[Callable[[Tensor], Any]] = [Tensor.backward, *(each.add for each in apart)]
    try:
        found = side_by_side([partial(work, *task) for task in zip(shares, backwards, strict=True)])
        for each in apart:
            each.hand_in()
    except NonFiniteLossError as error:
        _give_up(str(error), optimizers)
    metrics = merge(found)
    norms = [optimizer.clip() for optimizer in optimizers]
    if not all(math.isfinite(norm) for norm in norms):
        _give_up(f"the gradients' norms are {norms}", optimizers)
    for optimizer, norm in zip(optimizers, norms, strict=True):
        optimizer.step()
        metrics = merge([metrics, {"grad_norm": Mean(norm, 1.0)}])
    return metrics


def _shares(sizes: Sequence[float], workers: int) -> list[list[int]]:
    """Which micro-batches each worker takes: the largest first, each to who has least to do."""
    shares: list[list[int]] = [[] for _ in range(max(1, min(workers, len(sizes))))]
    load = [0.0] * len(shares)
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = load.index(min(load))
        shares[least].append(i)
        load[least] += sizes[i]
    return [sorted(share) for share in shares]


class _Apart:
    """Gradients of a worker, kept from the parameters' own, which another worker adds to."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.found: list[Tensor | None] = [None] * len(self.parameters)

    def add(self, loss: Tensor) -> None:
        """In place of `loss.backward()`."""
        new = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        self.found = [_sum(old, x) for old, x in zip(self.found, new, strict=True)]

    def hand_in(self) -> None:
        for parameter, grad in zip(self.parameters, self.found, strict=True):
            parameter.grad = _sum(parameter.grad, grad)


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old + new


def _accumulate(
    micros: Sequence[tuple[Micro, Mapping[str, float]]],
    objective: Callable[[Micro], Objective],
    backward: Callable[[Tensor], Any],
) -> dict[str, Metric]:
    """Add an objective's gradients over micro-batches, each with its divisors; its metrics."""
    metrics: dict[str, Metric] = {}
    for micro, divisor in micros:
        found = objective(micro)
        loss: Tensor = sum(  # type: ignore[assignment]
            weight * mean.sum / divisor[name] for name, (weight, mean) in found.terms.items()
        )
        if not bool(torch.isfinite(loss)):
            raise NonFiniteLossError(f"loss is {float(loss.detach())}")
        backward(loss)
        losses = {f"loss/{name}": _detached(mean) for name, (_, mean) in found.terms.items()}
        metrics = merge([metrics, found.metrics, losses])
    return metrics


def _give_up(why: str, optimizers: Sequence[Optimizer]) -> NoReturn:
    for optimizer in optimizers:
        optimizer.drop_gradients()
    raise NonFiniteLossError(f"{why}; the weights are as before this step")


def _detached(mean: Mean) -> Mean:
    return Mean(
        *(x.detach().double() if isinstance(x, Tensor) else x for x in (mean.sum, mean.count))
    )
