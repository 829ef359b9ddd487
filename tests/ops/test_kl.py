import math

import pytest
import torch

from nplus.ops.kl import KL_ESTIMATORS, kl_per_token

P, Q = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]
MASK = torch.ones(1, 3, dtype=torch.bool)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_estimators_average_to_the_divergence(estimator):
    logp = torch.tensor([P], dtype=torch.float64).log()
    logq = torch.tensor([Q], dtype=torch.float64).log()
    estimate = kl_per_token(logp, logq, MASK, estimator=estimator)[0].tolist()
    exact = sum(p * math.log(p / q) for p, q in zip(P, Q, strict=True))
    assert sum(p * k for p, k in zip(P, estimate, strict=True)) == pytest.approx(exact)


@pytest.mark.detail("F3")
def test_signs():
    # Detail F3: k1 is negative where the reference is more sure than the policy.
    logp, logq = torch.tensor([P]).log(), torch.tensor([Q]).log()
    assert kl_per_token(logp, logq, MASK).sign().tolist() == [[1.0, 1.0, -1.0]]
    for estimator in ("k2", "k3"):
        assert (kl_per_token(logp, logq, MASK, estimator=estimator) >= 0).all()


@pytest.mark.parametrize("estimator", sorted(KL_ESTIMATORS))
def test_equal_models_give_zero_and_junk_outside_the_mask_is_ignored(estimator):
    logp = torch.tensor([[-1.0, -2.0, -3.0]])
    mask = torch.tensor([[True, True, False]])
    assert (kl_per_token(logp, logp, mask, estimator=estimator) == 0).all()
    junk = torch.tensor([[-1.0, -2.5, math.nan]])
    kl = kl_per_token(logp, junk, mask, estimator=estimator)
    assert kl[0, 2] == 0.0
    assert kl.isfinite().all()


def test_clamp_is_off_unless_asked_for():
    logp, logq = torch.tensor([[0.0, -40.0]]), torch.tensor([[-40.0, 0.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert kl_per_token(logp, logq, mask).tolist() == [[40.0, -40.0]]
    assert kl_per_token(logp, logq, mask, clamp=10.0).tolist() == [[10.0, -10.0]]


def test_unknown_estimator():
    with pytest.raises(ValueError, match="k1"):
        kl_per_token(torch.zeros(1, 3), torch.zeros(1, 3), MASK, estimator="k9")
