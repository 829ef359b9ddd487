"""What settings begin with before they are merged: presets, and components just switched on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import reduce
from typing import Any

from nplus.config.profiles import PROFILES, profile_tree
from nplus.config.relatives import ALGORITHMS, algorithm_tree

Tree = dict[str, Any]

PRESETS: dict[tuple[str, str], tuple[Collection[str], Callable[[str], Tree]]] = {
    ("ppo", "profile"): (PROFILES, profile_tree),
    ("reinforce", "algorithm"): (ALGORITHMS, algorithm_tree),
}
"""Keys that set others: their names, and the settings of one."""
TAKEN_FROM_PPO = (
    "total_episodes",
    "batch_size",
    "micro_batch_size",
    "rollout_micro_batch_size",
    "reshuffle",
    "optim",
    "sampling",
    "tempered",
    "stop_token",
    "old_logprobs",
    "autocast",
    "missing_eos_penalty",
    "missing_eos",
    "keep_policy_steps",
    "sample_steps",
)
LIKE_PPO: dict[str, tuple[str, ...]] = {
    "reinforce": TAKEN_FROM_PPO,
    "online_dpo": tuple(key for key in TAKEN_FROM_PPO if key != "tempered"),
}
"""Components that begin, where a recipe has none, with the run's PPO's values of these keys."""


def prepared(base: Tree, layers: Sequence[Tree], defaults: Callable[[str], Tree]) -> Tree:
    """A recipe's settings, ready for the layers to be merged over them in turn.

    `defaults(part)` are those of a component.
    """
    return with_presets(switched_on(base, layers, defaults), layers)


def switched_on(base: Tree, layers: Sequence[Tree], defaults: Callable[[str], Tree]) -> Tree:
    """`base` with what the components begin with that the layers have first: their defaults, and
    those of `LIKE_PPO` the run's PPO's."""
    parts = (tree["ppo"] for tree in layers if isinstance(tree.get("ppo"), dict))
    ppo: Tree = reduce(merge, parts, base["ppo"] or {})
    for part in [name for name, value in base.items() if value is None]:
        if any(isinstance(tree.get(part), dict) for tree in layers):
            alike = {key: ppo[key] for key in LIKE_PPO.get(part, ()) if key in ppo}
            base = {**base, part: defaults(part) | alike}
    return base


def with_presets(base: Tree, layers: Sequence[Tree]) -> Tree:
    """`base` under the last presets that the layers name; whatever else they set still wins."""
    for (part, key), (known, settings) in PRESETS.items():
        named = [tree[part].get(key) for tree in layers if isinstance(tree.get(part), dict)]
        chosen = next((name for name in reversed(named) if name is not None), None)
        if isinstance(chosen, str) and chosen in known:  # validation names the known ones
            base = merge(base, {part: settings(chosen)})
    return base


def merge(base: Tree, changes: Mapping[str, Any]) -> Tree:
    """`base` with `changes`, trees key by key."""
    merged = dict(base)
    for name, value in changes.items():
        old = merged.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[name] = merge(old, value)
        else:
            merged[name] = value
    return merged
