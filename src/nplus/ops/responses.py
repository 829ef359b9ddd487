"""Where a response ends: masks and indices of sampled tokens.

Notation of the paper's code: `s` is the index of the last real token of a response, that is of
its first EOS, or R-1 when there is none. Policy quantities live on j = 0..s, value quantities
on j = 0..s+1 (Detail F1).
"""

from __future__ import annotations

import torch
from torch import Tensor


def first_true_index(mask_BR: Tensor) -> Tensor:
    """[B] int64: index of the first True along the last axis; R when there is none."""
    return (mask_BR.cumsum(-1) == 0).sum(-1)


def contains_eos(tokens_BR: Tensor, eos: int) -> Tensor:
    """[B] bool. Detail E8: looks for an EOS, not for a PAD: an EOS in the last slot counts."""
    return (tokens_BR == eos).any(-1)


def response_mask_BR(tokens_BR: Tensor, eos: int) -> Tensor:
    """[B, R] bool: True up to and including the first EOS; all True without one (Detail F1)."""
    first_B = first_true_index(tokens_BR == eos)
    steps_R = torch.arange(tokens_BR.shape[-1], device=tokens_BR.device)
    return steps_R <= first_B.unsqueeze(-1)


def truncate_after(tokens_BR: Tensor, eos: int, pad: int) -> Tensor:
    """[B, R]: every token after the first EOS becomes `pad`, the EOS stays (Detail E7)."""
    return tokens_BR.masked_fill(~response_mask_BR(tokens_BR, eos), pad)


def last_index_B(mask_BR: Tensor) -> Tensor:
    """[B] int64: `s`, the index of the last True of a prefix mask; -1 for an empty row."""
    return mask_BR.sum(-1) - 1


def value_mask_BR(mask_BR: Tensor) -> Tensor:
    """[B, R] bool: the response mask and one step more, j <= s+1, cut at R (Detail F1).

    Step s+1 is the state right after the EOS, the only state whose value target is the score.
    A row without any real token stays empty.
    """
    return torch.cat([mask_BR[:, :1], mask_BR[:, :-1]], dim=-1)
