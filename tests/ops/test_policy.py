"""Ratios and aggregations by hand; the gradients that KL estimators have in a loss."""

import math

import numpy as np
import pytest
import torch

from nplus.ops.kl import KL_ESTIMATORS, kl_per_token
from nplus.ops.policy import (
    AGGREGATIONS,
    aggregated,
    aggregation_count,
    importance_weights,
    log_ratios,
)

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
LOSS = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 7.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("sequence", (2.5 + 6.0 + 9.0) / 3),  # GRPO: a mean of means
        ("token", 31.0 / 7),  # DAPO: every token alike
        ("constant", 31.0 / (3 * 10)),  # Dr. GRPO: a width that no response changes
        ("sequence_sum", 31.0 / 3),
    ],
)
def test_aggregations_by_hand(how, expected):
    total = aggregated(LOSS, MASK, how=how)
    assert float(total) / aggregation_count(MASK, how=how, width=10) == pytest.approx(expected)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_parts_add_up(how):
    parts = [
        (aggregated(LOSS[i : i + 1], MASK[i : i + 1], how=how), MASK[i : i + 1]) for i in range(3)
    ]
    total = sum(float(loss) for loss, _ in parts)
    count = sum(aggregation_count(mask, how=how, width=10) for _, mask in parts)
    assert total == pytest.approx(float(aggregated(LOSS, MASK, how=how)))
    assert count == aggregation_count(MASK, how=how, width=10)


def test_an_empty_row_counts_nothing_in_it():
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    assert float(aggregated(torch.zeros(1, 4), nothing, how="sequence")) == 0.0


def test_levels_of_the_ratio_by_hand():
    new = torch.tensor([[-1.0, -2.0, 7.0], [-3.0, math.nan, math.nan]], dtype=torch.float64)
    old = torch.tensor([[-1.5, -1.0, 0.0], [-3.5, 0.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert log_ratios(new, old, mask).tolist() == [[0.5, -1.0, 0.0], [0.5, 0.0, 0.0]]
    whole = log_ratios(new, old, mask, level="sequence")
    assert whole.tolist() == [[-0.5, -0.5, 0.0], [0.5, 0.0, 0.0]]
    mean = log_ratios(new, old, mask, level="sequence_mean")
    assert mean.tolist() == [[-0.25, -0.25, 0.0], [0.5, 0.0, 0.0]]


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match="unknown ratio 'both'"):
        log_ratios(LOSS, LOSS, MASK, level="both")
    with pytest.raises(ValueError, match="unknown aggregation"):
        aggregated(LOSS, MASK, how="mean")
    with pytest.raises(ValueError, match="unknown aggregation"):
        aggregation_count(MASK, how="mean", width=1)


# --- KL in the loss: whose gradient? ------------------------------------------------------------

GRADIENTS = {
    "k1": lambda log_ratio: torch.ones_like(log_ratio),
    "k2": lambda log_ratio: log_ratio,
    "k3": lambda log_ratio: 1.0 - torch.exp(-log_ratio),
}


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_the_gradient_of_an_estimator_is_the_analytic_one(estimator):
    logprobs = torch.tensor([[-0.3, -2.0, -1.1]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[-0.9, -0.4, -1.1]], dtype=torch.float64)
    mask = torch.ones_like(reference, dtype=torch.bool)
    kl_per_token(logprobs, reference, mask, estimator=estimator).sum().backward()
    expected = GRADIENTS[estimator](logprobs.detach() - reference)
    torch.testing.assert_close(logprobs.grad, expected)


@pytest.mark.parametrize(
    ("estimator", "divergence"),
    [
        ("k1", lambda p, q: torch.zeros(())),
        ("k2", lambda p, q: (p * (p / q).log()).sum()),
        ("k3", lambda p, q: (q * (q / p).log()).sum()),
    ],
)
def test_what_an_estimator_descends_in_expectation(estimator, divergence):
    # The whole distribution stands for samples: each id weighs its probability, without gradient.
    logits = torch.tensor([0.2, -1.0, 0.7, 0.0], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    logprobs = logits.log_softmax(-1)
    mask = torch.ones(1, 4, dtype=torch.bool)
    kl = kl_per_token(logprobs[None], q.log()[None], mask, estimator=estimator)[0]
    (found,) = torch.autograd.grad((kl * logprobs.exp().detach()).sum(), logits)
    value = divergence(logits.softmax(-1), q)
    expected = torch.zeros(4, dtype=torch.float64)
    if value.requires_grad:
        (expected,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(found, expected)


# --- importance weights -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "expected", "bounded"),
    [
        ("truncate", [0.25, 0.5, 1.0, 2.0, 2.0], [0, 0, 0, 0, 1]),
        ("mask", [0.0, 0.5, 1.0, 2.0, 0.0], [1, 0, 0, 0, 1]),
    ],
)
def test_importance_weights_by_hand(bound, expected, bounded):
    ratio = np.array([0.25, 0.5, 1.0, 2.0, 8.0, 9.0])
    log_ratio = torch.from_numpy(np.log(ratio))[None].requires_grad_()
    mask = torch.tensor([[True] * 5 + [False]])
    weights, held = importance_weights(log_ratio, mask, bound=bound, cap=2.0)
    np.testing.assert_allclose(weights[0].numpy(), [*expected, 1.0], rtol=1e-15)
    assert held[0].tolist() == [bool(x) for x in bounded] + [False]
    assert not weights.requires_grad


def test_importance_weights_of_endless_ratios_are_finite():
    log_ratio = torch.tensor([[1e4, -1e4, math.nan]])
    mask = torch.tensor([[True, True, False]])
    for bound, expected in (("truncate", [3.0, 0.0, 1.0]), ("mask", [0.0, 0.0, 1.0])):
        assert importance_weights(log_ratio, mask, bound=bound, cap=3.0)[0].tolist() == [expected]
    with pytest.raises(ValueError, match="unknown bound 'clip'"):
        importance_weights(log_ratio, mask, bound="clip", cap=3.0)
