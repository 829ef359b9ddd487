"""What a change does, with intervals: the same posts and the same seeds, with it and without.

A seed is one whole training run, so the seed is the unit of replication: six hundred posts judged
after one run are one observation of what training does, not six hundred. Axes: `S` seeds, `P`
posts, `D` draws of the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nplus.stats import Interval, mean_difference

DRAWS = 4_000
_BLOCK = 500

Outcomes = Mapping[str, float]
"""Post id to outcome: 1 for a win, 1/2 for a tie, 0 for a loss."""


@dataclass(frozen=True, slots=True)
class Effect:
    """A difference to the baseline.

    `low` and `high` are a t interval over seeds: where the mean difference would lie if the grid
    ran again with other seeds *on these posts*. `boot_low` and `boot_high` resample seeds and
    posts: other seeds *and other posts*. Of few seeds a bootstrap is too narrow, so below about
    ten the t interval is the one to quote. All bounds are for one effect at a time.
    """

    value: float
    low: float
    """Minus infinity with fewer than two seeds."""
    high: float
    per_seed: tuple[float, ...]
    """One difference a seed, in the order of `seeds`."""
    seeds: tuple[int, ...]
    posts: int = 0
    """Posts judged in every run; 0 for a measure that has one value a run."""
    boot_low: float | None = None
    """None for a measure without posts, and with fewer than two seeds."""
    boot_high: float | None = None


def over_seeds(values_S: np.ndarray, level: float = 0.95) -> Interval:
    """Mean over seeds with a t interval: infinite bounds for one value, NaN without any."""
    return mean_difference(values_S, np.zeros_like(values_S), paired=True, level=level)


def summary_over_seeds(
    values: Sequence[float], within: tuple[float, float] = (-math.inf, math.inf)
) -> dict[str, object]:
    """`{value, low, high, n, per_seed}` of one value a seed, with a t interval over seeds.

    The interval is cut to `within`, where every such value lies; values that are not finite are
    left out of it.
    """
    finite = [value for value in values if math.isfinite(value)]
    value, low, high = over_seeds(np.array(finite, dtype=np.float64))
    low, high = max(low, within[0]), min(high, within[1])
    if len(finite) < 2:
        low, high = -math.inf, math.inf
    return {"value": value, "low": low, "high": high, "n": len(finite), "per_seed": list(values)}


def over_seeds_and_posts(
    difference_SP: np.ndarray, seed: int = 0, level: float = 0.95, draws: int = DRAWS
) -> tuple[float, float]:
    """Percentile bounds of the mean when seeds and posts are both drawn anew.

    Posts are crossed with seeds (every run is judged on the same posts), so a draw takes seeds and
    posts independently, with replacement (the pigeonhole bootstrap, Owen 2007).
    """
    seeds, posts = difference_SP.shape
    rng = np.random.default_rng(seed)
    means = []
    for done in range(0, draws, _BLOCK):
        block = min(_BLOCK, draws - done)
        weights_DS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=block) / seeds
        drawn_DP = rng.integers(0, posts, size=(block, posts))
        means.append(np.take_along_axis(weights_DS @ difference_SP, drawn_DP, axis=1).mean(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def outcome_effect(
    changed: Mapping[int, Outcomes], baseline: Mapping[int, Outcomes], level: float = 0.95
) -> Effect | None:
    """Difference of the win rates, `changed` minus `baseline`, paired by seed and post.

    Both map a seed to the outcomes of its run. Seeds of both sides count, and posts that every one
    of these runs judged; None where nothing is left. Per seed the differences average over posts;
    see `Effect` for the two intervals over seeds.
    """
    seeds = sorted(changed.keys() & baseline.keys())
    runs = [side[seed] for seed in seeds for side in (changed, baseline)]
    posts = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    if not posts:
        return None
    difference_SP = np.array(
        [[changed[seed][post] - baseline[seed][post] for post in posts] for seed in seeds]
    )
    difference_S = difference_SP.mean(1)
    return Effect(
        *over_seeds(difference_S, level),
        tuple(difference_S.tolist()),
        tuple(seeds),
        len(posts),
        *(over_seeds_and_posts(difference_SP, level=level) if seeds[1:] else (None, None)),
    )


def measure_effect(
    changed: Mapping[int, float], baseline: Mapping[int, float], level: float = 0.95
) -> Effect | None:
    """Difference of a measure with one value a run, paired by seed, with a t interval over seeds.

    Seeds whose value is missing, NaN or infinite on either side do not count; None without any.
    """
    found = {
        seed: changed[seed] - baseline[seed]
        for seed in sorted(changed.keys() & baseline.keys())
        if np.isfinite([changed[seed], baseline[seed]]).all()
    }
    if not found:
        return None
    difference_S = np.array(list(found.values()), dtype=np.float64)
    return Effect(*over_seeds(difference_S, level), tuple(difference_S.tolist()), tuple(found))
