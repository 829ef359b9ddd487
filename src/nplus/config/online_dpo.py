"""Online DPO, one step after the other: the policy's own best and worst responses."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from nplus.config.dpo import DPOConfig
from nplus.config.groups import GroupConfig


class OnlineDPOConfig(GroupConfig):
    """DPO on pairs that the policy draws and the reward model orders (Guo et al. 2024, 2402.04792).

    The reference is the SFT policy throughout. Names are TRL's where they mean the same.
    """

    stage: ClassVar[str] = "online_dpo"

    num_generations: int = Field(4, ge=2)
    """Responses to each prompt; the best and the worst by score make the pair, none where all are
    equal."""
    tempered: tuple[Literal["old", "reference", "new"], ...] = ()
    """Which log-probs are of the tempered distribution; the loss reads plain ones, so `new` is not
    for it."""
    beta: float = Field(0.05, gt=0)
    """Strength of the pull to the reference (Detail D9)."""
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """As `dpo.loss_type`."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels taken for flipped, as `dpo.label_smoothing`."""

    @model_validator(mode="after")
    def _meant(self) -> Self:
        if "new" in self.tempered:
            raise ValueError(
                "tempered holds new: the loss reads plain log-probs (Detail D9); leave it out"
            )
        self.pair_loss()
        return self

    def pair_loss(self) -> DPOConfig:
        """The loss as offline DPO has it; ValueError for settings that do not go together."""
        return DPOConfig(
            beta=self.beta, loss_type=self.loss_type, label_smoothing=self.label_smoothing
        )
