"""Next-token training (section C)."""

from __future__ import annotations

from torch import Tensor

from nplus.batches import Objective, PackedBatch, TokenBatch
from nplus.metrics import Mean
from nplus.ops.losses import cross_entropy, target_mask


def counts(batch: TokenBatch | PackedBatch) -> dict[str, float]:
    """The loss's denominator: summed weights of the targets."""
    targets_BT = target_mask(batch.mask_BT, batch.loss_mask_BT)
    return {"train": float(batch.weight_BT.masked_fill(~targets_BT, 0.0).sum())}


def objective(logits_BTV: Tensor, batch: TokenBatch | PackedBatch) -> Objective:
    """Weighted cross-entropy over the loss mask; weight 1 everywhere is Detail C2."""
    targets_BT = target_mask(batch.mask_BT, batch.loss_mask_BT)
    nll_BT = cross_entropy(logits_BTV, batch.tokens_BT, targets_BT)
    return summed((nll_BT * batch.weight_BT.masked_fill(~targets_BT, 0.0)).sum(), batch)


def summed(nll: Tensor, batch: TokenBatch | PackedBatch) -> Objective:
    """The same from the targets' weighted cross-entropies, summed already."""
    return Objective(
        terms={"train": (1.0, Mean(sum=nll, count=counts(batch)["train"]))}, metrics={}
    )
