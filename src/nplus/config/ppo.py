"""PPO (details E1 to G5)."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from nplus.config.on_policy import OnPolicyConfig, steering_contradictions
from nplus.config.profiles import ProfileName


class PPOConfig(OnPolicyConfig):
    """The PPO stage. Names are TRL's where they mean the same."""

    stage: ClassVar[str] = "ppo"

    profile: ProfileName = "nplus"
    """Whose PPO: sets every key that the systems disagree on (`config/profiles.py`); keys given
    beside it win."""
    num_ppo_epochs: int = Field(4, ge=1)
    """Passes over each rollout batch."""
    value: Literal["separate", "shared"] = "separate"
    """The critic: a network of its own, or a head on the policy's trunk (Detail E3)."""
    value_init: Literal["reward", "random", "zero"] = "reward"
    """Where the critic starts: as the reward model, or (the trunk of the SFT policy) with a random
    or a zero head (Detail E3)."""
    value_learning_rate: float | None = Field(None, gt=0)
    """The critic's own peak learning rate (with `value=shared` its head's); None takes the
    policy's."""
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

    @model_validator(mode="after")
    def _meant(self) -> Self:
        for why in contradictions(self):
            raise ValueError(why)
        return self

    @property
    def passes(self) -> int:
        """Passes over each rollout batch."""
        return self.num_ppo_epochs


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
    if cfg.whitening_keeps_mean and not cfg.whiten_advantages:
        found.append(
            "whitening_keeps_mean=true with whiten_advantages=false: set whiten_advantages=true"
        )
    return found + steering_contradictions(cfg, cfg.kl_coef, cfg.kl_target)
