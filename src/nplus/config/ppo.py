"""PPO (details E1 to G5)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nplus.config.base import Config
from nplus.config.optim import OptimConfig
from nplus.config.sampling import SamplingConfig


class PPOConfig(Config):
    """The PPO stage. Names are TRL's where they mean the same."""

    total_episodes: int = Field(1_000_000, ge=1)
    """Responses sampled in all; updates = total_episodes // batch_size (Detail G1)."""
    batch_size: int = Field(512, ge=1)
    """Responses per update, over all processes (Detail G1)."""
    num_ppo_epochs: int = Field(4, ge=1)
    """Passes over each rollout batch."""
    num_mini_batches: int = Field(1, ge=1)
    """Optimiser steps per pass."""
    micro_batch_size: int = Field(16, ge=1)
    """Rows of one forward and backward."""
    rollout_micro_batch_size: int = Field(64, ge=1)
    """Rows of one generation or scoring forward."""
    optim: OptimConfig = OptimConfig(lr_scheduler_type="linear")
    """Shared by policy and critic (Detail B2)."""
    value_learning_rate: float | None = Field(None, gt=0)
    """The critic's own peak learning rate; None takes the policy's."""
    sampling: SamplingConfig = SamplingConfig()
    """Rollout sampling (details E4, E5)."""
    kl_coef: float = Field(0.05, ge=0)
    """Fixed KL coefficient beta (Detail F3)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Per-token KL estimator in the reward (Detail F3)."""
    gamma: float = Field(1.0, ge=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda (Detail F5)."""
    cliprange: float = Field(0.2, gt=0)
    """Ratio clip (Detail G2)."""
    cliprange_value: float = Field(0.2, gt=0)
    """Value clip (Detail G3)."""
    vf_coef: float = Field(0.1, ge=0)
    """Weight of the value loss (Detail G3)."""
    missing_eos_penalty: float | None = -1.0
    """The score of a response without EOS (Detail E8); None keeps the reward model's."""
    score_step: Literal["after_eos", "eos"] = "after_eos"
    """Where the score lands (Detail F4)."""
    whiten_rewards: bool = False
    """Detail F6."""
    whiten_advantages: bool = True
    """Detail F7."""
    normalise: Literal["global", "micro"] = "global"
    """Loss normaliser: token mean over the minibatch, or mean of micro-batch means (Detail G4)."""
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    """Old log-probs from a forward of the training path, or the sampler's own (Detail E6)."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Autocast of the training forwards; log-probs then differ from the rollout's (Detail B4)."""
    save_steps: int = Field(0, ge=0)
    """Checkpoint every so many updates; 0 only at the end."""
    sample_steps: int = Field(5, ge=1)
    """Write readable samples every so many updates."""
    target_kl_stop: float | None = Field(None, gt=0)
    """Stop with an error when the mean sequence KL passes this; None never stops."""

    @model_validator(mode="after")
    def _plan(self) -> Self:
        if self.total_episodes < self.batch_size:
            raise ValueError(
                f"total_episodes={self.total_episodes} is less than batch_size={self.batch_size}: "
                "not one update; raise total_episodes or lower batch_size"
            )
        if self.batch_size % self.num_mini_batches:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of num_mini_batches="
                f"{self.num_mini_batches}; choose one that divides it"
            )
        minibatch = self.batch_size // self.num_mini_batches
        if minibatch % self.micro_batch_size:
            raise ValueError(
                f"a minibatch of {minibatch} rows is not a multiple of "
                f"micro_batch_size={self.micro_batch_size}; choose one that divides it"
            )
        return self
