"""What "PPO" means in each system: every key on which they differ, with each one's value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from nplus.config.ppo import PPOConfig

ProfileName = Literal["nplus", "paper", "openai-2019", "trl", "openrlhf", "verl", "torchtune"]

_NPLUS: dict[str, Any] = {
    "value": "separate",
    "value_init": "reward",
    "whitening_variance": "biased",
    "whitening_eps": "add",
    "whitening_scope": "global",
    "whitening_keeps_mean": False,
    "whiten_rewards": False,
    "missing_eos_penalty": 1.0,
    "missing_eos": "replace",
    "score_step": "after_eos",
    "value_mask": "extra_slot",
    "stop_token": "eos",
    "sampling.stop": "eos",
    "kl_target": None,
    "kl_clamp": None,
    "dual_clip": None,
    "log_ratio_clamp": None,
    "normalise": "global",
    "optim.max_grad_norm": None,
    "optim.adam_epsilon": 1e-5,
    "optim.weight_decay": 0.01,
    "old_logprobs": "trainer",
}

PROFILES: dict[str, dict[str, Any]] = {
    "nplus": _NPLUS,
    # The literal code of the paper: statistics per process, mean of micro-batch means.
    "paper": _NPLUS
    | {
        "whitening_scope": "rank",
        "sampling.stop": "length",
        "normalise": "micro",
        "old_logprobs": "sampler",
    },
    # lm-human-preferences: a zero head on the policy's trunk, adaptive KL, no masks.
    "openai-2019": _NPLUS
    | {
        "value": "shared",
        "value_init": "zero",
        "whitening_scope": "minibatch",
        "whiten_rewards": True,
        "stop_token": "none",
        "sampling.stop": "length",
        "kl_target": 6.0,
        "old_logprobs": "sampler",
    },
    "trl": _NPLUS
    | {
        "whitening_variance": "unbiased",
        "whitening_scope": "rank",
        "missing_eos": "subtract",
        "normalise": "micro",
        "old_logprobs": "sampler",
        "optim.adam_epsilon": 1e-8,
        "optim.weight_decay": 0.0,
    },
    "openrlhf": _NPLUS
    | {
        "whitening_eps": "clamp",
        "missing_eos_penalty": None,
        "score_step": "eos",
        "value_mask": "response",
        "kl_clamp": 10.0,
        "optim.max_grad_norm": 1.0,
        "optim.adam_epsilon": 1e-8,
        "optim.weight_decay": 0.0,
    },
    "verl": _NPLUS
    | {
        "whitening_variance": "unbiased",
        "missing_eos_penalty": None,
        "score_step": "eos",
        "value_mask": "response",
        "dual_clip": 3.0,
        "log_ratio_clamp": 20.0,
        "kl_clamp": 10.0,
        "optim.max_grad_norm": 1.0,
        "optim.adam_epsilon": 1e-8,
    },
    "torchtune": _NPLUS
    | {
        "whitening_variance": "unbiased",
        "whitening_keeps_mean": True,
        "normalise": "micro",
    },
}
"""Keys are those of `PPOConfig`, dotted for its components."""


def profile_tree(name: str) -> dict[str, Any]:
    """The settings of a profile as nested keys, `profile` included.

    Raises KeyError for an unknown name.
    """
    tree: dict[str, Any] = {"profile": name}
    for key, value in PROFILES[name].items():
        *parents, leaf = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = value
    return tree


def profile_values(cfg: PPOConfig) -> Mapping[str, Any]:
    """Every key that profiles set, with its value in `cfg`."""
    found = {}
    for key in _NPLUS:
        value: Any = cfg
        for name in key.split("."):
            value = getattr(value, name)
        found[key] = value
    return found


def told(cfg: PPOConfig) -> str:
    """The profile in one line, with what departs from it."""
    others = [
        f"{key}={_plain(value)} (not {_plain(meant)})"
        for key, (meant, value) in departures(cfg).items()
    ]
    return f"ppo.profile={cfg.profile}" + (f", but {', '.join(others)}" if others else "")


def _plain(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def departures(cfg: PPOConfig) -> dict[str, tuple[Any, Any]]:
    """Keys whose value is not the profile's: `key -> (the profile's, this one)`."""
    meant = PROFILES[cfg.profile]
    return {k: (meant[k], v) for k, v in profile_values(cfg).items() if v != meant[k]}
