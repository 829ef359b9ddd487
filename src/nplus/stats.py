"""Intervals, win rates, calibration and comparison at matched length.

Every function that draws takes its seed. Intervals are two-sided at `level` (0.95 by default).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special
from scipy import stats as distributions

_BLOCK = 1 << 22
_NEWTON_STEPS = 100
_SEPARATED = 15.0


class Interval(NamedTuple):
    """An estimate and its bounds."""

    value: float
    low: float
    high: float


def _z(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level lies in (0, 1), not {level}")
    return float(special.ndtri(0.5 + level / 2.0))


def _vector(x: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} has one axis, not shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return values


def _same_length(**vectors: np.ndarray) -> None:
    if len({len(x) for x in vectors.values()}) > 1:
        raise ValueError(f"lengths differ: { {name: len(x) for name, x in vectors.items()} }")


# --- one proportion, two proportions, means ---------------------------------------------------


def _score_bounds(rate: float, n: float, tie_share: float, level: float) -> tuple[float, float]:
    """Roots p of `n (rate - p)^2 = z^2 (p (1 - p) - tie_share / 4)`."""
    c = _z(level) ** 2 / n
    root = math.sqrt(max(c * c * (1 - tie_share) + c * (4 * rate * (1 - rate) - tie_share), 0.0))
    low, high = (2 * rate + c - root) / (2 + 2 * c), (2 * rate + c + root) / (2 + 2 * c)
    return min(max(low, 0.0), rate), max(min(high, 1.0), rate)


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Wilson (1927) score interval of a proportion; (NaN, 0, 1) for n = 0.

    Raises ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    return Interval(successes / n, *_score_bounds(successes / n, n, 0.0, level))


def newcombe(s1: float, n1: float, s2: float, n2: float, level: float = 0.95) -> Interval:
    """`s1/n1 - s2/n2` of independent samples: hybrid score interval (Newcombe 1998, method 10)."""
    a, b = wilson(s1, n1, level), wilson(s2, n2, level)
    if n1 == 0 or n2 == 0:
        return Interval(math.nan, -1.0, 1.0)
    difference = a.value - b.value
    down = math.hypot(a.value - a.low, b.high - b.value)
    up = math.hypot(a.high - a.value, b.value - b.low)
    return Interval(difference, difference - down, difference + up)


def weighted_rate(parts: Sequence[tuple[float, float, float]], level: float = 0.95) -> Interval:
    """`sum(w * s / n) / sum(w)` over independent samples `(w, s, n)`; a weight is positive.

    Distances to the score bounds add as standard errors do: Wilson's interval for one sample
    (Zou, Huang and Zhang 2009; `newcombe` is the same for a difference). NaN if some n is 0.
    """
    whole = math.fsum(w for w, _, _ in parts)
    rates = [(w / whole, wilson(s, n, level)) for w, s, n in parts]
    value = math.fsum(w * rate.value for w, rate in rates)
    down = math.hypot(*(w * (rate.value - rate.low) for w, rate in rates))
    up = math.hypot(*(w * (rate.high - rate.value) for w, rate in rates))
    return Interval(value, value - down, value + up)


def bootstrap_mean(
    values: ArrayLike, seed: int, level: float = 0.95, draws: int = 10_000
) -> Interval:
    """Mean with a percentile bootstrap interval; (NaN, NaN, NaN) without values."""
    x = _vector(values, "values")
    _z(level)
    if len(x) == 0:
        return Interval(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(x))
    blocks = [min(rows, draws - done) for done in range(0, draws, rows)]
    means = [x[rng.integers(0, len(x), size=(k, len(x)))].mean(axis=1) for k in blocks]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high))


def mean_difference(
    a: ArrayLike, b: ArrayLike, paired: bool = True, level: float = 0.95
) -> Interval:
    """`mean(a) - mean(b)` with a t interval: paired, or Welch's for independent samples.

    Infinite bounds where a sample has fewer than two values. Raises ValueError when paired
    samples differ in length.
    """
    x, y = _vector(a, "a"), _vector(b, "b")
    if paired:
        _same_length(a=x, b=y)
    if len(x) == 0 or len(y) == 0:
        return Interval(math.nan, -math.inf, math.inf)
    difference = float(x.mean() - y.mean())
    if min(len(x), len(y)) < 2:
        return Interval(difference, -math.inf, math.inf)
    if paired:
        error, freedom = float(np.std(x - y, ddof=1)) / math.sqrt(len(x)), len(x) - 1.0
    else:
        u, v = float(np.var(x, ddof=1)) / len(x), float(np.var(y, ddof=1)) / len(y)
        error, spread = math.sqrt(u + v), u * u / (len(x) - 1) + v * v / (len(y) - 1)
        freedom = (u + v) ** 2 / spread if spread else 1.0
    half = float(distributions.t.ppf(0.5 + level / 2, freedom)) * error
    return Interval(difference, difference - half, difference + half)


# --- win rates --------------------------------------------------------------------------------


def mean_correlation(rows_a: Sequence[ArrayLike], rows_b: Sequence[ArrayLike]) -> float | None:
    """Mean over rows of Pearson's correlation within each, as the length bias of a reward model is
    given (arXiv 2405.07863, Figure 4). Rows in which either side is constant have none; None where
    no row has one."""
    found = []
    for a, b in zip(rows_a, rows_b, strict=True):
        x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
        if x.std() > 0 and y.std() > 0:
            found.append(float(np.corrcoef(x, y)[0, 1]))
    return float(np.mean(found)) if found else None


@dataclass(frozen=True, slots=True)
class WinRate:
    """`rate` = (wins + ties / 2) / n with its interval."""

    wins: int
    ties: int
    losses: int
    n: int
    rate: float
    low: float
    high: float


def win_rate(wins: int, ties: int, losses: int, level: float = 0.95) -> WinRate:
    """Win rate with ties as half, and a score interval; (NaN, 0, 1) without comparisons.

    An outcome in {0, 1/2, 1} with mean p and tie share t has variance `p (1 - p) - t / 4`, so the
    interval solves `n (rate - p)^2 = z^2 (p (1 - p) - t / 4)` as Wilson's does for t = 0. t is
    set to the lower Wilson bound of the observed tie share: exactly Wilson without ties,
    narrower with many, never empty when everything is a tie.
    """
    if min(wins, ties, losses) < 0:
        raise ValueError(f"counts are not negative: {wins}, {ties}, {losses}")
    n = wins + ties + losses
    if n == 0:
        return WinRate(0, 0, 0, 0, math.nan, 0.0, 1.0)
    rate = (wins + ties / 2) / n
    low, high = _score_bounds(rate, n, wilson(ties, n, level).low, level)
    return WinRate(wins, ties, losses, n, rate, low, high)


def win_rate_of_scores(scores_a: ArrayLike, scores_b: ArrayLike, level: float = 0.95) -> WinRate:
    """Win rate of a over b, item by item; equal scores tie."""
    a, b = _vector(scores_a, "scores_a"), _vector(scores_b, "scores_b")
    _same_length(scores_a=a, scores_b=b)
    return _win_rate_of_outcomes((np.sign(a - b) + 1) / 2, level)


def _win_rate_of_outcomes(outcomes: np.ndarray, level: float) -> WinRate:
    wins, losses = int((outcomes == 1).sum()), int((outcomes == 0).sum())
    return win_rate(wins, len(outcomes) - wins - losses, losses, level)


# --- calibration ------------------------------------------------------------------------------


class CalibrationBin(NamedTuple):
    """Pairs with low < |margin| <= high; `expected` is sigmoid of the bin's centre."""

    low: float
    high: float
    n: int
    accuracy: float
    expected: float
    confidence: float


class Calibration(NamedTuple):
    """`ece`: mean over binned pairs of |accuracy - confidence|; `outside` pairs are in no bin."""

    bins: tuple[CalibrationBin, ...]
    ece: float
    outside: int


def calibration(
    margins: ArrayLike, correct: ArrayLike | None = None, width: float = 0.5
) -> Calibration:
    """Accuracy of a reward model by size of its margin (Detail D8).

    `margins` are signed, chosen minus rejected; `correct` (bool) defaults to `margins > 0`. Bins
    are (0, w], (w, 2w], ... up to the 99.5 % quantile of the *signed* margin rounded to a
    multiple of w, and at least one. `confidence` is the mean sigmoid(|margin|) of a bin's pairs.
    """
    signed = _vector(margins, "margins")
    right = signed > 0 if correct is None else np.asarray(correct, dtype=bool)
    _same_length(margins=signed, correct=right)
    if len(signed) == 0:
        return Calibration((), math.nan, 0)
    size = np.abs(signed)
    count = max(1, round(float(np.quantile(signed, 0.995)) / width))
    index = np.ceil(size / width).astype(int) - 1
    bins, gap, binned = [], 0.0, 0
    for k in range(count):
        chosen = index == k
        n, centre = int(chosen.sum()), (k + 0.5) * width
        accuracy = float(right[chosen].mean()) if n else math.nan
        confidence = float(special.expit(size[chosen]).mean()) if n else math.nan
        expected = float(special.expit(centre))
        bins.append(CalibrationBin(k * width, (k + 1) * width, n, accuracy, expected, confidence))
        gap, binned = gap + (n * abs(accuracy - confidence) if n else 0.0), binned + n
    ece = gap / binned if binned else math.nan
    return Calibration(tuple(bins), ece, len(signed) - binned)


# --- comparison at matched length -------------------------------------------------------------


class LengthBin(NamedTuple):
    """Items with `low <= ln(len_a / len_b) <= high` (half-open but for the last bin)."""

    low: float
    high: float
    win_rate: WinRate


@dataclass(frozen=True, slots=True)
class MatchedWinRate:
    """Win rate at equal length: `rate` = sigmoid(intercept) of outcome on ln(len_a / len_b).

    `method` says how it came about: "logistic"; "firth" (penalised, for separated outcomes);
    "raw" (all lengths equal: the plain win rate); "unidentified" (hardly more than one length
    ratio, and not 1, or no data: rate NaN, bounds 0 and 1). `extrapolated`: equal length lies
    outside the observed range.
    """

    rate: float
    low: float
    high: float
    slope: float
    n: int
    method: str
    extrapolated: bool
    raw: WinRate
    bins: tuple[LengthBin, ...]


_Fit = tuple[np.ndarray, np.ndarray]


def _logistic(design: np.ndarray, outcomes: np.ndarray, *, firth: bool) -> _Fit | None:
    """(coefficients, covariance), or None where they diverge. Newton; outcomes in [0, 1]."""
    beta = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = special.expit(design @ beta)
        weights = p * (1 - p)
        information = design.T @ (weights[:, None] * design)
        if np.linalg.cond(information) > 1e14:
            return None
        inverse = np.linalg.inv(information)
        residual = outcomes - p
        if firth:
            leverage = weights * np.einsum("ni,ij,nj->n", design, inverse, design)
            residual = residual + leverage * (0.5 - p)
        step = inverse @ (design.T @ residual)
        beta = beta + step / max(1.0, float(np.abs(step).max()) / 2.0)
        if not firth and np.abs(design @ beta).max() > _SEPARATED:
            return None
        if np.abs(step).max() < 1e-10:
            break
    else:
        return None
    if firth:
        return beta, inverse
    # Ties make the outcome less variable than a coin: the sandwich measures that, the information
    # matrix would not.
    scores = design * (outcomes - p)[:, None]
    correction = len(design) / max(len(design) - design.shape[1], 1)
    return beta, correction * inverse @ (scores.T @ scores) @ inverse


def _trend(x: np.ndarray, y: np.ndarray) -> tuple[_Fit | None, str]:
    """Intercept and slope of y on x: by maximum likelihood, penalised where that diverges."""
    spread = float(np.ptp(x))
    if spread <= 1e-9 * float(np.abs(x).max()):
        return None, "unidentified"
    scale = np.array([1.0, 1.0 / spread])
    design = np.column_stack([np.ones_like(x), x]) * scale
    fit, method = _logistic(design, y, firth=False), "logistic"
    if fit is None:
        fit, method = _logistic(design, y, firth=True), "firth"
    if fit is None:
        return None, "unidentified"
    return (fit[0] * scale, fit[1] * np.outer(scale, scale)), method


def _length_bins(
    outcomes: np.ndarray, log_ratio: np.ndarray, bins: int, level: float
) -> tuple[LengthBin, ...]:
    # Quirk Q15: equally spaced edges leave the last bin to the maximum alone; quantiles do not.
    edges = np.unique(np.quantile(log_ratio, np.linspace(0, 1, bins + 1)))
    index = np.clip(np.searchsorted(edges, log_ratio, side="right") - 1, 0, max(len(edges) - 2, 0))
    bounds = zip(edges, edges[1:] if len(edges) > 1 else edges, strict=False)
    return tuple(
        LengthBin(float(low), float(high), _win_rate_of_outcomes(outcomes[index == k], level))
        for k, (low, high) in enumerate(bounds)
    )


def matched_win_rate(
    outcomes: ArrayLike, log_ratio: ArrayLike, level: float = 0.95, bins: int = 10
) -> MatchedWinRate:
    """Length-controlled win rate from outcomes in {0, 1/2, 1} and x = ln(len_a / len_b).

    Detail H3's logistic trend, evaluated at x = 0; a tie enters as half a win (fractional
    logit, robust covariance). The interval is the delta method's on the logit scale, so it stays
    in (0, 1). Raises ValueError for another outcome or unequal lengths of the two arguments.
    """
    y, x = _vector(outcomes, "outcomes"), _vector(log_ratio, "log_ratio")
    _same_length(outcomes=y, log_ratio=x)
    if not np.isin(y, (0.0, 0.5, 1.0)).all():
        raise ValueError("outcomes are 0, 0.5 or 1")
    raw = _win_rate_of_outcomes(y, level)
    if len(x) == 0:
        return MatchedWinRate(math.nan, 0.0, 1.0, math.nan, 0, "unidentified", False, raw, ())
    table = _length_bins(y, x, bins, level)
    extrapolated = bool(x.min() > 0 or x.max() < 0)
    if not x.any():
        return MatchedWinRate(
            raw.rate, raw.low, raw.high, math.nan, len(x), "raw", extrapolated, raw, table
        )
    fit, method = _trend(x, y)
    if fit is None:
        return MatchedWinRate(
            math.nan, 0.0, 1.0, math.nan, len(x), "unidentified", extrapolated, raw, table
        )
    (intercept, slope), covariance = fit
    half = _z(level) * math.sqrt(max(float(covariance[0, 0]), 0.0))
    rate, low, high = special.expit([intercept, intercept - half, intercept + half]).tolist()
    return MatchedWinRate(rate, low, high, float(slope), len(x), method, extrapolated, raw, table)


def length_matched_win_rate(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    len_a: ArrayLike,
    len_b: ArrayLike,
    level: float = 0.95,
    bins: int = 10,
) -> MatchedWinRate:
    """`matched_win_rate` of a over b by score, equal scores tying; lengths in tokens.

    Raises ValueError unless every length is positive.
    """
    a, b = _vector(scores_a, "scores_a"), _vector(scores_b, "scores_b")
    long_a, long_b = _vector(len_a, "len_a"), _vector(len_b, "len_b")
    _same_length(scores_a=a, scores_b=b, len_a=long_a, len_b=long_b)
    if min(long_a.min(initial=1.0), long_b.min(initial=1.0)) <= 0:
        raise ValueError("lengths are positive")
    outcomes = (np.sign(a - b) + 1) / 2
    return matched_win_rate(outcomes, np.log(long_a / long_b), level, bins)
