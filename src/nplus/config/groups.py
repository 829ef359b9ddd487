"""What stages share that answer each prompt several times."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nplus.config.on_policy import OnPolicyConfig


class GroupConfig(OnPolicyConfig):
    """Several responses to each prompt, scored, and trained on at once.

    An update has `batch_size / num_generations` prompts.
    """

    num_generations: int = Field(4, ge=1)
    """Responses to each prompt (K; the group)."""
    num_iterations: int = Field(1, ge=1)
    """Passes over each rollout batch."""
    layout: Literal["separate", "shared"] = "separate"
    """`separate`: every response is read behind its own copy of the prompt. `shared`: a prompt's
    responses share one reading of it; the same log-probs but for rounding, for less work. A pass
    then shuffles prompts, not responses."""
    max_staleness: int = Field(0, ge=0)
    """Updates that the weights have gone on for since they drew the responses of an update: 0
    draws, then trains; from 1 on the next responses are drawn while these are trained on. Exactly
    so many, but fewer at the start, so that a run repeats itself."""

    @model_validator(mode="after")
    def _in_groups(self) -> Self:
        for why in (*group_contradictions(self), *staleness_contradictions(self)):
            raise ValueError(why)
        return self

    @property
    def passes(self) -> int:
        """Passes over each rollout batch."""
        return self.num_iterations

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


def group_contradictions(cfg: GroupConfig) -> list[str]:
    """Groups that do not fill a batch, or minibatches that would hold none."""
    if cfg.batch_size % cfg.num_generations:
        return [
            f"batch_size={cfg.batch_size} is not a multiple of "
            f"num_generations={cfg.num_generations}; choose one that divides it"
        ]
    whole = cfg.shared or cfg.stage == "online_dpo"
    if whole and cfg.num_mini_batches > cfg.prompts:
        return [
            f"num_mini_batches={cfg.num_mini_batches} with {cfg.prompts} prompts in a batch, whose "
            f"responses stay together: at most {cfg.prompts} minibatches have any"
        ]
    return []


def staleness_contradictions(cfg: GroupConfig) -> list[str]:
    """A staleness that no update could come to, with the mend."""
    if cfg.max_staleness < cfg.updates:
        return []
    return [
        f"max_staleness={cfg.max_staleness} with {cfg.updates} update{'s'[: cfg.updates > 1]} "
        "(total_episodes // batch_size): all responses would be the first weights'; lower it, or "
        "raise total_episodes"
    ]
