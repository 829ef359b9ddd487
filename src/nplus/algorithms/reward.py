"""Bradley-Terry reward modelling (section D)."""

from __future__ import annotations

from torch import Tensor

from nplus.batches import Objective, PairBatch, SharedPairBatch
from nplus.metrics import Mean
from nplus.ops.losses import bradley_terry


def counts(batch: PairBatch | SharedPairBatch) -> dict[str, float]:
    """The loss is a mean over pairs."""
    return {"train": float(len(batch))}


def objective(
    scores_2N: Tensor, batch: PairBatch | SharedPairBatch, *, center: float = 0.0
) -> Objective:
    """`-log sigmoid(r_chosen - r_rejected)` (Detail D3); chosen scores come first.

    `center` weighs `(r_chosen + r_rejected)^2`, which fixes what the loss leaves open, the scores'
    origin (Eisenstein et al. 2023, equation 2; 0 in the paper).
    """
    chosen_N, rejected_N = scores_2N.chunk(2)
    loss = bradley_terry(chosen_N, rejected_N, batch.margin_N)
    loss_N = loss.loss_N
    if center:
        loss_N = loss_N + center * (chosen_N + rejected_N).square()
    metrics = {
        "accuracy": Mean.of(loss.correct_N),
        "margin": Mean.of(chosen_N - rejected_N),
        "mean_reward": Mean.of(scores_2N),
    }
    return Objective(terms={"train": (1.0, Mean(loss_N.sum(), float(len(batch))))}, metrics=metrics)
