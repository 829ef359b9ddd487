"""Forwards of the training stages that compute no more than a loss reads.

Rows are moved right, so that what is read of them stands in the last columns: there the last block
runs alone, and the vocabulary head on the tokens in the loss alone, a piece at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nplus.algorithms import supervised
from nplus.batches import Objective, PackedBatch, PairBatch, TokenBatch
from nplus.data.collate import PairRow, pair_batch, shared_pair_batch
from nplus.models.attention import NAME as BATCHED
from nplus.models.lm import (
    hidden_at,
    plain_head,
    response_hidden,
    sequence_logits,
    sequence_logprobs,
    shared_inputs,
    trailing_hidden,
)
from nplus.models.scalar import ScalarModel
from nplus.models.shared import shared_sequence_logprobs
from nplus.ops.logprobs import head_nll, head_token_logprobs
from nplus.ops.losses import target_mask
from nplus.records import InputError


def token_objective(model: PreTrainedModel, batch: TokenBatch) -> Objective:
    """Weighted cross-entropy over the loss mask (Detail C2)."""
    head = plain_head(model)
    if head is None:
        return supervised.objective(sequence_logits(model, batch.tokens_BT, batch.mask_BT), batch)
    targets_BT = target_mask(batch.mask_BT, batch.loss_mask_BT)
    mask_BT, tokens_BT, targets_BT, weight_BT = right_aligned(
        model, batch.mask_BT, batch.tokens_BT, targets_BT, batch.weight_BT
    )
    at = targets_BT.nonzero(as_tuple=True)
    hidden_ND = _predicting(model, tokens_BT, mask_BT, at)
    nll = head_nll(hidden_ND, head.weight, head.bias, tokens_BT[at], weight_BT[at])
    return supervised.summed(nll, batch)


def packed_objective(model: PreTrainedModel, batch: PackedBatch) -> Objective:
    """The same of sequences that share rows, each as if it stood alone."""
    head = plain_head(model)
    inputs = shared_inputs(model, batch)
    if head is None:
        return supervised.objective(model(**inputs).logits, batch)
    rows_N, columns_N = target_mask(batch.mask_BT, batch.loss_mask_BT).nonzero(as_tuple=True)
    width = batch.tokens_BT.shape[1]
    hidden_BTD = hidden_at(model, inputs, width)
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, rows_N * width + columns_N - 1)
    at = rows_N, columns_N
    nll = head_nll(hidden_ND, head.weight, head.bias, batch.tokens_BT[at], batch.weight_BT[at])
    return supervised.summed(nll, batch)


def pair_logprobs(model: PreTrainedModel, batch: PairBatch, *, shared: bool = False) -> Tensor:
    """[2N] float32: summed log-probs of the responses, EOS included, the chosen ones first.

    `shared`: each query is read once.
    """
    if shared:
        return shared_sequence_logprobs(model, *batch.stacked(), batch.stacked_response_mask())
    head = plain_head(model)
    if head is None:
        return sequence_logprobs(model, *batch.stacked(), batch.stacked_response_mask())
    tokens_BT, mask_BT = batch.stacked()
    mask_BT, tokens_BT, response_BT = right_aligned(
        model, mask_BT, tokens_BT, batch.stacked_response_mask()
    )
    at = response_BT.nonzero(as_tuple=True)
    hidden_ND = _predicting(model, tokens_BT, mask_BT, at)
    logprobs_N = head_token_logprobs(hidden_ND, head.weight, head.bias, tokens_BT[at])
    return logprobs_N.new_zeros(len(tokens_BT)).index_add(0, at[0], logprobs_N)


def pair_scores(model: ScalarModel, batch: PairBatch) -> Tensor:
    """[2N] float32: scores at the last real token (Detail D4), the chosen responses' first."""
    tokens_BT, mask_BT = batch.stacked()
    if not _gains(model.network):
        return model.scores(tokens_BT, mask_BT)
    mask_BT, tokens_BT = right_aligned(model.network, mask_BT, tokens_BT)
    width = model.tokens_back + 1
    return model.head(trailing_hidden(model.network, tokens_BT, mask_BT, width)[:, 0])


@torch.no_grad()
def require_apart(
    model: PreTrainedModel | ScalarModel, row: PairRow, pad_id: int, key: str
) -> None:
    """Raises InputError where the network ignores a mask that parts two responses; `key` is the
    setting that lets them share a reading of their query."""
    model.eval()  # dropout would part them too
    batches = (collate([row], pad_id=pad_id) for collate in (pair_batch, shared_pair_batch))
    separate, laid_out = (batch.to(model.device) for batch in batches)
    if isinstance(model, ScalarModel):
        network = model.network
        apart, together = pair_scores(model, separate), model.shared_scores(laid_out)
    else:
        network = model
        apart, together = (pair_logprobs(model, separate, shared=x) for x in (False, True))
    if not torch.allclose(apart, together, rtol=1e-2, atol=1e-2):
        raise InputError(
            f"{key}=shared: {type(network).__name__} reads a response differently beside another "
            f"one; set {key}=separate"
        )


def right_aligned(
    model: PreTrainedModel, mask_BT: Tensor, *others_BT: Tensor
) -> tuple[Tensor, ...]:
    """`mask_BT, *others_BT`, each row turned until its last real token is in the last column.

    Positions count real tokens (Detail B6), so nothing else changes. A model that counts slots, or
    runs its last block on all columns anyway, gets the rows as they are.
    """
    if not _gains(model):
        return mask_BT, *others_BT
    width = mask_BT.shape[1]
    empty_B = mask_BT.flip(-1).int().argmax(-1)
    columns_T = torch.arange(width, device=mask_BT.device)
    index_BT = (columns_T - empty_B[:, None]) % width
    return tuple(x_BT.gather(1, index_BT) for x_BT in (mask_BT, *others_BT))


def _gains(model: PreTrainedModel) -> bool:
    counts_tokens = getattr(model, "nplus_positions", "real") == "real"
    return counts_tokens and model.config._attn_implementation == BATCHED


def _predicting(
    model: PreTrainedModel, tokens_BT: Tensor, mask_BT: Tensor, at: tuple[Tensor, Tensor]
) -> Tensor:
    """[N, D]: the hidden states that predict the tokens at `at`, their rows and columns."""
    rows_N, columns_N = at
    start = max(1, int(columns_N.min())) if len(columns_N) else tokens_BT.shape[1] - 1
    width = tokens_BT.shape[1] - start
    hidden_BRD = response_hidden(model, tokens_BT, mask_BT, width)
    return hidden_BRD.flatten(0, 1).index_select(0, rows_N * width + columns_N - start)
