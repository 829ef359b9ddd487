"""PPO's relatives without a critic: the keys in which they differ, with each one's values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from nplus.config.reinforce import ReinforceConfig

AlgorithmName = Literal[
    "rloo",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "reinforce++",
    "reinforce++_baseline",
    "remax",
    "nash_md",
]

_RLOO: dict[str, Any] = {
    "num_generations": 4,
    "num_iterations": 1,
    "signal": "score",
    "baseline": "leave_one_out",
    "scale": "none",
    "whitening": "none",
    "ratio": "sequence",
    "aggregation": "sequence",
    "cliprange": 0.2,
    "cliprange_high": None,
    "kl_in": "reward",
    "kl_credit": "sequence",
    "kl_estimator": "k1",
    "kl_coef": 0.05,
    "dynamic_sampling": False,
    "overlong_share": None,
}

_GRPO = _RLOO | {
    "num_generations": 8,
    "baseline": "group_mean",
    "scale": "group_std",
    "ratio": "token",
    "kl_in": "loss",
    "kl_estimator": "k3",
    "kl_coef": 0.04,
}

ALGORITHMS: dict[str, dict[str, Any]] = {
    # Ahmadian et al. 2024 (2402.14740): REINFORCE on whole responses; the others are the baseline.
    "rloo": _RLOO,
    # Shao et al. 2024 (2402.03300), equations 3 and 4; beta 0.04.
    "grpo": _GRPO,
    # Liu et al. 2025 (2503.20783): neither the group's deviation nor a response's length divides.
    "dr_grpo": _GRPO | {"scale": "none", "aggregation": "constant", "kl_coef": 0.0},
    # Yu et al. 2025 (2503.14476), sections 3.1 to 3.4: clip-higher 0.28, 4,096 tokens of 20,480.
    "dapo": _GRPO
    | {
        "aggregation": "token",
        "cliprange_high": 0.28,
        "kl_coef": 0.0,
        "dynamic_sampling": True,
        "overlong_share": 0.2,
    },
    # Zheng et al. 2025 (2507.18071), section 5.1: one ratio a response, its geometric mean.
    "gspo": _GRPO
    | {"ratio": "sequence_mean", "cliprange": 3e-4, "cliprange_high": 4e-4, "kl_coef": 0.0},
    # Hu et al. 2025 (2501.03262): no group; KL to go in the reward, whitened over the batch.
    "reinforce++": _RLOO
    | {
        "num_generations": 1,
        "baseline": "none",
        "whitening": "token",
        "ratio": "token",
        "aggregation": "token",
        "kl_credit": "to_go",
        "kl_coef": 0.01,
    },
    "reinforce++_baseline": _RLOO
    | {
        "baseline": "group_mean",
        "whitening": "token",
        "ratio": "token",
        "aggregation": "token",
        "kl_in": "loss",
        "kl_estimator": "k2",
        "kl_coef": 0.01,
    },
    # Li et al. 2023 (2310.10505): the baseline is the score of the prompt's greedy response.
    "remax": _RLOO
    | {
        "num_generations": 1,
        "baseline": "greedy",
        "ratio": "token",
        "aggregation": "sequence_sum",
        "kl_credit": "to_go",
    },
    # Munos et al. 2023 (2312.00886): the signal is P(y > y'), y' from a mixture with the reference.
    "nash_md": _RLOO
    | {
        "num_generations": 1,
        "signal": "preference",
        "baseline": "none",
        "ratio": "token",
        "aggregation": "sequence_sum",
        "kl_in": "loss",
        "kl_estimator": "k2",
        "kl_coef": 0.1,
    },
}
"""Every entry sets the same keys, those of `ReinforceConfig`."""


def algorithm_tree(name: str) -> dict[str, Any]:
    """The settings of an algorithm, `algorithm` included. Raises KeyError for an unknown name."""
    return {"algorithm": name, **ALGORITHMS[name]}


def departures(cfg: ReinforceConfig) -> Mapping[str, tuple[Any, Any]]:
    """Keys whose value is not the algorithm's: `key -> (the algorithm's, this one)`."""
    meant = ALGORITHMS[cfg.algorithm]
    return {k: (v, getattr(cfg, k)) for k, v in meant.items() if getattr(cfg, k) != v}


def told(cfg: ReinforceConfig) -> str:
    """The algorithm in one line, with what departs from it."""
    others = [f"{k}={_plain(v)} (not {_plain(meant)})" for k, (meant, v) in departures(cfg).items()]
    return f"reinforce.algorithm={cfg.algorithm}" + (f", but {', '.join(others)}" if others else "")


def _plain(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
