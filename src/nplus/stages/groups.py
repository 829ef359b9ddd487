"""Several scored responses to each prompt, beside a rival's where an algorithm wants one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nplus.batches import GroupRollout, PromptBatch
from nplus.config import GroupConfig, SamplingConfig
from nplus.data.collate import prompt_batch
from nplus.engines.mixture import mixture_engine
from nplus.engines.protocol import Engine
from nplus.models.scalar import ScalarModel
from nplus.ops.responses import contains_eos
from nplus.records import Demonstration
from nplus.rollout import collect, generate, scored, trimmed, untruncated, with_logprobs
from nplus.stages.context import Context
from nplus.stages.drawing import noise, prompts_at
from nplus.stages.spread import over_ranks
from nplus.training.update import Beside

GREEDY = 1e-4
"""Temperature at which only exact ties are left to chance."""


def prompts_of(
    posts: list[Demonstration], cfg: GroupConfig, ctx: Context, step: int
) -> list[Demonstration]:
    """The prompts of one update: passes over the SFT queries, reshuffled each time (Detail E2)."""
    name, reshuffle = f"{cfg.stage} prompts", cfg.reshuffle
    return prompts_at(posts, cfg.prompts, step, seed=ctx.seed, name=name, reshuffle=reshuffle)


@dataclass(frozen=True, slots=True)
class Groups:
    """The networks that respond and score."""

    ctx: Context
    cfg: GroupConfig
    policy: PreTrainedModel
    reference: PreTrainedModel
    reward_model: ScalarModel
    staleness: int = 0
    """Updates from the weights of `policy` to those that will be trained on what it draws; fewer
    where there were none yet. Where there are some, the sampler's log-probs are the only ones:
    `at_update` adds the trainer's."""

    def gather(
        self,
        posts: list[Demonstration],
        step: int,
        on_part: Callable[[str], None] = lambda name: None,
    ) -> GroupRollout:
        """`num_generations` scored responses to each post, from noise named after update, post and
        sample. `on_part` is told when `rollout`, the sampling, is done."""
        ctx, cfg = self.ctx, self.cfg
        prompts = self._repeated(posts)
        keys = [post.id for post in posts]
        name = f"{cfg.stage} rollout {step}"
        numbers = range(cfg.num_generations)
        noise_BR = noise(ctx.seed, name, keys, cfg.sampling, numbers)
        rollout = collect(
            ctx.engine(self.policy, version=max(0, step - self.staleness)),
            prompts,
            cfg.sampling,
            noise_BR.to(ctx.device),
            policy=self.policy,
            reference=self.reference,
            score=ctx.score_fn(self.reward_model, posts, shared=cfg.shared),
            eos_id=ctx.codec.eos_id,
            size=cfg.rollout_micro_batch_size,
            old_logprobs="sampler" if self.staleness else cfg.old_logprobs,
            tempered=cfg.tempered,
            stop_token=cfg.stop_token,
            positions=ctx.config.model.positions,
            shared=cfg.shared,
            on_sampled=lambda: on_part("rollout"),
        )
        return GroupRollout(rollout, *self._rivals(posts, prompts, step))

    def gather_over_ranks(
        self,
        posts: list[Demonstration],
        step: int,
        beside: Beside[Any] | None,
        on_part: Callable[[str], None],
    ) -> GroupRollout:
        """The same of all processes, in each; a prompt's responses are drawn in one."""
        each = self.cfg.num_generations
        return over_ranks(self.gather, posts, step, beside, on_part, self.ctx, each=each)

    def at_update(self, grouped: GroupRollout) -> GroupRollout:
        """What older weights drew, with the log-probs that `policy` gives it now where they are to
        be the trainer's (Detail E6)."""
        cfg, ranks = self.cfg, self.ctx.topology
        if cfg.old_logprobs == "sampler":
            return grouped
        rollout = grouped.rollout
        places = [torch.arange(rank, len(rollout), ranks.world) for rank in range(ranks.world)]
        own = with_logprobs(
            rollout.rows(places[ranks.rank]),
            self.policy,
            temperature=cfg.sampling.temperature if "old" in cfg.tempered else None,
            size=cfg.rollout_micro_batch_size,
            positions=self.ctx.config.model.positions,
            shared=cfg.shared,
        )
        parts = ranks.collectives.gather(own.logprobs_BR.to("cpu"))
        logprobs_BR = torch.cat(parts)[torch.cat(places).argsort()].to(self.ctx.device)
        return replace(grouped, rollout=replace(rollout, logprobs_BR=logprobs_BR))

    def _repeated(self, posts: list[Demonstration]) -> PromptBatch:
        """[B, P]: each prompt as often as it is answered; the engine reads it once."""
        prompts = prompt_batch(self.ctx.codec, posts).to(self.ctx.device)
        index = torch.arange(len(posts)).repeat_interleave(self.cfg.num_generations)
        return prompts.rows(index)

    def _rivals(
        self, posts: list[Demonstration], prompts: PromptBatch, step: int
    ) -> tuple[Tensor, Tensor]:
        """`scores_B, has_eos_B` of the rivals: greedy ones are drawn once a prompt, those of the
        mixture once a row; zeros where there are none."""
        ctx, cfg = self.ctx, self.cfg
        samples = cfg.num_generations
        if cfg.rival == "greedy":
            once = prompts.rows(torch.arange(0, len(prompts), samples))
            sampling = cfg.sampling.model_copy(update={"temperature": GREEDY})
            noise_QR = torch.full((len(once), sampling.response_length), 0.5)
            found = self._scored(ctx.engine(self.policy), posts, once, sampling, noise_QR)
            return found[0].repeat_interleave(samples), found[1].repeat_interleave(samples)
        if cfg.rival == "mixture":
            keys = [post.id for post in posts]
            name = f"{cfg.stage} rivals {step}"
            noise_BR = noise(ctx.seed, name, keys, cfg.sampling, range(samples))
            engine = mixture_engine(
                self.policy,
                self.reference,
                cfg.rival_share,
                eos_id=ctx.codec.eos_id,
                pad_id=ctx.codec.pad_id,
            )
            return self._scored(engine, posts, prompts, cfg.sampling, noise_BR)
        zeros_B = torch.zeros(len(prompts), device=ctx.device)
        return zeros_B, torch.ones_like(zeros_B, dtype=torch.bool)

    def _scored(
        self,
        engine: Engine,
        posts: list[Demonstration],
        prompts: PromptBatch,
        sampling: SamplingConfig,
        noise_BR: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx, cfg = self.ctx, self.cfg
        size = cfg.rollout_micro_batch_size
        generation = generate(engine, prompts, sampling, noise_BR.to(ctx.device), size=size)
        generation = trimmed(generation) if cfg.stop_token == "eos" else untruncated(generation)
        scores_B, _ = scored(
            ctx.score_fn(self.reward_model, posts, shared=cfg.shared),
            generation,
            size=size,
            positions=ctx.config.model.positions,
            shared=cfg.shared,
        )
        return scores_B, contains_eos(generation.tokens_BR, ctx.codec.eos_id)
