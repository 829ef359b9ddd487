"""When a stage's state is kept, and how much of it."""

from __future__ import annotations

from pydantic import Field

from nplus.config.base import Config


class CheckpointConfig(Config):
    """Checkpoints of every stage that trains, beside those of its `save_steps`.

    They change what a killed process loses, never a result.
    """

    seconds: float | None = Field(60.0, gt=0)
    """Least time between two checkpoints; None makes them at `save_steps` and signals only."""
    share: float = Field(0.02, gt=0, le=1)
    """Most of the time that checkpoints may take: after one that took a second, the next comes
    1 / share seconds later at the earliest."""
    keep: int = Field(2, ge=1)
    """So many of the newest stay: the one before serves when a disk damages the last."""
