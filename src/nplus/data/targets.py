"""Sequences with a mark on each token that the loss is of; several may share a packed row."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from nplus.batches import PackedBatch, TokenBatch
from nplus.data.collate import padded
from nplus.data.tokens import Codec
from nplus.records import Demonstration, Dialogue, InputError


class TargetRow(NamedTuple):
    """Ids of a query and its response through EOS, and which of them the loss is of."""

    tokens: list[int]
    targets: list[bool]


Pack = list[TargetRow]
"""Sequences that stand side by side in one row."""


def _all(codec: Codec, row: Demonstration, query: list[int]) -> list[bool]:
    return [True] * len(query)


def _response(codec: Codec, row: Demonstration, query: list[int]) -> list[bool]:
    return [False] * len(query)


def _assistant(codec: Codec, row: Demonstration, query: list[int]) -> list[bool]:
    turns = row.turns if isinstance(row, Dialogue) else ()
    return codec.encode_turns(row.query, turns)[1]


OF_QUERY: dict[str, Callable[[Codec, Demonstration, list[int]], list[bool]]] = {
    "all": _all,
    "response": _response,
    "assistant": _assistant,
}
"""Which tokens of a query the loss is of, by `sft.loss_on`; of a response it is of all, EOS
included."""


def target_rows(codec: Codec, rows: Sequence[Demonstration], loss_on: str) -> list[TargetRow]:
    """Ids and targets of each demonstration.

    `assistant`: the assistant's turns, each with the token that ends it, and no other; InputError
    where a token reaches over the edge of a turn.
    """
    pairs = codec.encode_pairs([row.query for row in rows], [row.response for row in rows])
    found = []
    for row, (query, response) in zip(rows, pairs, strict=True):
        marks = OF_QUERY[loss_on](codec, row, query)
        found.append(TargetRow(query + response, marks + [True] * len(response)))
    return found


def target_batch(rows: Sequence[TargetRow], *, pad_id: int, multiple: int = 1) -> TokenBatch:
    """One sequence a row, right-padded (Detail A9); nothing predicts a first token."""
    tokens_BT, mask_BT = padded([row.tokens for row in rows], pad_id, multiple=multiple)
    loss_mask_BT = padded([row.targets for row in rows], 0, multiple=multiple)[0].bool()
    loss_mask_BT[:, :1] = False
    return TokenBatch(tokens_BT, mask_BT, loss_mask_BT & mask_BT, torch.ones(mask_BT.shape))


def pack(rows: Sequence[TargetRow], length: int) -> list[Pack]:
    """Rows of at most `length` tokens, each of whole sequences: the longest sequence first, each
    into the fullest row that takes it. InputError for a sequence that is longer."""
    longest = max((len(row.tokens) for row in rows), default=0)
    if longest > length:
        raise InputError(
            f"sft.max_length={length}: a conversation has {longest} tokens, and a packed row holds "
            f"whole ones; set sft.max_length={longest} or more, or lower data.max_query_tokens"
        )
    packs: list[Pack] = []
    room: list[tuple[int, int]] = []
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        size = len(row.tokens)
        found = bisect_left(room, (size, -1))
        if found == len(room):
            left, at = length, len(packs)
            packs.append([])
        else:
            left, at = room.pop(found)
        packs[at].append(row)
        insort(room, (left - size, at))
    return packs


def packed_batch(packs: Sequence[Pack], *, pad_id: int, multiple: int = 1) -> PackedBatch:
    """Packed rows, right-padded; positions begin anew with each sequence."""
    spans = [[len(row.tokens) for row in rows] for rows in packs]
    tokens = [[token for row in rows for token in row.tokens] for rows in packs]
    tokens_BT, _ = padded(tokens, pad_id, multiple=multiple)
    positions = [[at for size in sizes for at in range(size)] for sizes in spans]
    segments = [[n for n, size in enumerate(sizes) for _ in range(size)] for sizes in spans]
    targets = [[at > 0 and t for row in rows for at, t in enumerate(row.targets)] for rows in packs]
    return PackedBatch(
        tokens_BT=tokens_BT,
        positions_BT=padded(positions, 0, multiple=multiple)[0],
        segments_BT=padded(segments, -1, multiple=multiple)[0],
        loss_mask_BT=padded(targets, 0, multiple=multiple)[0].bool(),
        weight_BT=torch.ones(tokens_BT.shape),
    )
