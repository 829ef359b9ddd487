"""Optimiser, schedule and batch arithmetic (details B2, B3, G1)."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from nplus.config.base import Config


class OptimConfig(Config):
    """One optimiser."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon` moves matrices by Muon and everything else by AdamW."""
    learning_rate: float = Field(3e-6, gt=0)
    """Peak learning rate of AdamW."""
    muon_learning_rate: float = Field(0.02, gt=0)
    """Peak learning rate of Muon's matrices."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-5, gt=0)
    """Detail B2: 1e-5, where most libraries take 1e-8."""
    weight_decay: float = Field(0.01, ge=0)
    """Detail B2: on every parameter."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Detail B3: cosine to 0 for SFT and reward, linear for PPO."""
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up steps; the paper has none."""
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    """Warm-up as a share of all steps, rounded up; with `warmup_steps` the longer one holds."""
    max_grad_norm: float | None = Field(None, gt=0)
    """Detail B4: no clipping unless asked for."""
    max_skips: int = Field(3, ge=0)
    """Steps in a row that may be left out because a loss or gradient is not finite; one more ends
    the run."""

    def warmup(self, total: int) -> int:
        """Warm-up steps of `total`."""
        return max(self.warmup_steps, math.ceil(self.warmup_ratio * total))


class BatchConfig(Config):
    """Rows per optimiser step and how they are streamed."""

    batch_size: int = Field(64, ge=1)
    """Rows of one optimiser step, over all processes."""
    micro_batch_size: int = Field(16, ge=1)
    """Rows of one forward and backward; changes memory, never the result."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of micro_batch_size="
                f"{self.micro_batch_size}; choose a micro_batch_size that divides it"
            )
        return self
