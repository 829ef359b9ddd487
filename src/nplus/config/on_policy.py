"""What stages share that train on the policy's own responses: budget, batches, rollout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from nplus.config.base import Config, unread
from nplus.config.optim import OptimConfig
from nplus.config.sampling import SamplingConfig


class OnPolicyConfig(Config, ABC):
    """Responses of the policy, scored, and trained on."""

    stage: ClassVar[str]
    """The stage that these are the settings of."""

    total_episodes: int = Field(1_000_000, ge=1)
    """Responses sampled in all; updates = total_episodes // batch_size (Detail G1)."""
    batch_size: int = Field(512, ge=1)
    """Responses per update, over all processes (Detail G1)."""
    num_mini_batches: int = Field(1, ge=1)
    """Optimiser steps per pass over a rollout batch."""
    micro_batch_size: int = Field(16, ge=1)
    """Responses of one forward and backward; changes memory, never the result."""
    rollout_micro_batch_size: int = Field(64, ge=1)
    """Rows of one generation or scoring forward."""
    reshuffle: bool = True
    """A new order of the prompts at each pass over them (Detail E2)."""
    optim: OptimConfig = OptimConfig(lr_scheduler_type="linear")
    """Shared by policy and critic, where there is one (Detail B2)."""
    sampling: SamplingConfig = SamplingConfig()
    """Rollout sampling (details E4, E5)."""
    tempered: tuple[Literal["old", "reference", "new"], ...] = ("old", "reference", "new")
    """Which log-probs are of the tempered distribution: those before the update, the reference's
    and those of the training forward. Leave one out to see what that does (Detail E5)."""
    stop_token: Literal["eos", "none"] = "eos"
    """`eos`: what follows the first EOS is cut away before the score (Detail E7); `none`: the whole
    response is scored, trained on and priced."""
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    """Old log-probs from a forward of the training path, or the sampler's own (Detail E6)."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Autocast of the training forwards; log-probs then differ from the rollout's (Detail B4)."""
    missing_eos_penalty: float | None = Field(1.0, gt=0)
    """What a response without EOS costs (Detail E8); None keeps the reward model's score."""
    missing_eos: Literal["replace", "subtract"] = "replace"
    """`replace`: the score becomes minus the penalty (the paper); `subtract`: it loses the penalty
    (TRL)."""
    save_steps: int = Field(0, ge=0)
    """Checkpoint every so many updates; 0 only at the end."""
    keep_policy_steps: int = Field(0, ge=0)
    """Keep the policy every so many updates, for the stage `curve` to judge; 0 keeps none."""
    sample_steps: int = Field(5, ge=1)
    """Write readable samples every so many updates."""
    target_kl_stop: float | None = Field(None, gt=0)
    """Stop with an error when the mean sequence KL passes this; None never stops."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        require_whole(self)
        for why in sampler_contradictions(self):
            raise ValueError(why)
        return self

    @property
    def updates(self) -> int:
        """Rollout batches of the whole run."""
        return self.total_episodes // self.batch_size

    @property
    @abstractmethod
    def passes(self) -> int:
        """Passes over each rollout batch."""


def require_whole(cfg: OnPolicyConfig) -> None:
    """ValueError where episodes, batches, minibatches and micro-batches do not divide."""
    if not cfg.updates:
        raise ValueError(
            f"total_episodes={cfg.total_episodes} is less than batch_size={cfg.batch_size}: "
            "not one update; raise total_episodes or lower batch_size"
        )
    minibatch, rest = divmod(cfg.batch_size, cfg.num_mini_batches)
    if rest:
        raise ValueError(
            f"batch_size={cfg.batch_size} is not a multiple of "
            f"num_mini_batches={cfg.num_mini_batches}; choose one that divides it"
        )
    if minibatch % cfg.micro_batch_size:
        raise ValueError(
            f"a minibatch of {minibatch} rows is not a multiple of "
            f"micro_batch_size={cfg.micro_batch_size}; choose one that divides it"
        )


def sampler_contradictions(cfg: OnPolicyConfig) -> list[str]:
    """Settings of the rollout that cannot both be meant, each with the mend."""
    found = []
    if cfg.stop_token == "none" and cfg.sampling.stop == "eos":
        found.append(
            "stop_token=none with sampling.stop=eos: there is nothing after EOS to keep; "
            "set sampling.stop=length"
        )
    if "old" not in cfg.tempered and cfg.old_logprobs == "sampler":
        found.append(
            "tempered without old and old_logprobs=sampler: the sampler's log-probs are tempered; "
            "set old_logprobs=trainer"
        )
    return found


def steering_contradictions(cfg: Config, kl_coef: float, kl_target: float | None) -> list[str]:
    """Of an adaptive KL coefficient: one that could never move, and a horizon without one."""
    found = list(unread(cfg, {"kl_horizon": (kl_target, "kl_target=null", "kl_target=6.0")}))
    if kl_target is not None and not kl_coef:
        found.append(
            f"kl_target={kl_target} with kl_coef={kl_coef}: steering multiplies the coefficient, "
            "and 0 stays 0; set kl_coef above 0, as in kl_coef=0.05, or kl_target=null"
        )
    return found
