"""From prompts to what a policy is updated on: each type holds the one before it."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nplus.batches.base import Batch, check


@dataclass(frozen=True, slots=True)
class PromptBatch(Batch):
    """Left-padded prompts. `keys` are the prompts' ids, the names that sampling noise hangs on."""

    tokens_BP: Tensor
    mask_BP: Tensor
    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        check("mask_BP", self.mask_BP, self.tokens_BP.shape, torch.bool)
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
    """Updates that its weights have had."""

    def __post_init__(self) -> None:
        shape = self.tokens_BR.shape
        check("response_mask_BR", self.response_mask_BR, shape, torch.bool)
        check("logprobs_BR", self.logprobs_BR, shape)
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
    failed_B: Tensor
    """Verifiable rewards that gave no value, int64."""

    def __post_init__(self) -> None:
        shape = self.generation.tokens_BR.shape
        check("logprobs_BR", self.logprobs_BR, shape)
        check("ref_logprobs_BR", self.ref_logprobs_BR, shape)
        check("scores_B", self.scores_B, shape[:1])
        check("has_eos_B", self.has_eos_B, shape[:1], torch.bool)
        check("failed_B", self.failed_B, shape[:1], torch.long)

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
        check("values_BR", self.values_BR, shape)
        check("value_mask_BR", self.value_mask_BR, shape, torch.bool)

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
                check(field.name, getattr(self, field.name), shape)

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
        check("rival_scores_B", self.rival_scores_B, rows)
        check("rival_has_eos_B", self.rival_has_eos_B, rows, torch.bool)

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
                check(field.name, getattr(self, field.name), shape)
        check("kl_coef_B", self.kl_coef_B, shape[:1])

    def __len__(self) -> int:
        return self.tokens_BT.shape[0]
