"""Settings that may be left to `auto`: what `nplus tune` found on the machine of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nplus.config.run import RunConfig

AUTO = "auto"
AUTO_KEYS = (
    "compute.threads",
    "compute.side_by_side",
    "compute.matmul_precision",
    "compute.allocator",
    "model.attn_implementation",
)
"""A run settles them before anything is keyed, attention last: it depends on the precision."""


def value_of(config: RunConfig, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def auto_keys(config: RunConfig) -> tuple[str, ...]:
    """The settings that this config leaves to `auto`."""
    return tuple(key for key in AUTO_KEYS if value_of(config, key) == AUTO)


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """`config` with other values for some keys of `AUTO_KEYS`, validated."""
    tree = config.model_dump()
    for key, value in values.items():
        part, _, name = key.partition(".")
        tree[part][name] = value
    return RunConfig.model_validate(tree)
