"""The optimiser step: one division by the minibatch's counts, and nothing moved by a bad loss."""

import math
import os

import pytest
import torch
from torch import nn

from nplus.batches import Objective
from nplus.config import OptimConfig
from nplus.metrics import Mean, Sum
from nplus.training.optim import Optimizer
from nplus.training.update import Beside, NonFiniteLossError, denominators, update

# Rows of unequal length, as (inputs, targets); a squared error per element.
ROWS = [
    ([1.0, 2.0, -1.0], [0.5, 0.0, 1.0]),
    ([3.0], [-2.0]),
    ([0.5, -0.5], [1.0, 1.0]),
    ([2.0, 2.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0, 4.0]),
]
SPLITS = [[[0, 1, 2, 3]], [[0], [1], [2], [3]], [[3, 1], [0, 2]], [[2], [3, 0, 1]]]


class Watched(Optimizer):
    """Keeps the gradients that a step was taken with."""

    def step(self):
        self.gradients = [p.grad.clone() for p in self.parameters if p.grad is not None]
        return super().step()


def slope():
    return nn.Parameter(torch.tensor([0.7], dtype=torch.float64))


def elements(rows):
    inputs = torch.tensor([x for i in rows for x in ROWS[i][0]], dtype=torch.float64)
    targets = torch.tensor([y for i in rows for y in ROWS[i][1]], dtype=torch.float64)
    return inputs, targets


def gradient(split, normalise, **options):
    weight = slope()
    optimizer = Watched([("w", weight)], OptimConfig())

    def objective(rows):
        inputs, targets = elements(rows)
        squared = (weight * inputs - targets).square()
        loss = Mean(squared.sum(), len(squared))
        return Objective(terms={"train": (2.0, loss)}, metrics={"x": Mean.of(inputs)})

    metrics = update(
        split,
        counts=lambda rows: {"train": float(len(elements(rows)[0]))},
        objectives=[objective],
        optimizers=[optimizer],
        normalise=normalise,
        **options,
    )
    return optimizer.gradients[0].item(), metrics


def by_hand(rows):
    """Gradient of 2 * mean((w x - y)^2) at w = 0.7."""
    pairs = [(x, y) for i in rows for x, y in zip(*ROWS[i], strict=True)]
    return sum(2 * 2 * (0.7 * x - y) * x for x, y in pairs) / len(pairs)


@pytest.mark.detail("G4")
@pytest.mark.parametrize("split", SPLITS)
def test_global_gradient_does_not_depend_on_the_split(split):
    # Detail G4.
    found, metrics = gradient(split, "global")
    assert found == pytest.approx(by_hand([0, 1, 2, 3]), rel=1e-12)
    squared = [(0.7 * x - y) ** 2 for xs, ys in ROWS for x, y in zip(xs, ys, strict=True)]
    assert metrics["loss/train"].value == pytest.approx(sum(squared) / 11, rel=1e-12)
    assert metrics["x"].value == pytest.approx(12 / 11)
    assert metrics["grad_norm"].value == pytest.approx(abs(found))


@pytest.mark.detail("G4")
@pytest.mark.parametrize("split", SPLITS)
def test_micro_gradient_is_the_mean_of_micro_batch_means(split):
    # Detail G4: the paper's normaliser.
    found, _ = gradient(split, "micro")
    assert found == pytest.approx(sum(map(by_hand, split)) / len(split), rel=1e-12)


def test_the_two_normalisers_differ_on_unequal_rows():
    assert abs(gradient(SPLITS[1], "global")[0] - gradient(SPLITS[1], "micro")[0]) > 0.1


def test_a_term_without_any_count_adds_nothing():
    (found,) = denominators([{"train": 0.0}], "global")
    assert math.isfinite(0.0 / found["train"])


def nan_loss(weight):
    return weight.sum() * math.nan


def infinite_loss(weight):
    return weight.sum() / 0.0


def nan_gradient(weight):
    # A finite loss: the root of 0 has an infinite slope, and 0 * inf is NaN.
    return (weight - weight.detach()).square().sum().sqrt()


@pytest.mark.parametrize("broken", [nan_loss, infinite_loss, nan_gradient])
def test_a_broken_loss_leaves_the_weights_untouched(broken):
    good, bad = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([3.0]))
    optimizers = [Optimizer([(n, p)], OptimConfig()) for n, p in (("good", good), ("bad", bad))]

    def objective(micro):
        value = good.square().sum() + (broken(bad) if micro == "broken" else bad.sum())
        return Objective(terms={"train": (1.0, Mean(value, 1.0))}, metrics={})

    def step(micros):
        counts = {"train": 1.0}
        update(micros, counts=lambda _: counts, objectives=[objective], optimizers=optimizers)

    with pytest.raises(NonFiniteLossError, match="as before this step"):
        step(["fine", "broken"])
    assert good.tolist() == [1.0, -2.0]
    assert bad.tolist() == [3.0]
    assert all(not optimizer.tensors() for optimizer in optimizers)
    # A caller may go on: nothing of the broken minibatch is left over.
    step(["fine"])
    first_moment = optimizers[0].tensors()["0.0.exp_avg"]
    assert first_moment.tolist() == pytest.approx([0.1 * 2.0, -0.1 * 4.0])


def two_networks(shared, broken=None):
    """Two parameters with an objective each; gradients, metrics, and who worked on what."""
    weights = {name: nn.Parameter(torch.tensor([w])) for name, w in (("a", 2.0), ("b", -3.0))}
    idle = nn.Parameter(torch.tensor([1.0]))
    optimizers = [Watched([(name, w)], OptimConfig()) for name, w in weights.items()]
    optimizers[0].parameters.append(idle)

    def of(name):
        def objective(micro):
            loss = (weights[name] * micro).square().sum()
            if name == "b" and micro == broken:
                loss = loss * math.nan
            told = {f"m/{name}": Mean(micro, 1.0), f"pid {os.getpid()}": Sum(micro)}
            told[f"threads {torch.get_num_threads()}"] = Sum(1.0)
            return Objective({name: (1.0, Mean(loss, 1.0))}, told)

        return objective

    objectives = [of("a"), of("b")]
    beside = Beside(objectives, optimizers) if shared else None
    try:
        metrics = update(
            [1.0, 5.0, 3.0, 1.0],
            counts=lambda micro: {"a": micro, "b": micro},
            objectives=objectives,
            optimizers=optimizers,
            beside=beside,
        )
    finally:
        if beside is not None:
            beside.partner.close()
    assert idle.grad is None  # weight decay would move it
    values = {name: metric.value for name, metric in metrics.items()}
    worked = {name: values.pop(name) for name in list(values) if name[:3] in ("pid", "thr")}
    moved = [w.item() for w in weights.values()]
    return [o.gradients[0].item() for o in optimizers], values, worked, moved


@pytest.mark.usefixtures("two_threads")
def test_two_processes_come_to_what_one_comes_to():
    shared, alone = two_networks(True), two_networks(False)
    # d/dw of the sum of (w m)^2 over m = 1, 5, 3, 1, by a count of 10
    assert alone[0] == pytest.approx([2 * 2.0 * 36 / 10, 2 * -3.0 * 36 / 10])
    assert shared[0] == pytest.approx(alone[0])
    assert shared[1] == pytest.approx(alone[1])
    assert shared[3] == pytest.approx(alone[3])
    # The largest alone, all else beside it; a thread each.
    assert shared[2].pop("threads 1") == 8.0
    assert shared[2].pop(f"pid {os.getpid()}") == 10.0
    assert list(shared[2].values()) == [10.0]
    assert alone[2] == {f"pid {os.getpid()}": 20.0, "threads 2": 8.0}
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("broken", [5.0, 3.0])
@pytest.mark.parametrize("shared", [False, True])
def test_a_broken_loss_beside_another_moves_neither(shared, broken):
    with pytest.raises(NonFiniteLossError, match="loss is nan; the weights are as before"):
        two_networks(shared, broken=broken)
