"""Direct preference optimisation, offline, as the paper uses it (Detail D9)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nplus.config.base import Config
from nplus.config.optim import BatchConfig, OptimConfig


class DPOConfig(Config):
    """DPO on the comparisons of the reward model. Names are TRL's where they mean the same."""

    epochs: int = Field(1, ge=1)
    optim: OptimConfig = OptimConfig()
    batch: BatchConfig = BatchConfig(batch_size=64, micro_batch_size=8)
    max_rows: int | None = Field(None, ge=1)
    """Use only the first training comparisons."""
    beta: float = Field(0.05, gt=0)
    """Strength of the pull to the reference (Detail D9)."""
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """`sigmoid` is DPO (Detail D9); `robust` is unbiased under flipped labels (TRL)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels taken for flipped: conservative DPO with `sigmoid`, needed by `robust`."""
    ipo_length: Literal["sum", "mean"] = "sum"
    """Log-probs of IPO: summed over tokens (the paper, OpenRLHF) or averaged (TRL)."""
    save_steps: int = Field(0, ge=0)
    """Checkpoint every so many steps; 0 only at the end."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.loss_type in ("ipo", "hinge") and self.label_smoothing:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} with loss_type={self.loss_type}: it is "
                "defined for sigmoid and robust; set label_smoothing=0"
            )
        if self.loss_type == "robust" and not self.label_smoothing:
            raise ValueError(
                "loss_type=robust without label_smoothing: name the share of flipped labels, as in "
                "label_smoothing=0.1"
            )
        if self.ipo_length == "mean" and self.loss_type != "ipo":
            raise ValueError(f"ipo_length=mean with loss_type={self.loss_type}: set loss_type=ipo")
        return self
