"""Direct preference optimisation (Detail D9) and its relatives: every loss of `ops.preference`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nplus.batches import CoupledPairs, Objective, PairBatch, ReferredPairs
from nplus.config import DPOConfig
from nplus.metrics import Mean
from nplus.ops.preference import (
    DIVERGENCES,
    PAIR_LOSSES,
    PairKind,
    facing,
    length_term,
    pair_loss,
    positive_penalty,
)

Pairs = PairBatch | ReferredPairs | CoupledPairs
"""Preference pairs, and what is known of them beside their tokens."""
NOTHING: Mapping[str, Tensor] = {}


def kind_of(cfg: DPOConfig) -> PairKind:
    return PAIR_LOSSES[cfg.loss_type]


def likelihood_weight(cfg: DPOConfig) -> float:
    """Weight of the chosen response's negative log-likelihood: the config's, or the loss's own."""
    return kind_of(cfg).likelihood if cfg.rpo_alpha is None else cfg.rpo_alpha


def plain(batch: Pairs) -> PairBatch:
    """The pairs alone."""
    while not isinstance(batch, PairBatch):
        batch = batch.pairs
    return batch


def known_ref_logprobs(batch: Pairs) -> Tensor | None:
    """[2N] the reference's summed log-probs where the batch has them, the chosen ones first."""
    pairs = batch.pairs if isinstance(batch, CoupledPairs) else batch
    if isinstance(pairs, ReferredPairs):
        return torch.cat([pairs.ref_chosen_N, pairs.ref_rejected_N])
    return None


def shared_readings(batch: Pairs) -> Mapping[str, Tensor]:
    """What the loss reads of the whole minibatch, [N] each; empty where it is not coupled."""
    if not isinstance(batch, CoupledPairs):
        return NOTHING
    return {
        "level": batch.level_N,
        "chosen_facing": batch.chosen_facing_N,
        "rejected_facing": batch.rejected_facing_N,
    }


def counts(batch: Pairs, cfg: DPOConfig) -> dict[str, float]:
    """What each term is a mean over: pairs, and see `rpo_nll` and `xpo_alpha` of the config."""
    pairs = plain(batch)
    found = {"train": float(len(pairs))}
    if likelihood_weight(cfg):
        tokens = cfg.rpo_nll == "token"
        found["nll"] = float(pairs.chosen_response_mask_NT.sum()) if tokens else float(len(pairs))
    if cfg.xpo_alpha:
        found["optimism"] = float(pairs.designated_N2.sum())
    return found


def response_lengths(batch: PairBatch) -> Tensor:
    """[2N] tokens of the chosen responses, then of the rejected, EOS included."""
    return batch.stacked_response_mask().sum(1)


def rewards(
    logprobs_2N: Tensor, ref_logprobs_2N: Tensor | None, batch: PairBatch, cfg: DPOConfig
) -> tuple[Tensor, Tensor]:
    """[N] implicit rewards of the chosen and of the rejected, without gradient (Detail D9).

    `beta * (log p - log p_ref)`; `beta * log p` for a loss without a reference, averaged over
    tokens for one on averages.
    """
    gains_2N = logprobs_2N if ref_logprobs_2N is None else logprobs_2N - ref_logprobs_2N
    if kind_of(cfg).reward == "mean":
        gains_2N = gains_2N / response_lengths(batch)
    chosen_N, rejected_N = (cfg.beta * gains_2N.detach()).chunk(2)
    return chosen_N, rejected_N


def readings(
    logprobs_2N: Tensor, ref_logprobs_2N: Tensor | None, batch: PairBatch, cfg: DPOConfig
) -> dict[str, Tensor]:
    """[N] each: what losses read of a pair by itself (`PAIR_LOSSES`)."""
    tokens_2N = response_lengths(batch)
    chosen_N, rejected_N = logprobs_2N.chunk(2)
    chosen_mean_N, rejected_mean_N = (logprobs_2N / tokens_2N).chunk(2)
    found = {
        "chosen": chosen_N,
        "rejected": rejected_N,
        "difference": chosen_N - rejected_N,
        "chosen_mean": chosen_mean_N,
        "rejected_mean": rejected_mean_N,
        "margin": batch.margin_N,
    }
    if ref_logprobs_2N is None:
        return found
    ref_chosen_N, ref_rejected_N = ref_logprobs_2N.chunk(2)
    chosen_gain_N, rejected_gain_N = chosen_N - ref_chosen_N, rejected_N - ref_rejected_N
    if cfg.loss_type == "ipo" and cfg.ipo_length == "mean":
        ref_means_N = (ref_logprobs_2N / tokens_2N).chunk(2)
        log_ratio_N = (chosen_mean_N - ref_means_N[0]) - (rejected_mean_N - ref_means_N[1])
    else:
        log_ratio_N = changed_log_ratio(chosen_gain_N, rejected_gain_N, tokens_2N, cfg)
    return found | {
        "chosen_gain": chosen_gain_N,
        "rejected_gain": rejected_gain_N,
        "log_ratio": log_ratio_N,
    }


def changed_log_ratio(
    chosen_gain_N: Tensor, rejected_gain_N: Tensor, tokens_2N: Tensor, cfg: DPOConfig
) -> Tensor:
    """[N] h under the config's divergence, with its length term and its penalty."""
    of = DIVERGENCES[cfg.f_divergence]
    log_ratio_N = of(chosen_gain_N, cfg.f_alpha) - of(rejected_gain_N, cfg.f_alpha)
    if cfg.rdpo_alpha:
        log_ratio_N = log_ratio_N + length_term(
            *tokens_2N.chunk(2), beta=cfg.beta, alpha=cfg.rdpo_alpha
        )
    if cfg.dpop_lambda:
        log_ratio_N = log_ratio_N - positive_penalty(chosen_gain_N, weight=cfg.dpop_lambda)
    return log_ratio_N


def objective(
    logprobs_2N: Tensor,
    ref_logprobs_2N: Tensor | None,
    batch: PairBatch,
    cfg: DPOConfig,
    shared: Mapping[str, Tensor] = NOTHING,
) -> Objective:
    """A pair loss on summed log-probs, chosen first; implicit rewards are metrics (Detail D9).

    `ref_logprobs_2N` is None for a loss without a reference. `shared` has what a coupled loss reads
    of the whole minibatch (`shared_readings`). `ipo_length=mean` averages the loss's log-probs over
    their response's tokens instead; the implicit rewards stay sums.
    """
    seen = readings(logprobs_2N, ref_logprobs_2N, batch, cfg)
    loss_N = pair_loss(
        cfg.loss_type,
        {**seen, **shared},
        beta=cfg.beta,
        label_smoothing=cfg.label_smoothing,
        margin_scale=cfg.margin_scale,
        gamma_ratio=cfg.simpo_gamma_ratio,
        desirable_weight=cfg.desirable_weight,
        undesirable_weight=cfg.undesirable_weight,
    )
    terms = {"train": (1.0, Mean(loss_N.sum(), float(len(batch))))}
    terms |= _more_terms(logprobs_2N, batch, cfg)
    chosen_N, rejected_N = rewards(logprobs_2N, ref_logprobs_2N, batch, cfg)
    metrics = {
        "rewards/accuracies": Mean.of(chosen_N > rejected_N),
        "rewards/chosen": Mean.of(chosen_N),
        "rewards/rejected": Mean.of(rejected_N),
        "rewards/margins": Mean.of(chosen_N - rejected_N),
        "logps/chosen": Mean.of(seen["chosen"]),
        "logps/rejected": Mean.of(seen["rejected"]),
    }
    if "level" in kind_of(cfg).reads:
        metrics["rewards/level"] = Mean.of(shared["level"])
    return Objective(terms=terms, metrics=metrics)


def _more_terms(
    logprobs_2N: Tensor, batch: PairBatch, cfg: DPOConfig
) -> dict[str, tuple[float, Mean]]:
    """Likelihood of the chosen response, and XPO's optimism, where they weigh anything."""
    found: dict[str, tuple[float, Mean]] = {}
    count = counts(batch, cfg)
    if weight := likelihood_weight(cfg):
        nll_N = -logprobs_2N.chunk(2)[0]
        if cfg.rpo_nll == "response":
            nll_N = nll_N / batch.chosen_response_mask_NT.sum(1)
        found["nll"] = (weight, Mean(nll_N.sum(), count["nll"]))
    if cfg.xpo_alpha:
        designated_2N = batch.designated_N2.T.flatten()
        found["optimism"] = (
            cfg.xpo_alpha,
            Mean(logprobs_2N.masked_fill(~designated_2N, 0.0).sum(), count["optimism"]),
        )
    return found


class RunningMean(torch.nn.Module):
    """BCO's level: the mean of all implicit rewards of the steps so far, each counted once.

    A module, so that checkpoints hold it.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    def with_(self, total: float, count: float) -> float:
        """The mean, were `count` rewards of this sum observed."""
        return (float(self.total) + total) / (float(self.count) + count)

    def observe(self, total: float, count: float) -> None:
        self.total += total
        self.count += count


def facings(
    logprobs_2N: Tensor, ref_logprobs_2N: Tensor, cfg: DPOConfig
) -> tuple[Tensor, Tensor] | None:
    """[N] each, over a minibatch: what chosen and rejected responses face in AOT; else None."""
    if cfg.loss_type == "aot":
        (chosen_N, rejected_N), (ref_chosen_N, ref_rejected_N) = (
            x_2N.chunk(2) for x_2N in (logprobs_2N, ref_logprobs_2N)
        )
        found_N = facing(chosen_N - rejected_N, ref_chosen_N - ref_rejected_N)
        return found_N, torch.zeros_like(found_N)
    if cfg.loss_type == "aot_pair":
        chosen_gain_N, rejected_gain_N = (logprobs_2N - ref_logprobs_2N).chunk(2)
        return facing(chosen_gain_N, rejected_gain_N), facing(rejected_gain_N, chosen_gain_N)
    return None
