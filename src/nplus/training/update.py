"""THE optimiser step: streams micro-batches, divides once by the counts of the whole minibatch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal, NoReturn, TypeVar

import torch
from torch import Tensor

from nplus.batches import Objective
from nplus.metrics import Mean, Metric, merge
from nplus.training.optim import Optimizer
from nplus.training.threads import side_by_side
from nplus.training.twin import Twin

Micro = TypeVar("Micro")
Normalise = Literal["global", "micro"]


class NonFiniteLossError(RuntimeError):
    """A loss or gradient is NaN or infinite; the weights were not touched."""


@dataclass(frozen=True, slots=True)
class Helper(Generic[Micro]):
    """A twin of the one network that trains, and the objective on it."""

    twin: Twin
    objective: Callable[[Micro], Objective]


def halves(count: int) -> tuple[list[int], list[int]]:
    """0 to count - 1 dealt to two as in 0, 1, 1, 0: of like cost where costs rise evenly."""
    second = [at for at in range(count) if at % 4 in (1, 2)]
    return [at for at in range(count) if at % 4 in (0, 3)], second


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
    beside: bool = False,
    helper: Helper[Micro] | None = None,
) -> dict[str, Metric]:
    """One optimiser step over a minibatch; returns its metrics, `loss/*` per term and `grad_norm`.

    `counts(micro)` tells every term's count from the masks alone, before any forward. The loss is
    the sum of `objectives`; with `beside` each runs in a thread of its own, which takes networks
    that share nothing. A `helper` takes half of the micro-batches to another thread. Raises
    NonFiniteLossError before stepping when a loss or a gradient is not finite.
    """
    divisors = denominators([counts(micro) for micro in micros], normalise, all_sum)
    parts = [partial(_accumulate, micros, divisors, objective) for objective in objectives]
    if helper is not None:
        mine, other = halves(len(micros))
        shares = zip((mine, other), (*objectives, helper.objective), strict=True)
        parts = [
            partial(_accumulate, [micros[i] for i in at], [divisors[i] for i in at], objective)
            for at, objective in shares
        ]
    try:
        found = side_by_side(parts) if beside or helper else [part() for part in parts]
    except NonFiniteLossError as error:
        if helper is not None:
            helper.twin.drop_gradients()
        _give_up(str(error), optimizers)
    if helper is not None:
        helper.twin.give_gradients()
    metrics = merge(found)
    norms = [optimizer.clip() for optimizer in optimizers]
    if not all(math.isfinite(norm) for norm in norms):
        _give_up(f"the gradients' norms are {norms}", optimizers)
    for optimizer, norm in zip(optimizers, norms, strict=True):
        optimizer.step()
        metrics = merge([metrics, {"grad_norm": Mean(norm, 1.0)}])
    return metrics


def _accumulate(
    micros: Sequence[Micro],
    divisors: Sequence[Mapping[str, float]],
    objective: Callable[[Micro], Objective],
) -> dict[str, Metric]:
    """Add an objective's gradients over a minibatch to the parameters'; its metrics."""
    metrics: dict[str, Metric] = {}
    for micro, divisor in zip(micros, divisors, strict=True):
        found = objective(micro)
        loss: Tensor = sum(  # type: ignore[assignment]
            weight * mean.sum / divisor[name] for name, (weight, mean) in found.terms.items()
        )
        if not bool(torch.isfinite(loss)):
            raise NonFiniteLossError(f"loss is {float(loss.detach())}")
        loss.backward()
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
