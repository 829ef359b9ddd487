"""Direct preference optimisation (Detail D9)."""

from __future__ import annotations

from torch import Tensor

from nplus.batches import Objective, PairBatch
from nplus.config import DPOConfig
from nplus.metrics import Mean
from nplus.ops.losses import dpo


def counts(batch: PairBatch) -> dict[str, float]:
    """The loss is a mean over pairs."""
    return {"train": float(len(batch))}


def response_lengths(batch: PairBatch) -> Tensor:
    """[2N] tokens of the chosen responses, then of the rejected, EOS included."""
    return batch.stacked_response_mask().sum(1)


def objective(
    logprobs_2N: Tensor, ref_logprobs_2N: Tensor, batch: PairBatch, cfg: DPOConfig
) -> Objective:
    """A pair loss on summed log-probs, chosen first; implicit rewards are metrics (Detail D9).

    `ipo_length=mean` averages the loss's log-probs over their response's tokens instead; the
    implicit rewards stay sums.
    """
    scale_2N = response_lengths(batch) if cfg.ipo_length == "mean" else 1.0
    loss = dpo(
        *(logprobs_2N / scale_2N).chunk(2),
        *(ref_logprobs_2N / scale_2N).chunk(2),
        beta=cfg.beta,
        kind=cfg.loss_type,
        label_smoothing=cfg.label_smoothing,
    )
    chosen_N, rejected_N = (cfg.beta * (logprobs_2N - ref_logprobs_2N).detach()).chunk(2)
    logps_chosen_N, logps_rejected_N = logprobs_2N.chunk(2)
    metrics = {
        "rewards/accuracies": Mean.of(chosen_N > rejected_N),
        "rewards/chosen": Mean.of(chosen_N),
        "rewards/rejected": Mean.of(rejected_N),
        "rewards/margins": Mean.of(chosen_N - rejected_N),
        "logps/chosen": Mean.of(logps_chosen_N),
        "logps/rejected": Mean.of(logps_rejected_N),
    }
    terms = {"train": (1.0, Mean(loss.loss_N.sum(), float(len(batch))))}
    return Objective(terms=terms, metrics=metrics)
