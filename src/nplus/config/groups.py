"""What stages share that answer each prompt several times: budget, sampling, batches."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from nplus.config.base import Config
from nplus.config.optim import OptimConfig
from nplus.config.sampling import SamplingConfig


class GroupConfig(Config):
    """Several responses to each prompt, scored, and trained on at once."""

    stage: ClassVar[str]
    """The stage that these are the settings of."""

    total_episodes: int = Field(1_000_000, ge=1)
    """Responses sampled in all; updates = total_episodes // batch_size."""
    batch_size: int = Field(512, ge=1)
    """Responses per update, over all processes: batch_size / num_generations prompts."""
    num_generations: int = Field(4, ge=1)
    """Responses to each prompt (K; the group)."""
    num_iterations: int = Field(1, ge=1)
    """Passes over each rollout batch."""
    num_mini_batches: int = Field(1, ge=1)
    """Optimiser steps per pass."""
    micro_batch_size: int = Field(16, ge=1)
    """Responses of one forward and backward; changes memory, never the result."""
    layout: Literal["separate", "shared"] = "separate"
    """`separate`: every response is read behind its own copy of the prompt. `shared`: a prompt's
    responses share one reading of it; the same log-probs but for rounding, for less work. A pass
    then shuffles prompts, not responses."""
    rollout_micro_batch_size: int = Field(64, ge=1)
    """Rows of one generation or scoring forward."""
    reshuffle: bool = True
    """A new order of the prompts at each pass over them (Detail E2)."""
    max_staleness: int = Field(0, ge=0)
    """Updates that the weights have gone on for since they drew the responses of an update: 0
    draws, then trains; from 1 on the next responses are drawn while these are trained on. Exactly
    so many, but fewer at the start, so that a run repeats itself."""
    optim: OptimConfig = OptimConfig(lr_scheduler_type="linear")
    sampling: SamplingConfig = SamplingConfig()
    """Rollout sampling (details E4, E5)."""
    tempered: tuple[Literal["old", "reference", "new"], ...] = ("old", "reference", "new")
    """Which log-probs are of the tempered distribution (Detail E5)."""
    stop_token: Literal["eos", "none"] = "eos"
    """`eos`: what follows the first EOS is cut away before the score (Detail E7)."""
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    """Old log-probs from a forward of the training path, or the sampler's own (Detail E6)."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Autocast of the training forwards; log-probs then differ from the rollout's (Detail B4)."""
    missing_eos_penalty: float | None = Field(1.0, gt=0)
    """What a response without EOS costs (Detail E8); None keeps the reward model's score."""
    missing_eos: Literal["replace", "subtract"] = "replace"
    """`replace`: the score becomes minus the penalty; `subtract`: it loses the penalty."""
    save_steps: int = Field(0, ge=0)
    """Checkpoint every so many updates; 0 only at the end."""
    keep_policy_steps: int = Field(0, ge=0)
    """Keep the policy every so many updates, for the stage `curve` to judge; 0 keeps none."""
    sample_steps: int = Field(5, ge=1)
    """Write readable samples every so many updates."""
    target_kl_stop: float | None = Field(None, gt=0)
    """Stop with an error when the mean sequence KL passes this; None never stops."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        require_plan(self)
        for why in (*sampler_contradictions(self), *staleness_contradictions(self)):
            raise ValueError(why)
        return self

    @property
    def prompts(self) -> int:
        """Prompts of one update."""
        return self.batch_size // self.num_generations

    @property
    def shared(self) -> bool:
        """Whether a prompt's responses share one reading of it."""
        return self.layout == "shared"

    @property
    def rival(self) -> Literal["none", "greedy", "mixture"]:
        """What responses are set beside, where an algorithm wants that."""
        return "none"

    @property
    def rival_share(self) -> float:
        """The reference's share in the mixture that a rival is drawn from."""
        return 0.0


def require_plan(cfg: GroupConfig) -> None:
    """ValueError where episodes, batches, groups and minibatches do not divide."""
    if cfg.total_episodes < cfg.batch_size:
        raise ValueError(
            f"total_episodes={cfg.total_episodes} is less than batch_size={cfg.batch_size}: "
            "not one update; raise total_episodes or lower batch_size"
        )
    parts = (("num_generations", cfg.num_generations), ("num_mini_batches", cfg.num_mini_batches))
    for key, part in parts:
        if cfg.batch_size % part:
            raise ValueError(
                f"batch_size={cfg.batch_size} is not a multiple of {key}={part}; choose one that "
                "divides it"
            )
    prompts = cfg.batch_size // cfg.num_generations
    whole = cfg.shared or cfg.stage == "online_dpo"
    if whole and cfg.num_mini_batches > prompts:
        raise ValueError(
            f"num_mini_batches={cfg.num_mini_batches} with {prompts} prompts in a batch, whose "
            f"responses stay together: at most {prompts} minibatches have any"
        )
    minibatch = cfg.batch_size // cfg.num_mini_batches
    if minibatch % cfg.micro_batch_size:
        raise ValueError(
            f"a minibatch of {minibatch} rows is not a multiple of "
            f"micro_batch_size={cfg.micro_batch_size}; choose one that divides it"
        )


def sampler_contradictions(cfg: GroupConfig) -> list[str]:
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


def staleness_contradictions(cfg: GroupConfig) -> list[str]:
    """A staleness that no update could come to, with the mend."""
    updates = cfg.total_episodes // cfg.batch_size
    if cfg.max_staleness < max(updates, 1):
        return []
    return [
        f"max_staleness={cfg.max_staleness} with {updates} update{'s'[: updates > 1]} "
        "(total_episodes // batch_size): all responses would be the first weights'; lower it, or "
        "raise total_episodes"
    ]
