"""PPO (details E1 to G5)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nplus.config.base import Config, unread
from nplus.config.optim import OptimConfig
from nplus.config.profiles import ProfileName
from nplus.config.sampling import SamplingConfig


class PPOConfig(Config):
    """The PPO stage. Names are TRL's where they mean the same."""

    profile: ProfileName = "nplus"
    """Whose PPO: sets every key that the systems disagree on (`config/profiles.py`); keys given
    beside it win."""
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
    reshuffle: bool = True
    """A new order of the prompts at each pass over them (Detail E2)."""
    optim: OptimConfig = OptimConfig(lr_scheduler_type="linear")
    """Shared by policy and critic (Detail B2)."""
    value: Literal["separate", "shared"] = "separate"
    """The critic: a network of its own, or a head on the policy's trunk (Detail E3)."""
    value_init: Literal["reward", "random", "zero"] = "reward"
    """Where the critic starts: as the reward model, or (the trunk of the SFT policy) with a random
    or a zero head (Detail E3)."""
    value_learning_rate: float | None = Field(None, gt=0)
    """The critic's own peak learning rate (with `value=shared` its head's); None takes the
    policy's."""
    sampling: SamplingConfig = SamplingConfig()
    """Rollout sampling (details E4, E5)."""
    tempered: tuple[Literal["old", "reference", "new"], ...] = ("old", "reference", "new")
    """Which log-probs are of the tempered distribution: those before the update, the reference's
    and those of the training forward. Leave one out to see what that does (Detail E5)."""
    stop_token: Literal["eos", "none"] = "eos"
    """`eos`: what follows the first EOS is cut away before the score (Detail E7); `none`: the whole
    response is scored, trained on and priced."""
    kl_coef: float = Field(0.05, ge=0)
    """KL coefficient beta (Detail F3)."""
    kl_target: float | None = Field(None, gt=0)
    """Nats per response that an adaptive beta steers to (OpenAI 2019: 6), from a `kl_coef` above 0
    on; None keeps it fixed."""
    kl_horizon: int = Field(10_000, ge=1)
    """Episodes over which an adaptive beta reacts."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Per-token KL estimator in the reward (Detail F3)."""
    kl_clamp: float | None = Field(None, gt=0)
    """Bound on the absolute KL estimate of a token; None has no bound, as in the paper."""
    gamma: float = Field(1.0, ge=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda (Detail F5)."""
    cliprange: float = Field(0.2, gt=0)
    """Ratio clip (Detail G2)."""
    cliprange_high: float | None = Field(None, gt=0)
    """The ratio's upper clip where it differs from the lower one; None takes `cliprange`."""
    dual_clip: float | None = Field(None, gt=1)
    """Bound of the loss at negative advantages, in multiples of them; None has none."""
    log_ratio_clamp: float | None = Field(None, gt=0)
    """Bound on |log ratio| before it is exponentiated; None has none."""
    cliprange_value: float | None = Field(0.2, gt=0)
    """Value clip (Detail G3); None does not clip."""
    vf_coef: float = Field(0.1, ge=0)
    """Weight of the value loss (Detail G3)."""
    missing_eos_penalty: float | None = Field(1.0, gt=0)
    """What a response without EOS costs (Detail E8); None keeps the reward model's score."""
    missing_eos: Literal["replace", "subtract"] = "replace"
    """`replace`: the score becomes minus the penalty (the paper); `subtract`: it loses the penalty
    (TRL)."""
    score_step: Literal["after_eos", "eos"] = "after_eos"
    """Where the score lands (Detail F4)."""
    value_mask: Literal["extra_slot", "response"] = "extra_slot"
    """Whether values have the state after EOS, where the score lands, or end with the response
    (Detail F2)."""
    whiten_rewards: bool = False
    """Detail F6."""
    whiten_advantages: bool = True
    """Detail F7."""
    whitening_variance: Literal["biased", "unbiased"] = "biased"
    """Variance of both whitenings (Detail F7): biased in OpenAI's and the paper's code."""
    whitening_eps: Literal["add", "clamp"] = "add"
    """1e-8 under the root: added to the variance, or its least value (OpenRLHF)."""
    whitening_scope: Literal["global", "rank", "minibatch"] = "global"
    """Whose statistics whiten the advantages: all processes', this process's (the paper), or those
    of every minibatch of the update (OpenAI 2019)."""
    whitening_keeps_mean: bool = False
    """Add the mean back to whitened advantages (torchtune)."""
    normalise: Literal["global", "micro"] = "global"
    """Loss normaliser: token mean over the minibatch, or mean of micro-batch means (Detail G4)."""
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    """Old log-probs from a forward of the training path, or the sampler's own (Detail E6)."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Autocast of the training forwards; log-probs then differ from the rollout's (Detail B4)."""
    save_steps: int = Field(0, ge=0)
    """Checkpoint every so many updates; 0 only at the end."""
    keep_policy_steps: int = Field(0, ge=0)
    """Keep the policy every so many updates, for the stage `curve` to judge; 0 keeps none."""
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
        for why in contradictions(self):
            raise ValueError(why)
        return self


def contradictions(cfg: PPOConfig) -> list[str]:
    """Settings that cannot both be meant, each with the mend."""
    found = []
    if cfg.value == "shared" and cfg.value_init == "reward":
        found.append(
            "value=shared with value_init=reward: a head on the policy's trunk cannot start as the "
            "reward model; set value_init=zero, or value=separate"
        )
    if cfg.score_step == "eos" and cfg.value_mask == "extra_slot":
        found.append(
            "score_step=eos with value_mask=extra_slot: the state after EOS would be trained to 0 "
            "and leak into the advantage of EOS (Detail F4); set value_mask=response"
        )
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
    if cfg.whitening_keeps_mean and not cfg.whiten_advantages:
        found.append(
            "whitening_keeps_mean=true with whiten_advantages=false: set whiten_advantages=true"
        )
    return found + steering_contradictions(cfg, cfg.kl_coef, cfg.kl_target)


def steering_contradictions(cfg: Config, kl_coef: float, kl_target: float | None) -> list[str]:
    """Of an adaptive KL coefficient: one that could never move, and a horizon without one."""
    found = list(unread(cfg, {"kl_horizon": (kl_target, "kl_target=null", "kl_target=6.0")}))
    if kl_target is not None and not kl_coef:
        found.append(
            f"kl_target={kl_target} with kl_coef={kl_coef}: steering multiplies the coefficient, "
            "and 0 stays 0; set kl_coef above 0, as in kl_coef=0.05, or kl_target=null"
        )
    return found
