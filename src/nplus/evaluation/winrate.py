"""Win rates from judged pairs (details H1, H3, H4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nplus.records import Judgement
from nplus.stats import MatchedWinRate, length_matched_win_rate, win_rate_of_scores


def summarise(judgements: Sequence[Judgement], *, length_bins: int = 10) -> dict[str, Any]:
    """One row of a win-rate table: rate with 95% interval (ties count half), lengths, and the rate
    at matched length with its trend and `length_bins` quantile bins (Detail H3).

    All judgements are of one policy against one opponent. Raises ValueError on an empty list.
    """
    if not judgements:
        raise ValueError("no judgements to summarise")
    ours = np.array([j.score for j in judgements])
    theirs = np.array([j.opponent_score for j in judgements])
    tokens = np.array([j.tokens for j in judgements], dtype=float)
    opponent_tokens = np.array([j.opponent_tokens for j in judgements], dtype=float)
    rate = win_rate_of_scores(ours, theirs)
    matched = length_matched_win_rate(ours, theirs, tokens, opponent_tokens, bins=length_bins)
    return {
        "wins": rate.wins,
        "ties": rate.ties,
        "losses": rate.losses,
        "n": rate.n,
        "rate": rate.rate,
        "low": rate.low,
        "high": rate.high,
        "tokens": float(tokens.mean()),
        "opponent_tokens": float(opponent_tokens.mean()),
        "length_matched": _matched(matched),
    }


def _matched(found: MatchedWinRate) -> dict[str, Any]:
    """The trend is `logit(win rate) = logit(rate) + slope * ln(length ratio)`; quirk Q15: bins are
    quantiles, with their counts."""
    return {
        "rate": found.rate,
        "low": found.low,
        "high": found.high,
        "slope": found.slope,
        "method": found.method,
        "extrapolated": found.extrapolated,
        "bins": [
            {
                "from": part.low,
                "to": part.high,
                "n": part.win_rate.n,
                "rate": part.win_rate.rate,
                "low": part.win_rate.low,
                "high": part.win_rate.high,
            }
            for part in found.bins
            if part.win_rate.n  # few different lengths leave gaps between quantiles
        ],
    }
