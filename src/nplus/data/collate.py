"""Records to padded tensors: prompts left-padded, what is trained on right-padded (Detail A9)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from nplus.batches import (
    PairBatch,
    PromptBatch,
    ReferredPairs,
    SharedBatch,
    SharedPairBatch,
    TokenBatch,
)
from nplus.data.tokens import Codec
from nplus.records import Comparison, Demonstration, InputError

SequenceRow = tuple[list[int], list[int]]
"""Query ids, and response ids with EOS."""


WIDTH_MULTIPLE = 16
"""Widths the training loops round up to: few distinct shapes keep the kernels' caches small, which
on CPU halves the memory and gains a tenth to a third of the speed."""


class HasQuery(Protocol):
    """Any record with a query: Prompt, Demonstration, Completion, Comparison."""

    @property
    def id(self) -> str: ...

    @property
    def query(self) -> str: ...


class PairRow(NamedTuple):
    """Ids of a comparison: the query, both responses with EOS (but one that was cut off), and a
    margin (0 without one)."""

    query: list[int]
    chosen: list[int]
    rejected: list[int]
    margin: float = 0.0
    designated: tuple[bool, bool] = (False, False)
    """Whether XPO's optimism is on the chosen, on the rejected response."""
    ref_logprobs: tuple[float, float] | None = None
    """Of the chosen and the rejected under the reference, summed over tokens, where known."""


def padded(
    rows: Sequence[Sequence[int]],
    pad_id: int,
    *,
    left: bool = False,
    multiple: int = 1,
) -> tuple[Tensor, Tensor]:
    """`tokens_BT, mask_BT` as wide as the longest row, rounded up to a multiple.

    Detail A7: what holds the PAD id is masked, also inside a row; only a PAD that is EOS is there.
    """
    width = -(-max((len(row) for row in rows), default=0) // multiple) * multiple
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[i, span] = torch.tensor(row, dtype=torch.int64)
        mask[i, span] = True
    return tokens, mask & (tokens != pad_id)


def prompt_batch(
    codec: Codec, items: Sequence[HasQuery], keys: Sequence[str] | None = None
) -> PromptBatch:
    """Detail A4: queries padded left to the longest of the batch; keys are the records' ids.

    Under the rule `spaces_to` they are filled up with attended spaces instead.
    """
    rows = codec.encode_queries([item.query for item in items])
    for item, row in zip(items, rows, strict=True):
        if not row:
            raise InputError(f"prompt {item.id!r} has an empty query; a policy needs one token")
    width = codec.rules.spaces_to
    if width is not None:
        rows = [[codec.space_id] * (width - len(row)) + row for row in rows]
    tokens, mask = padded(rows, codec.pad_id, left=True)
    names = tuple(item.id for item in items) if keys is None else tuple(keys)
    return PromptBatch(tokens_BP=tokens, mask_BP=mask, keys=names)


def sequence_rows(codec: Codec, demonstrations: Sequence[Demonstration]) -> list[SequenceRow]:
    """Query ids and response ids of each demonstration; EOS ends every response (Detail A6)."""
    return codec.encode_pairs(
        [d.query for d in demonstrations], [d.response for d in demonstrations]
    )


def token_batch(
    rows: Sequence[SequenceRow],
    *,
    pad_id: int,
    loss_on: Literal["all", "response"] = "all",
    query_weight: float = 1.0,
    response_weight: float = 1.0,
    multiple: int = 1,
) -> TokenBatch:
    """Right-padded sequences (Detail A9); `loss_on="response"` leaves the query out of the loss.

    Detail C2: with `"all"` every real token is a target but the first, which nothing predicts.
    """
    tokens_BT, mask_BT = padded(
        [[*query, *response] for query, response in rows], pad_id, multiple=multiple
    )
    is_response_BT = _response_mask(mask_BT, [len(query) for query, _ in rows])
    loss_mask_BT = (mask_BT if loss_on == "all" else is_response_BT).clone()
    loss_mask_BT[:, :1] = False
    weight_BT = torch.where(is_response_BT, response_weight, query_weight)
    return TokenBatch(tokens_BT, mask_BT, loss_mask_BT, weight_BT.float())


def _response_mask(mask_BT: Tensor, query_lengths: Sequence[int]) -> Tensor:
    columns_T = torch.arange(mask_BT.shape[1])
    starts_B = torch.tensor(query_lengths, dtype=torch.int64)
    return mask_BT & (columns_T[None, :] >= starts_B[:, None])


def pair_rows(
    codec: Codec,
    comparisons: Sequence[Comparison],
    designated: str | None = None,
    *,
    always_eos: bool = False,
) -> list[PairRow]:
    """Ids of each comparison, the preferred response first, and its margin.

    A response that was cut off gets no EOS: rejecting one it never wrote would unteach to end. It
    gets one with `always_eos`, for a model that reads there (Detail D4).
    `designated` names the policy whose responses are `PairRow.designated`.
    """
    queries = [c.query for c in comparisons] * 2
    rows = codec.encode_pairs(
        queries, [*(c.chosen for c in comparisons), *(c.rejected for c in comparisons)]
    )
    chosen, rejected = rows[: len(comparisons)], rows[len(comparisons) :]
    return [
        PairRow(
            query,
            _as_drawn(codec, first, always_eos or c.ended[c.choice]),
            _as_drawn(codec, second, always_eos or c.ended[1 - c.choice]),
            margin=c.margin or 0.0,
            designated=_of_policy(c, designated),
        )
        for c, (query, first), (_, second) in zip(comparisons, chosen, rejected, strict=True)
    ]


def _as_drawn(codec: Codec, ids: list[int], ended: bool) -> list[int]:
    """Without the EOS that a response never wrote; an empty one keeps its only token."""
    return ids[:-1] if not ended and len(ids) > 1 and ids[-1] == codec.eos_id else ids


def _of_policy(comparison: Comparison, policy: str | None) -> tuple[bool, bool]:
    """Whether a policy wrote the chosen, the rejected response."""
    first, second = (name == policy for name in comparison.policies)
    return (second, first) if comparison.choice else (first, second)


def require_margins(comparisons: Sequence[Comparison], key: str, mend: str) -> None:
    """InputError unless every comparison has a finite margin; `key` is what asks for it."""
    for c in comparisons:
        if c.margin is None or not math.isfinite(c.margin):
            raise InputError(
                f"{key}: comparison {c.id!r} has margin {c.margin}; give each a finite `margin`, "
                "the preferred response's score less the other's, or `score_chosen` and "
                f"`score_rejected`, or {mend}"
            )


def pair_batch(rows: Sequence[PairRow], *, pad_id: int, multiple: int = 1) -> PairBatch:
    """Both sides of every pair right-padded to one width (Detail A9).

    Detail A10: the response masks begin where the query ends and hold the EOS.
    """
    lengths = [len(row.query) for row in rows]
    sides = [[*row.query, *row.chosen] for row in rows] + [
        [*row.query, *row.rejected] for row in rows
    ]
    tokens_2NT, mask_2NT = padded(sides, pad_id, multiple=multiple)
    response_2NT = _response_mask(mask_2NT, lengths * 2)
    n = len(rows)
    return PairBatch(
        chosen_NT=tokens_2NT[:n],
        rejected_NT=tokens_2NT[n:],
        chosen_mask_NT=mask_2NT[:n],
        rejected_mask_NT=mask_2NT[n:],
        chosen_response_mask_NT=response_2NT[:n],
        rejected_response_mask_NT=response_2NT[n:],
        margin_N=torch.tensor([row.margin for row in rows], dtype=torch.float32),
        designated_N2=torch.tensor([row.designated for row in rows], dtype=torch.bool).view(-1, 2),
    )


def referred_pairs(rows: Sequence[PairRow], *, pad_id: int, multiple: int = 1) -> ReferredPairs:
    """`pair_batch` of rows whose reference log-probs are known."""
    known = torch.tensor([row.ref_logprobs for row in rows], dtype=torch.float64)
    pairs = pair_batch(rows, pad_id=pad_id, multiple=multiple)
    return ReferredPairs(pairs, known[:, 0].contiguous(), known[:, 1].contiguous())


def shared_batch(
    rows: Sequence[SequenceRow], *, pad_id: int, multiple: int = 1, longest: float = math.inf
) -> SharedBatch:
    """A row per distinct query: the query, then every distinct response to it, once.

    Where a row would have more than `longest` tokens, and more than twice its query's, the further
    responses are in a row of their own, behind the query again: attention grows with its square.
    """
    lines: list[_Line] = []
    current: dict[tuple[int, ...], int] = {}
    ends: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[int, int]] = {}
    keys = [(tuple(query), _unpadded(response, pad_id)) for query, response in rows]
    for query, response in keys:
        if (query, response) in ends:
            continue
        at = current.get(query)
        if at is None or not lines[at].has_room(len(query), len(response), longest):
            at = current[query] = len(lines)
            lines.append(_Line(list(query), list(range(len(query))), [0] * len(query)))
        ends[query, response] = at, lines[at].add(response, len(query))
    tokens_BT, _ = padded([line.tokens for line in lines], pad_id, multiple=multiple)
    width = tokens_BT.shape[1]
    return SharedBatch(
        tokens_BT=tokens_BT,
        positions_BT=padded([line.positions for line in lines], 0, multiple=multiple)[0],
        segments_BT=padded([line.segments for line in lines], -1, multiple=multiple)[0],
        ends_N=torch.tensor([at * width + column for at, column in map(ends.__getitem__, keys)]),
    )


@dataclass(slots=True)
class _Line:
    """A query, and responses behind it."""

    tokens: list[int]
    positions: list[int]
    segments: list[int]

    def has_room(self, query: int, response: int, longest: float) -> bool:
        alone = len(self.tokens) == query
        return alone or len(self.tokens) + response <= max(longest, 2 * query)

    def add(self, response: tuple[int, ...], query: int) -> int:
        """The column of its last token; the query's, of a response without tokens."""
        if not response:
            return query - 1
        self.tokens += response
        self.positions += range(query, query + len(response))
        self.segments += [self.segments[-1] + 1] * len(response)
        return len(self.tokens) - 1


def shared_pair_batch(
    rows: Sequence[PairRow], *, pad_id: int, multiple: int = 1
) -> SharedPairBatch:
    """Pairs as `shared_batch` lays their responses out."""
    sides = [(row.query, side) for row in rows for side in (row.chosen, row.rejected)]
    found = shared_batch(sides, pad_id=pad_id, multiple=multiple)
    return SharedPairBatch(
        tokens_BT=found.tokens_BT,
        positions_BT=found.positions_BT,
        segments_BT=found.segments_BT,
        ends_N=found.ends_N.view(-1, 2).T.flatten(),
        margin_N=torch.tensor([row.margin for row in rows], dtype=torch.float32),
    )


def _unpadded(response: Sequence[int], pad_id: int) -> tuple[int, ...]:
    """Without what a mask would hide: nothing, unless PAD is EOS (Detail A7)."""
    return tuple(token for token in response if token != pad_id)


def text_batch(
    codec: Codec, texts: Sequence[tuple[str, str]], *, multiple: int = 1
) -> tuple[Tensor, Tensor]:
    """`tokens_BT, mask_BT` of (query, response) texts for a scorer: right-padded, EOS last."""
    rows = codec.encode_pairs([query for query, _ in texts], [text for _, text in texts])
    return padded(
        [[*query, *response] for query, response in rows], codec.pad_id, multiple=multiple
    )


def check_seam(codec: Codec, query: str, response: str) -> bool:
    """Detail A5: whether joining ids equals tokenising the joined text (EOS left aside)."""
    joined = codec.encode_query(query + codec.response_text(response))
    return codec.encode_query(query) + codec.encode_response(response)[:-1] == joined
