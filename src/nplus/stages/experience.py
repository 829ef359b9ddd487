"""What a PPO update learns from: prompts, a scored response to each, and values (section E)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from nplus.batches import PPOBatch, PromptBatch, Rollout, ValuedRollout
from nplus.config import PPOConfig
from nplus.data.collate import prompt_batch
from nplus.models.scalar import ScalarModel
from nplus.records import Demonstration
from nplus.rollout import Critic, add_values, collect
from nplus.stages.context import Context
from nplus.stages.drawing import noise, prompts_at
from nplus.stages.spread import over_ranks
from nplus.training.update import Beside

SHOWN = 8


def prompts_of(
    posts: list[Demonstration], cfg: PPOConfig, ctx: Context, step: int
) -> list[Demonstration]:
    """The prompts of one update: passes over the SFT queries, reshuffled each time (Detail E2)."""
    name, reshuffle = "ppo prompts", cfg.reshuffle
    return prompts_at(posts, cfg.batch_size, step, seed=ctx.seed, name=name, reshuffle=reshuffle)


@dataclass(frozen=True, slots=True)
class Experience:
    """The networks that respond, score and value."""

    ctx: Context
    policy: PreTrainedModel
    reference: PreTrainedModel
    reward_model: ScalarModel
    critic: Critic

    def gather(
        self,
        posts: list[Demonstration],
        step: int,
        on_part: Callable[[str], None] = lambda name: None,
    ) -> ValuedRollout:
        """One scored response to each post, from noise named after update and post, with values.

        `on_part` is told when `rollout`, the sampling, is done.
        """
        ctx, cfg = self.ctx, self.ctx.config.ppo
        assert cfg is not None
        prompts: PromptBatch = prompt_batch(ctx.codec, posts).to(ctx.device)
        rollout = collect(
            ctx.engine(self.policy),
            prompts,
            cfg.sampling,
            noise(ctx.seed, f"ppo rollout {step}", prompts.keys, cfg.sampling).to(ctx.device),
            policy=self.policy,
            reference=self.reference,
            score=ctx.score_fn(self.reward_model, posts),
            eos_id=ctx.codec.eos_id,
            size=cfg.rollout_micro_batch_size,
            old_logprobs=cfg.old_logprobs,
            tempered=cfg.tempered,
            stop_token=cfg.stop_token,
            positions=ctx.config.model.positions,
            on_sampled=lambda: on_part("rollout"),
        )
        return add_values(
            rollout,
            self.critic,
            size=cfg.rollout_micro_batch_size,
            positions=ctx.config.model.positions,
        )

    def gather_over_ranks(
        self,
        posts: list[Demonstration],
        step: int,
        beside: Beside[PPOBatch] | None,
        on_part: Callable[[str], None],
    ) -> ValuedRollout:
        """The same of all processes, in each: they share the prompts out and tell each other."""
        return over_ranks(self.gather, posts, step, beside, on_part, self.ctx)


def readable(
    rollout: Rollout, responses: list[str], posts: list[Demonstration]
) -> list[dict[str, Any]]:
    """A few rows of a rollout for `samples/`."""
    kl_B = (rollout.logprobs_BR - rollout.ref_logprobs_BR).sum(1)
    lengths_B = rollout.generation.response_mask_BR.sum(1)
    return [
        {
            "id": posts[i].id,
            "query": posts[i].query,
            "response": responses[i],
            "score": float(rollout.scores_B[i]),
            "kl": float(kl_B[i]),
            "tokens": int(lengths_B[i]),
            "has_eos": bool(rollout.has_eos_B[i]),
        }
        for i in range(min(SHOWN, len(posts)))
    ]
