"""Bradley-Terry reward modelling (section D)."""

from __future__ import annotations

from torch import Tensor

from nplus.batches import Objective, PairBatch, SharedPairBatch
from nplus.metrics import Mean
from nplus.ops.losses import bradley_terry


def counts(batch: PairBatch | SharedPairBatch) -> dict[str, float]:
    """The loss is a mean over pairs."""
    return {"train": float(len(batch))}


def objective(scores_2N: Tensor, batch: PairBatch | SharedPairBatch) -> Objective:
    """`-log sigmoid(r_chosen - r_rejected)` (Detail D3); chosen scores come first."""
    chosen_N, rejected_N = scores_2N.chunk(2)
    loss = bradley_terry(chosen_N, rejected_N, batch.margin_N)
    metrics = {
        "accuracy": Mean.of(loss.correct_N),
        "margin": Mean.of(chosen_N - rejected_N),
        "mean_reward": Mean.of(scores_2N),
    }
    return Objective(
        terms={"train": (1.0, Mean(loss.loss_N.sum(), float(len(batch))))}, metrics=metrics
    )
