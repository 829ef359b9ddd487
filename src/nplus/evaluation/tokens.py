"""What tuning changed, token by token: the tuned model's first choice in the base's ranking (H5).

The paper's three classes, for the base's `top` = 4 first choices: rank 1 is unchanged, 2 to
`top` - 1 marginal, `top` or none of them shifted (quirk Q13: the last two share a colour). It is
the greedy first choice that is ranked, not the sampled token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from nplus.stats import wilson

KINDS = ("unchanged", "marginal", "shifted")


def base_ranks(tuned_BRV: Tensor, base_BRV: Tensor, mask_BR: Tensor) -> Tensor:
    """[B, R] int64: rank from 1 of the tuned model's first choice among the base's logits.

    Detail H5. 0 where `mask_BR` is False, as after EOS and in padding. Ids that share a logit share
    a rank, so equal models rank 1 everywhere.
    """
    first_BR1 = tuned_BRV.argmax(-1, keepdim=True)
    above_BR = (base_BRV > base_BRV.gather(-1, first_BR1)).sum(-1)
    return (above_BR + 1).masked_fill(~mask_BR, 0)


def kind(rank: int, top: int) -> str:
    """The paper's class of a rank (from 1); raises ValueError for one below 1."""
    if rank < 1:
        raise ValueError(f"ranks begin at 1, not {rank}")
    return KINDS[0] if rank == 1 else KINDS[1] if rank < top else KINDS[2]


def kind_shares(ranks: Sequence[Sequence[int]], top: int) -> dict[str, dict[str, float]]:
    """`kind -> {rate, low, high, n}` over all tokens; `ranks` holds one list per response.

    Tokens of one response are alike, so they count for less than as many apart: Wilson's interval
    with the effective sample size that the spread between responses gives (Kish 1965), between the
    number of responses and the number of tokens. Empty without tokens.
    """
    rows = [row for row in ranks if len(row)]
    found = {}
    for name in KINDS if rows else ():
        hits_B = np.array([sum(kind(rank, top) == name for rank in row) for row in rows], float)
        lengths_B = np.array([len(row) for row in rows], float)
        rate, n = hits_B.sum() / lengths_B.sum(), lengths_B.sum()
        effective = _effective(hits_B, lengths_B)
        _, low, high = wilson(rate * effective, effective)
        found[name] = {"rate": float(rate), "low": low, "high": high, "n": int(n)}
    return found


def _effective(hits_B: np.ndarray, lengths_B: np.ndarray) -> float:
    """Independent tokens that would tell as much: `p (1 - p)` over the variance of the ratio."""
    count, n = len(lengths_B), float(lengths_B.sum())
    rate = float(hits_B.sum()) / n
    if count < 2:
        return 1.0
    residual_B = hits_B - rate * lengths_B
    variance = count / (count - 1) * float((residual_B**2).sum()) / n**2
    if variance == 0.0:
        return n
    return float(np.clip(rate * (1 - rate) / variance, count, n))


def describe_ranks(ranks: Sequence[Sequence[int]], top: int) -> dict[str, Any]:
    """One row of a table: responses, tokens, mean rank, and the share of each kind."""
    flat = [rank for row in ranks for rank in row]
    return {
        "responses": len(ranks),
        "tokens": len(flat),
        "top": top,
        "mean_rank": float(np.mean(flat)) if flat else None,
        **kind_shares(ranks, top),
    }
