"""Log-probs and scores of responses whose query is read once for all of them.

Eight responses of 30 tokens after a query of 200 are 440 tokens instead of 1,840. Each response
sees its query and itself, so the numbers are those of its own sequence but for rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nplus.batches import SharedBatch
from nplus.models.lm import hidden_at, plain_head, shared_inputs
from nplus.ops.logprobs import (
    entropy_from_logits,
    gather_logprobs,
    head_logprobs,
    head_token_logprobs,
)

WIDTH_MULTIPLE = 16
"""Widths are round, so that kernels are compiled for few."""
LONGEST_ROW = 2_048
"""Tokens of a row, or twice its query's: attention grows with their square, and what is gained by
one more response to a row is the query's tokens."""


def sharing(tokens_BT: Tensor, mask_BT: Tensor, response_BT: Tensor) -> SharedBatch:
    """Sequences laid out as a row per distinct query, with the responses behind it in their order;
    several rows where one would be longer than `LONGEST_ROW`.

    `mask_BT` is True where a token is real, `response_BT` where it is one of the response, which
    nothing but padding follows. `ends_N` has the sequences' order; an empty response ends where
    its query does.
    """
    query_BT = mask_BT & ~response_BT
    queries_BQ = _compact(tokens_BT.masked_fill(~query_BT, -1), query_BT)
    queries_UQ, line_B = queries_BQ.unique(dim=0, return_inverse=True)
    length_U = (queries_UQ >= 0).sum(1)
    written_B = response_BT.sum(1)
    room_U = (LONGEST_ROW - length_U).maximum(length_U)
    fit_U = (room_U // written_B.max().clamp(min=1)).clamp(min=1)
    before_B, slot_B = _places(line_B, written_B)
    part_B = slot_B // fit_U[line_B]
    if part_B.any():
        lines_2U, line_B = torch.stack([line_B, part_B]).unique(dim=1, return_inverse=True)
        queries_UQ, length_U = queries_UQ[lines_2U[0]], length_U[lines_2U[0]]
        before_B, slot_B = _places(line_B, written_B)
    start_B = length_U[line_B] + before_B
    needed = int(torch.max(start_B + written_B))
    width = -(-needed // WIDTH_MULTIPLE) * WIDTH_MULTIPLE

    rows_N, columns_N = response_BT.nonzero(as_tuple=True)
    nth_N = response_BT.cumsum(1)[rows_N, columns_N] - 1
    at_N = line_B[rows_N] * width + start_B[rows_N] + nth_N
    tokens_UT = tokens_BT.new_zeros(len(queries_UQ), width)
    positions_UT, segments_UT = torch.zeros_like(tokens_UT), torch.full_like(tokens_UT, -1)
    columns_Q = torch.arange(queries_UQ.shape[1], device=tokens_BT.device)
    real_UQ = queries_UQ >= 0
    tokens_UT[:, : len(columns_Q)] = queries_UQ.clamp(min=0)
    positions_UT[:, : len(columns_Q)] = columns_Q * real_UQ
    segments_UT[:, : len(columns_Q)] = real_UQ.long() - 1
    tokens_UT.view(-1)[at_N] = tokens_BT[rows_N, columns_N]
    positions_UT.view(-1)[at_N] = length_U[line_B[rows_N]] + nth_N
    segments_UT.view(-1)[at_N] = slot_B[rows_N] + 1
    last_B = torch.where(written_B > 0, start_B + written_B, length_U[line_B]) - 1
    return SharedBatch(tokens_UT, positions_UT, segments_UT, line_B * width + last_B)


def shared_response_logprobs(
    model: PreTrainedModel,
    tokens_BT: Tensor,
    mask_BT: Tensor,
    width: int,
    *,
    temperature: float | None,
) -> tuple[Tensor, Tensor]:
    """`response_logprobs`, each distinct prompt read once; masked slots are 0."""
    response_BT = mask_BT.clone()
    response_BT[:, :-width] = False
    batch = sharing(tokens_BT, mask_BT, response_BT)
    at = (batch.segments_BT > 0).nonzero(as_tuple=True)
    states_N, head, tokens_N = *_before(model, batch, at), batch.tokens_BT[at]
    if head is None:
        found = (
            _of_logits(states_N, tokens_N, temperature),
            entropy_from_logits(states_N.detach(), temperature=temperature),
        )
    else:
        found = head_logprobs(states_N, head.weight, head.bias, tokens_N, temperature=temperature)
    rows_N, columns_N, own_N = _own_places(batch, response_BT, at)
    shape, columns_N = (len(tokens_BT), width), columns_N - tokens_BT.shape[1] + width
    logprobs_BR, entropy_BR = (
        x_N.new_zeros(shape).index_put((rows_N, columns_N), x_N[own_N]) for x_N in found
    )
    return logprobs_BR, entropy_BR


def shared_sequence_logprobs(
    model: PreTrainedModel, tokens_BT: Tensor, mask_BT: Tensor, response_BT: Tensor
) -> Tensor:
    """`sequence_logprobs`, each distinct prompt read once."""
    batch = sharing(tokens_BT, mask_BT, response_BT)
    at = (batch.segments_BT > 0).nonzero(as_tuple=True)
    states_N, head, tokens_N = *_before(model, batch, at), batch.tokens_BT[at]
    if head is None:
        found_N = _of_logits(states_N, tokens_N, None)
    else:
        found_N = head_token_logprobs(states_N, head.weight, head.bias, tokens_N)
    rows_N, _, own_N = _own_places(batch, response_BT, at)
    return found_N.new_zeros(len(tokens_BT)).index_add(0, rows_N, found_N[own_N])


Places = tuple[Tensor, ...]
"""Rows and columns of N tokens."""


def _before(
    model: PreTrainedModel, batch: SharedBatch, at: Places
) -> tuple[Tensor, torch.nn.Linear | None]:
    """What predicts the tokens at `at`: [N, D] hidden states and the output layer, or [N, V]
    logits and None."""
    segments_UT, (rows_N, columns_N) = batch.segments_BT, at
    last_U = (segments_UT == 0).sum(1) - 1
    goes_on_N = segments_UT[rows_N, columns_N - 1] == segments_UT[at]
    before_N = torch.where(goes_on_N, columns_N - 1, last_U[rows_N])
    inputs, head = shared_inputs(model, batch), plain_head(model)
    if head is None:
        return model(**inputs).logits[rows_N, before_N], None
    kept, first_U = _columns(segments_UT, last_U)
    hidden_UWD = hidden_at(model, inputs, kept)
    at_N = rows_N * hidden_UWD.shape[1] + before_N - first_U[rows_N]
    return hidden_UWD.flatten(0, 1).index_select(0, at_N), head


def _of_logits(logits_NV: Tensor, tokens_N: Tensor, temperature: float | None) -> Tensor:
    return gather_logprobs(logits_NV[:, None], tokens_N[:, None], temperature=temperature)[:, 0]


def _own_places(batch: SharedBatch, response_BT: Tensor, at: Places) -> tuple[Tensor, ...]:
    """Rows and columns of the responses' tokens before they were laid out, and where in `at` each
    stands."""
    rows_N, columns_N = response_BT.nonzero(as_tuple=True)
    left_BT = response_BT.flip(1).cumsum(1).flip(1) - 1
    flat_N = batch.ends_N[rows_N] - left_BT[rows_N, columns_N]
    return rows_N, columns_N, torch.searchsorted(at[0] * batch.tokens_BT.shape[1] + at[1], flat_N)


def _columns(segments_UT: Tensor, last_U: Tensor) -> tuple[int | Tensor, Tensor]:
    """The columns from each query's last on that some row needs, and the first of each row."""
    width = segments_UT.shape[1]
    length_U = (segments_UT >= 0).sum(1)
    needed = int((length_U - last_U).max())
    needed += -needed % WIDTH_MULTIPLE
    if needed >= width:
        return width, torch.zeros_like(last_U)
    first_U = last_U.clamp(max=width - needed)
    return first_U[:, None] + torch.arange(needed, device=last_U.device), first_U


def _compact(tokens_BT: Tensor, kept_BT: Tensor) -> Tensor:
    """[B, Q]: the kept tokens of each row from column 0 on, no wider than the longest."""
    order_BT = (~kept_BT).long().argsort(dim=1, stable=True)
    return tokens_BT.gather(1, order_BT)[:, : int(kept_BT.sum(1).max())]


def _places(line_B: Tensor, written_B: Tensor) -> tuple[Tensor, Tensor]:
    """Of each response: tokens of the earlier ones of its line, and how many these are."""
    before, number, found = {}, {}, []
    for line, written in zip(line_B.tolist(), written_B.tolist(), strict=True):
        found.append((before.get(line, 0), number.get(line, 0)))
        before[line], number[line] = before.get(line, 0) + written, number.get(line, 0) + 1
    before_B, slot_B = torch.tensor(found, device=line_B.device).view(-1, 2).unbind(1)
    return before_B, slot_B
