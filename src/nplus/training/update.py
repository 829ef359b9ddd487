"""THE optimiser step: streams micro-batches, divides once by the counts of the whole minibatch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Literal, NoReturn, TypeVar

import torch
from torch import Tensor

from nplus.batches import Objective
from nplus.distributed.partner import Partner, shared_like
from nplus.metrics import Mean, Metric, merge
from nplus.training.optim import Optimizer

Micro = TypeVar("Micro")
Weighed = tuple[Micro, Mapping[str, float]]
"""A micro-batch, and what every term of its loss is divided by."""
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


class Beside(Generic[Micro]):
    """Another process that takes its share of every minibatch, with gradients of its own.

    `jobs` are what it can be asked for besides (`partner`). All that the objectives read and no
    optimiser moves stays as it is now.
    """

    def __init__(
        self,
        objectives: Sequence[Callable[[Micro], Objective]],
        optimizers: Sequence[Optimizer],
        jobs: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.objectives = objectives
        self.parameters = [p for optimizer in optimizers for p in optimizer.parameters]
        self.gradients = shared_like(self.parameters)
        self.partner = Partner({"train": self._train, **(jobs or {})}, weights=self.parameters)

    def _train(self, own: list[Weighed[Micro]]) -> tuple[dict[str, Metric], list[int]]:
        """There: metrics, and which parameters have a gradient in `gradients`."""
        found = accumulated(own, self.objectives)
        moved = []
        for at, (parameter, place) in enumerate(zip(self.parameters, self.gradients, strict=True)):
            if parameter.grad is not None:
                place.copy_(parameter.grad)
                parameter.grad = None
                moved.append(at)
        return found, moved

    def train(self, own: list[Weighed[Micro]], other: list[Weighed[Micro]]) -> dict[str, Metric]:
        """Here: the metrics of both, the gradients of both in the parameters."""
        mine = partial(accumulated, own, self.objectives)
        found, (others, moved) = self.partner.beside(mine, "train", other)
        for at in moved:
            parameter, place = self.parameters[at], self.gradients[at]
            parameter.grad = place.clone() if parameter.grad is None else parameter.grad.add_(place)
        return merge([found, others])


def update(
    micros: Sequence[Micro],
    *,
    counts: Callable[[Micro], Mapping[str, float]],
    objectives: Sequence[Callable[[Micro], Objective]],
    optimizers: Sequence[Optimizer],
    normalise: Normalise = "global",
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
    beside: Beside[Micro] | None = None,
) -> dict[str, Metric]:
    """One optimiser step over a minibatch; returns its metrics, `loss/*` per term and `grad_norm`.

    `counts(micro)` tells every term's count from the masks alone, before any forward. The loss is
    the sum of `objectives`. With `beside`, which has the same, two processes share the
    micro-batches; its gradients are added to this one's. Raises NonFiniteLossError before stepping
    when a loss or a gradient is not finite.
    """
    sizes = [counts(micro) for micro in micros]
    weighed = list(zip(micros, denominators(sizes, normalise, all_sum), strict=True))
    try:
        if beside is None or len(micros) == 1:
            metrics = accumulated(weighed, objectives)
        else:
            own, other = _halves([sum(size.values()) for size in sizes])
            metrics = beside.train([weighed[i] for i in own], [weighed[i] for i in other])
    except NonFiniteLossError as error:
        _give_up(str(error), optimizers)
    norms = [optimizer.clip() for optimizer in optimizers]
    if not all(math.isfinite(norm) for norm in norms):
        _give_up(f"the gradients' norms are {norms}", optimizers)
    for optimizer, norm in zip(optimizers, norms, strict=True):
        optimizer.step()
        metrics = merge([metrics, {"grad_norm": Mean(norm, 1.0)}])
    return metrics


def _halves(sizes: Sequence[float]) -> tuple[list[int], list[int]]:
    """Which micro-batches each of two takes: the largest first, each to who has less to do."""
    halves: tuple[list[int], list[int]] = ([], [])
    load = [0.0, 0.0]
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = load.index(min(load))
        halves[least].append(i)
        load[least] += sizes[i]
    return sorted(halves[0]), sorted(halves[1])


def accumulated(
    micros: Sequence[Weighed[Micro]], objectives: Sequence[Callable[[Micro], Objective]]
) -> dict[str, Metric]:
    """Add the gradients of every objective over micro-batches, each with its divisors; metrics."""
    return merge([_accumulate(micros, objective) for objective in objectives])


def _accumulate(
    micros: Sequence[Weighed[Micro]], objective: Callable[[Micro], Objective]
) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for micro, divisor in micros:
        found = objective(micro)
        loss: Tensor = sum(  # type: ignore[assignment]
            weight * mean.sum / divisor[name] for name, (weight, mean) in found.terms.items()
        )
        if not bool(torch.isfinite(loss)):
            raise NonFiniteLossError(f"loss is {float(loss.detach())}")
        loss.backward()  # type: ignore[no-untyped-call]
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
