"""The pairwise preference model: a language model that names the better of two responses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nplus.config.base import Config
from nplus.config.optim import BatchConfig, OptimConfig


class PreferenceConfig(Config):
    """Trained on the same comparisons as the reward model, as next-token prediction of a letter
    (arXiv 2405.07863, section 2.2)."""

    epochs: int = Field(1, ge=1)
    optim: OptimConfig = OptimConfig(learning_rate=5e-6, warmup_ratio=0.03)
    batch: BatchConfig = BatchConfig(batch_size=128, micro_batch_size=8)
    init: Literal["sft", "base"] = "sft"
    """Where it starts: at the SFT policy or at the base model."""
    max_rows: int | None = Field(None, ge=1)
    """Use only the first training comparisons."""
    save_steps: int = Field(0, ge=0)
    """Checkpoint every so many steps; 0 only at the end."""
