"""Frozen tensor batches passed between functions.

Axes, once for the whole project (a tensor's name ends with its axes):

    B  sequences (B = Q * G)     Q  prompts          G  samples per prompt      N  preference pairs
    P  prompt width              R  response width   T = P + R                  V  vocabulary

In rollouts prompts are left-padded and responses right-padded, so a response starts at column P.
Supervised and pair batches are right-padded throughout (Detail A9).
`tokens_BR[:, r]` is `tokens_BT[:, P + r]`; its log-prob comes from the logits at column
`P + r - 1`; `values_BR[:, r]` is V of the state *before* that token (Detail F1).
Masks are bool, True means real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from nplus.metrics import Mean


class Batch:
    """Row-wise operations shared by all frozen batches: the first axis of every tensor is rows."""

    __slots__ = ()

    def _map(self, fn: Any) -> Self:
        changed = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor | Batch | tuple):
                changed[field.name] = fn(value)
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on `device`."""
        return self._map(lambda x: x if isinstance(x, tuple) else x.to(device))

    @classmethod
    def cat(cls, parts: Sequence[Self], prepared: Callable[[Tensor, str], Tensor]) -> Self:
        """All rows of `parts`; `prepared(tensor, name of its field)` makes them fit each other."""

        def together(values: Sequence[Any], name: str) -> Any:
            if isinstance(values[0], Batch):
                return type(values[0]).cat(values, prepared)
            if isinstance(values[0], Tensor):
                return torch.cat([prepared(value, name) for value in values])
            return sum(values, ()) if isinstance(values[0], tuple) else values[0]

        return cls(
            **{
                field.name: together([getattr(part, field.name) for part in parts], field.name)
                for field in fields(cls)  # type: ignore[arg-type]
            }
        )

    def rows(self, index: Tensor) -> Self:
        """The rows at `index` (int64 tensor of positions, or bool mask), in that order."""
        picked = index.nonzero().flatten() if index.dtype == torch.bool else index
        listed = picked.tolist()

        def pick(value: Any) -> Any:
            if isinstance(value, Batch):
                return value.rows(picked)
            if isinstance(value, tuple):
                return tuple(value[i] for i in listed)
            return value[picked.to(value.device)]

        return self._map(pick)

    def split(self, size: int) -> Iterator[Self]:
        """Consecutive pieces of at most `size` rows."""
        for start in range(0, len(self), size):  # type: ignore[arg-type]
            stop = min(start + size, len(self))  # type: ignore[arg-type]
            yield self.rows(torch.arange(start, stop))


def _check(
    name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None
) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{name} has dtype {tensor.dtype}, expected {dtype}")


@dataclass(frozen=True, slots=True)
class TokenBatch(Batch):
    """Right-padded sequences for next-token training; `loss_mask_BT` marks targets."""

    tokens_BT: Tensor
    mask_BT: Tensor
    loss_mask_BT: Tensor
    weight_BT: Tensor

    def __post_init__(self) -> None:
        _check("mask_BT", self.mask_BT, self.tokens_BT.shape, torch.bool)
        _check("loss_mask_BT", self.loss_mask_BT, self.tokens_BT.shape, torch.bool)
        _check("weight_BT", self.weight_BT, self.tokens_BT.shape)

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
        _check("positions_BT", self.positions_BT, shape, torch.int64)
        _check("segments_BT", self.segments_BT, shape, torch.int64)
        _check("loss_mask_BT", self.loss_mask_BT, shape, torch.bool)
        _check("weight_BT", self.weight_BT, shape)

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
        _check("rejected_NT", self.rejected_NT, shape)
        for name in ("chosen_mask_NT", "rejected_mask_NT"):
            _check(name, getattr(self, name), shape, torch.bool)
        for name in ("chosen_response_mask_NT", "rejected_response_mask_NT"):
            _check(name, getattr(self, name), shape, torch.bool)
        _check("margin_N", self.margin_N, shape[:1])
        _check("designated_N2", self.designated_N2, (shape[0], 2), torch.bool)

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
        _check("ref_chosen_N", self.ref_chosen_N, (len(self),))
        _check("ref_rejected_N", self.ref_rejected_N, (len(self),))

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
            _check(name, getattr(self, name), (len(self),))

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def slots(self) -> int:
        return self.pairs.slots


@dataclass(frozen=True, slots=True)
class SharedPairBatch:
    """Preference pairs whose queries are read once: a row is a query, then all its responses.

    A token sees its own response and the query before it, nothing else (`sees_BTT`), and its
    position counts on from the query, so every score is that of query + response alone.
    """

    tokens_BT: Tensor
    positions_BT: Tensor
    segments_BT: Tensor
    """0 in the query, 1, 2, ... in its responses, -1 in padding."""
    ends_N2: Tensor
    """Where the chosen and the rejected response of a pair end: row * T + column."""
    margin_N: Tensor

    def __post_init__(self) -> None:
        _check("positions_BT", self.positions_BT, self.tokens_BT.shape, torch.int64)
        _check("segments_BT", self.segments_BT, self.tokens_BT.shape, torch.int64)
        _check("ends_N2", self.ends_N2, (len(self), 2), torch.int64)

    def __len__(self) -> int:
        return self.margin_N.shape[0]

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
class PromptBatch(Batch):
    """Left-padded prompts. `keys` are the prompts' ids, the names that sampling noise hangs on."""

    tokens_BP: Tensor
    mask_BP: Tensor
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        _check("mask_BP", self.mask_BP, self.tokens_BP.shape, torch.bool)
        if len(self.keys) != self.tokens_BP.shape[0]:
            raise ValueError(f"{len(self.keys)} keys for {self.tokens_BP.shape[0]} prompts")
        if len(self.keys) and not bool(self.mask_BP[:, -1].all()):
            raise ValueError("prompts must be left-padded: the last column holds padding")

    def __len__(self) -> int:
        return self.tokens_BP.shape[0]


@dataclass(frozen=True, slots=True)
class Generation(Batch):
    """What an engine returns; `response_mask_BR` is True through EOS."""

    prompts: PromptBatch
    tokens_BR: Tensor
    response_mask_BR: Tensor
    logprobs_BR: Tensor
    """The sampler's tempered log-probs of the sampled tokens (Details E5, E6)."""
    policy_version: int = 0

    def __post_init__(self) -> None:
        shape = self.tokens_BR.shape
        _check("response_mask_BR", self.response_mask_BR, shape, torch.bool)
        _check("logprobs_BR", self.logprobs_BR, shape)
        if len(self.prompts) != shape[0]:
            raise ValueError(f"{shape[0]} responses for {len(self.prompts)} prompts")

    def __len__(self) -> int:
        return self.tokens_BR.shape[0]

    def sequences(self) -> tuple[Tensor, Tensor]:
        """`tokens_BT, mask_BT` of prompt and response side by side."""
        return (
            torch.cat([self.prompts.tokens_BP, self.tokens_BR], dim=1),
            torch.cat([self.prompts.mask_BP, self.response_mask_BR], dim=1),
        )


@dataclass(frozen=True, slots=True)
class Rollout(Batch):
    """A generation scored: the trainer's log-probs, the reference's, and one score a sequence."""

    generation: Generation
    logprobs_BR: Tensor
    ref_logprobs_BR: Tensor
    scores_B: Tensor
    has_eos_B: Tensor

    def __post_init__(self) -> None:
        shape = self.generation.tokens_BR.shape
        _check("logprobs_BR", self.logprobs_BR, shape)
        _check("ref_logprobs_BR", self.ref_logprobs_BR, shape)
        _check("scores_B", self.scores_B, shape[:1])
        _check("has_eos_B", self.has_eos_B, shape[:1], torch.bool)

    def __len__(self) -> int:
        return len(self.generation)


@dataclass(frozen=True, slots=True)
class ValuedRollout(Batch):
    """A rollout with the critic's values; `value_mask_BR` has the slot after EOS (Detail F1)."""

    rollout: Rollout
    values_BR: Tensor
    value_mask_BR: Tensor

    def __post_init__(self) -> None:
        shape = self.rollout.generation.tokens_BR.shape
        _check("values_BR", self.values_BR, shape)
        _check("value_mask_BR", self.value_mask_BR, shape, torch.bool)

    def __len__(self) -> int:
        return len(self.rollout)


@dataclass(frozen=True, slots=True)
class PPOBatch(Batch):
    """What one PPO update trains on; advantages and returns are fixed before the first epoch."""

    tokens_BT: Tensor
    mask_BT: Tensor
    response_tokens_BR: Tensor
    response_mask_BR: Tensor
    value_mask_BR: Tensor
    old_logprobs_BR: Tensor
    old_values_BR: Tensor
    advantages_BR: Tensor
    returns_BR: Tensor

    def __post_init__(self) -> None:
        shape = self.response_tokens_BR.shape
        for field in fields(self):
            if field.name.endswith("_BR"):
                _check(field.name, getattr(self, field.name), shape)

    def __len__(self) -> int:
        return self.tokens_BT.shape[0]


@dataclass(frozen=True, slots=True)
class GroupRollout(Batch):
    """G responses to each prompt, those of one side by side, each beside a rival's score.

    The rival is the prompt's greedy response or one from a mixture; where none is asked for, its
    score is 0.
    """

    rollout: Rollout
    rival_scores_B: Tensor
    rival_has_eos_B: Tensor

    def __post_init__(self) -> None:
        rows = (len(self.rollout),)
        _check("rival_scores_B", self.rival_scores_B, rows)
        _check("rival_has_eos_B", self.rival_has_eos_B, rows, torch.bool)

    def __len__(self) -> int:
        return len(self.rollout)


@dataclass(frozen=True, slots=True)
class ReinforceBatch(Batch):
    """What an update without a critic trains on; advantages are fixed before the first pass."""

    tokens_BT: Tensor
    mask_BT: Tensor
    response_tokens_BR: Tensor
    response_mask_BR: Tensor
    """Tokens in the loss."""
    old_logprobs_BR: Tensor
    ref_logprobs_BR: Tensor
    advantages_BR: Tensor
    kl_coef_B: Tensor
    """The price of KL in the loss, in every row the same: a batch may cross to another process."""

    def __post_init__(self) -> None:
        shape = self.response_tokens_BR.shape
        for field in fields(self):
            if field.name.endswith("_BR"):
                _check(field.name, getattr(self, field.name), shape)
        _check("kl_coef_B", self.kl_coef_B, shape[:1])

    def __len__(self) -> int:
        return self.tokens_BT.shape[0]


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss told as sums and counts: `loss = sum over terms of weight * sum / count`.

    The counts are known from masks alone, so `training.update` can divide by those of the whole
    minibatch, whatever the micro-batches.
    """

    terms: Mapping[str, tuple[float, Mean]]
    metrics: Mapping[str, Mean]
