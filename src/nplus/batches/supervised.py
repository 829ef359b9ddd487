"""What is trained on as it stands: sequences, packed rows, preference pairs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from nplus.batches.base import Batch, check


@dataclass(frozen=True, slots=True)
class TokenBatch(Batch):
    """Right-padded sequences for next-token training; `loss_mask_BT` marks targets."""

    tokens_BT: Tensor
    mask_BT: Tensor
    loss_mask_BT: Tensor
    weight_BT: Tensor

    def __post_init__(self) -> None:
        check("mask_BT", self.mask_BT, self.tokens_BT.shape, torch.bool)
        check("loss_mask_BT", self.loss_mask_BT, self.tokens_BT.shape, torch.bool)
        check("weight_BT", self.weight_BT, self.tokens_BT.shape)

    def __len__(self) -> int:
        return self.tokens_BT.shape[0]

    @property
    def slots(self) -> int:
        """Tokens that a forward computes, padding included."""
        return self.tokens_BT.numel()


@dataclass(frozen=True, slots=True)
class PackedBatch(Batch):
    """Rows of several sequences each for next-token training, right-padded.

    A token sees its own sequence alone (`sees_BTT`), and positions begin anew with each, so every
    loss is that of the sequence by itself. `loss_mask_BT` is False at each first token, which
    nothing predicts.
    """

    tokens_BT: Tensor
    positions_BT: Tensor
    segments_BT: Tensor
    """0, 1, 2, ... in the sequences of a row, -1 in padding."""
    loss_mask_BT: Tensor
    weight_BT: Tensor

    def __post_init__(self) -> None:
        shape = self.tokens_BT.shape
        check("positions_BT", self.positions_BT, shape, torch.int64)
        check("segments_BT", self.segments_BT, shape, torch.int64)
        check("loss_mask_BT", self.loss_mask_BT, shape, torch.bool)
        check("weight_BT", self.weight_BT, shape)

    def __len__(self) -> int:
        return self.tokens_BT.shape[0]

    @property
    def mask_BT(self) -> Tensor:
        """[B, T] bool: no padding."""
        return self.segments_BT >= 0

    @property
    def slots(self) -> int:
        """Tokens that a forward computes, padding included."""
        return self.tokens_BT.numel()

    def sees_BTT(self) -> Tensor:
        """[B, T, T] bool: whether the token of row t may attend to the one of column u."""
        of_row, of_column = self.segments_BT[:, :, None], self.segments_BT[:, None, :]
        width = self.tokens_BT.shape[1]
        causal_TT = torch.ones(width, width, dtype=torch.bool, device=of_row.device).tril()
        own_TT = torch.eye(width, dtype=torch.bool, device=of_row.device)
        return (causal_TT & (of_column == of_row) & (of_row >= 0)) | own_TT


@dataclass(frozen=True, slots=True)
class PairBatch(Batch):
    """Preference pairs, two sequences each, both sides right-padded to one width (Detail A9).

    `chosen_NT`/`rejected_NT` hold query + response + EOS; the response masks start after the query.
    """

    chosen_NT: Tensor
    rejected_NT: Tensor
    chosen_mask_NT: Tensor
    rejected_mask_NT: Tensor
    chosen_response_mask_NT: Tensor
    rejected_response_mask_NT: Tensor
    margin_N: Tensor
    designated_N2: Tensor
    """Whether a term of its own is on the chosen, on the rejected response (XPO's optimism)."""

    def __post_init__(self) -> None:
        shape = self.chosen_NT.shape
        check("rejected_NT", self.rejected_NT, shape)
        for name in ("chosen_mask_NT", "rejected_mask_NT"):
            check(name, getattr(self, name), shape, torch.bool)
        for name in ("chosen_response_mask_NT", "rejected_response_mask_NT"):
            check(name, getattr(self, name), shape, torch.bool)
        check("margin_N", self.margin_N, shape[:1])
        check("designated_N2", self.designated_N2, (shape[0], 2), torch.bool)

    def __len__(self) -> int:
        return self.chosen_NT.shape[0]

    @property
    def slots(self) -> int:
        """Tokens that a forward of both sides computes, padding included."""
        return 2 * self.chosen_NT.numel()

    def stacked(self) -> tuple[Tensor, Tensor]:
        """`tokens_2NT, mask_2NT`: the chosen rows, then the rejected (one forward, Detail D1)."""
        return (
            torch.cat([self.chosen_NT, self.rejected_NT]),
            torch.cat([self.chosen_mask_NT, self.rejected_mask_NT]),
        )

    def stacked_response_mask(self) -> Tensor:
        """The response masks in the order of `stacked`."""
        return torch.cat([self.chosen_response_mask_NT, self.rejected_response_mask_NT])


@dataclass(frozen=True, slots=True)
class ReferredPairs(Batch):
    """Preference pairs, and the reference's log-probs of them, summed over response tokens."""

    pairs: PairBatch
    ref_chosen_N: Tensor
    ref_rejected_N: Tensor

    def __post_init__(self) -> None:
        check("ref_chosen_N", self.ref_chosen_N, (len(self),))
        check("ref_rejected_N", self.ref_rejected_N, (len(self),))

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def slots(self) -> int:
        return self.pairs.slots


@dataclass(frozen=True, slots=True)
class CoupledPairs(Batch):
    """Preference pairs, and what their loss reads of the whole minibatch, without gradient."""

    pairs: PairBatch | ReferredPairs
    level_N: Tensor
    """What rewards are measured against, the same for every pair."""
    chosen_facing_N: Tensor
    """What the chosen response is set against: a value of the same rank in the minibatch."""
    rejected_facing_N: Tensor

    def __post_init__(self) -> None:
        for name in ("level_N", "chosen_facing_N", "rejected_facing_N"):
            check(name, getattr(self, name), (len(self),))

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def slots(self) -> int:
        return self.pairs.slots


@dataclass(frozen=True, slots=True)
class SharedBatch:
    """Responses whose queries are read once: a row is a query, then responses to it.

    A token sees its own response and the query before it, nothing else (`sees_BTT`), and its
    position counts on from the query, so every score is that of query + response alone.
    """

    tokens_BT: Tensor
    positions_BT: Tensor
    segments_BT: Tensor
    """0 in the query, 1, 2, ... in its responses, -1 in padding."""
    ends_N: Tensor
    """Where each of N responses ends: row * T + column."""

    def __post_init__(self) -> None:
        check("positions_BT", self.positions_BT, self.tokens_BT.shape, torch.int64)
        check("segments_BT", self.segments_BT, self.tokens_BT.shape, torch.int64)
        check("ends_N", self.ends_N, (self.ends_N.shape[0],), torch.int64)

    def __len__(self) -> int:
        return self.ends_N.shape[0]

    @property
    def slots(self) -> int:
        """Tokens that a forward computes, padding included."""
        return self.tokens_BT.numel()

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on `device`."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def sees_BTT(self) -> Tensor:
        """[B, T, T] bool: whether the token of row t may attend to the one of column u.

        Padding sees itself alone, so no row of attention is empty.
        """
        of_row, of_column = self.segments_BT[:, :, None], self.segments_BT[:, None, :]
        width = self.tokens_BT.shape[1]
        causal_TT = torch.ones(width, width, dtype=torch.bool, device=of_row.device).tril()
        own_TT = torch.eye(width, dtype=torch.bool, device=of_row.device)
        known = (of_column == of_row) | (of_column == 0)
        return (causal_TT & known & (of_row >= 0)) | own_TT


@dataclass(frozen=True, slots=True)
class SharedPairBatch(SharedBatch):
    """Preference pairs whose queries are read once: `ends_N` has the ends of all chosen responses,
    then those of the rejected ones."""

    margin_N: Tensor

    def __post_init__(self) -> None:
        SharedBatch.__post_init__(self)
        check("ends_N", self.ends_N, (2 * len(self),), torch.int64)

    def __len__(self) -> int:
        return self.margin_N.shape[0]
