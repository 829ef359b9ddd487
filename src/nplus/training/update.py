"""THE optimiser step: streams micro-batches, divides once by the counts of the whole minibatch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, Literal, NoReturn, TypeVar

import torch
from torch import Tensor

from nplus.batches import Objective
from nplus.distributed.partner import Partner, shared_like
from nplus.distributed.topology import Topology, dealt
from nplus.metrics import Max, Mean, Metric, Sum, merge
from nplus.training.optim import Optimizer

Micro = TypeVar("Micro")
Weighed = tuple[Micro, Mapping[str, float]]
"""A micro-batch, and what every term of its loss is divided by."""
Normalise = Literal["global", "micro"]
BUCKET = 1 << 24
"""Numbers that go over the wire at once."""


class NonFiniteLossError(RuntimeError):
    """A loss or gradient is NaN or infinite; the weights were not touched."""


def denominators(
    counts: Sequence[Mapping[str, float]], normalise: Normalise
) -> list[dict[str, float]]:
    """What each micro-batch's sums are divided by, per term.

    Detail G4: `global` divides by the count over all micro-batches of all processes, so the
    gradient does not depend on how rows are split; `micro` is the paper's mean of micro-batch
    means.
    """
    if normalise == "micro":
        parts = len(counts)
        return [{name: max(c, 1e-30) * parts for name, c in part.items()} for part in counts]
    totals = {name: max(sum(part[name] for part in counts), 1e-30) for name in counts[0]}
    return [totals for _ in counts]


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
    topology: Topology | None = None,
    beside: Beside[Micro] | None = None,
) -> dict[str, Metric]:
    """One optimiser step over a minibatch; returns its metrics, `loss/*` per term and `grad_norm`.

    `counts(micro)` tells every term's count from the masks alone, before any forward. The loss is
    the sum of `objectives`. Every process of `topology` is given the whole minibatch, works on its
    share and takes the same step. With `beside`, which has the same objectives, two processes share
    this one's. Raises NonFiniteLossError before stepping, in all processes, when a loss or a
    gradient is not finite.
    """
    ranks = topology or Topology()
    sizes = [counts(micro) for micro in micros]
    weighed = list(zip(micros, denominators(sizes, normalise), strict=True))
    loads = [sum(size.values()) for size in sizes]
    share = ranks.share(loads)
    metrics: dict[str, Metric] = {}
    why = ""
    try:
        if beside is None or len(share) < 2:
            metrics = accumulated([weighed[i] for i in share], objectives)
        else:
            own, other = dealt([loads[i] for i in share], 2)
            metrics = beside.train(
                [weighed[share[i]] for i in own], [weighed[share[i]] for i in other]
            )
    except NonFiniteLossError as error:
        why = str(error)
    if ranks.world > 1:
        metrics, why = _over_ranks(metrics, why, optimizers, ranks)
    if why:
        _give_up(why, optimizers)
    norms = [optimizer.clip() for optimizer in optimizers]
    if not all(math.isfinite(norm) for norm in norms):
        _give_up(f"the gradients' norms are {norms}", optimizers)
    for optimizer, norm in zip(optimizers, norms, strict=True):
        optimizer.step()
        metrics = merge([metrics, {"grad_norm": Mean(norm, 1.0)}])
    return metrics


def _over_ranks(
    metrics: Mapping[str, Metric], why: str, optimizers: Sequence[Optimizer], ranks: Topology
) -> tuple[dict[str, Metric], str]:
    """The metrics of all processes, what is wrong in some, and in place the sums of gradients."""
    parameters = [p for optimizer in optimizers for p in optimizer.parameters]
    moved = [at for at, p in enumerate(parameters) if p.grad is not None]
    told = ranks.collectives.gather(({k: _plain(v) for k, v in metrics.items()}, why, moved))
    if wrong := [each for _, each, _ in told if each]:
        return {}, wrong[0]
    for at in sorted({at for _, _, of_one in told for at in of_one}):
        if parameters[at].grad is None:
            parameters[at].grad = torch.zeros_like(parameters[at])
    sum_gradients([p for p in parameters if p.grad is not None], ranks.collectives.sum)
    return merge([each for each, _, _ in told]), ""


def sum_gradients(parameters: Sequence[Tensor], all_sum: Callable[[Tensor], Tensor]) -> None:
    """Replace each gradient by its sum over processes, many of one type at a time."""
    by_kind: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for p in parameters:
        assert p.grad is not None
        by_kind.setdefault((p.grad.dtype, p.grad.device), []).append(p.grad)
    for grads in by_kind.values():
        for bucket in _buckets(grads):
            total = all_sum(torch.cat([grad.flatten() for grad in bucket]))
            parts = total.split([grad.numel() for grad in bucket])
            for grad, part in zip(bucket, parts, strict=True):
                grad.copy_(part.view(grad.shape))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours together, up to `BUCKET` numbers."""
    found: list[Tensor] = []
    for tensor in tensors:
        if found and sum(x.numel() for x in found) + tensor.numel() > BUCKET:
            yield found
            found = []
        found.append(tensor)
    if found:
        yield found


def _plain(metric: Metric) -> Metric:
    """The same without tensors, which may lie on a device of their own."""
    if isinstance(metric, Mean):
        return Mean(float(metric.sum), float(metric.count))
    if isinstance(metric, Max):
        return Max(float(metric.largest))
    return Sum(float(metric.total))


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
