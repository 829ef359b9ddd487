"""Policy gradients on groups of responses: RLOO, GRPO and the like, without a critic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from nplus.algorithms import reinforce
from nplus.algorithms.ppo import KLController
from nplus.batches import Objective, ReinforceBatch, Rollout
from nplus.config import ReinforceConfig
from nplus.config.batch_plan import BatchPlan, batch_plan
from nplus.metrics import Mean, Metric, merge, values
from nplus.models.lm import response_logprobs
from nplus.models.scalar import ScalarModel
from nplus.records import Demonstration
from nplus.rollout import texts
from nplus.runs import StageDir
from nplus.seeding import epoch_order
from nplus.stages.compute import for_training, forward_precision, in_halves, seed_dropout
from nplus.stages.context import Clock, Context
from nplus.stages.experience import readable
from nplus.stages.groups import Groups, prompts_of
from nplus.stages.keeping import Keeper
from nplus.stages.ppo import Updated, check_kl, trimmed, verdict
from nplus.stages.scorers import Gold
from nplus.training.optim import Optimizer, schedule
from nplus.training.update import Beside, NonFiniteLossError, update

STAGE = "reinforce"


def minibatches(
    batch: ReinforceBatch,
    cfg: ReinforceConfig,
    seed: int,
    step: int,
    hands: int = 1,
    positions: str = "real",
) -> Iterator[list[ReinforceBatch]]:
    """Every pass a fresh permutation, cut into minibatches, each into micro-batches of like length.

    Where groups were left out minibatches are smaller, and those without rows are left out. There
    is a micro-batch at least for each of `hands` processes.
    """
    lengths_B = batch.mask_BT.sum(1).cpu()
    for epoch in range(cfg.num_iterations if len(batch) else 0):
        order = torch.from_numpy(
            epoch_order(seed, f"{STAGE} minibatches {step}", epoch, len(batch))
        )
        for index in order.tensor_split(cfg.num_mini_batches):
            if not len(index):
                continue
            index = index[torch.argsort(lengths_B[index], stable=True)]
            rows = min(cfg.micro_batch_size, -(-len(index) // hands))
            micros = batch.rows(index).split(rows)
            yield [trimmed(micro) for micro in micros] if positions == "real" else list(micros)


def train_on(
    batch: ReinforceBatch,
    policy: PreTrainedModel,
    optimizer: Optimizer,
    ctx: Context,
    step: int,
    beside: Beside[ReinforceBatch] | None = None,
    keeper: Keeper | None = None,
) -> tuple[dict[str, Metric], dict[str, float]]:
    """All optimiser steps of one update; also the figures of the first, before it moved.

    `keeper` leaves out a step that is not finite; without one that is a NonFiniteLossError.
    """
    cfg = config_of(ctx)
    metrics: dict[str, Metric] = {"groups/steps": Mean(0.0, 1.0)}
    first: dict[str, float] = {}
    hands = ctx.topology.world * (1 if beside is None else 2)
    steps = 0
    for micros in minibatches(batch, cfg, ctx.seed, step, hands, ctx.config.model.positions):
        try:
            found = update(
                micros,
                counts=partial(reinforce.counts, cfg=cfg),
                objectives=[partial(objective, policy=policy, ctx=ctx)],
                optimizers=[optimizer],
                topology=ctx.topology,
                beside=beside,
            )
        except NonFiniteLossError as error:
            if keeper is None:
                raise
            keeper.skip(step, error, micros)
            continue
        steps += 1
        if keeper is not None:
            keeper.moved()
        metrics = merge([metrics, found])
        if not first:
            names = ("val/ratio", "policy/approxkl_avg", "policy/clipfrac_avg")
            first = {f"first_minibatch/{name.split('/')[1]}": found[name].value for name in names}
    metrics["groups/steps"] = Mean(float(steps), 1.0)
    return metrics, first


def objective(micro: ReinforceBatch, policy: PreTrainedModel, ctx: Context) -> Objective:
    """The loss of one micro-batch, by a forward of the policy."""
    cfg = config_of(ctx)
    temperature = cfg.sampling.temperature if "new" in cfg.tempered else None
    width = micro.response_tokens_BR.shape[1]
    with forward_precision(ctx.device, cfg.autocast):
        found = response_logprobs(
            policy, micro.tokens_BT, micro.mask_BT, width, temperature=temperature
        )
    return reinforce.objective(*found, micro, cfg)


def config_of(ctx: Context) -> ReinforceConfig:
    """The stage's settings."""
    assert ctx.config.reinforce is not None
    return ctx.config.reinforce


@dataclass(slots=True)
class Trainer:
    """The networks, the optimiser and the prompts: one `update` after the other."""

    ctx: Context
    plan: BatchPlan
    posts: list[Demonstration]
    policy: PreTrainedModel
    reference: PreTrainedModel
    reward_model: ScalarModel
    optimizer: Optimizer
    kl: KLController
    gold: Gold | None
    beside: Beside[ReinforceBatch] | None = None
    considered: bool = False
    """Whether it has been looked at if two processes pay."""
    keeper: Keeper | None = None
    """Keeps what `run` does; None for single updates."""

    @classmethod
    def start(cls, ctx: Context, posts: list[Demonstration], gold: Gold | None) -> Self:
        """SFT policy and reward model, as the stages before have left them."""
        cfg = config_of(ctx)
        policy, reference = ctx.policy("sft"), ctx.policy("sft").eval().requires_grad_(False)
        for_training(policy, ctx.config)
        return cls(
            ctx=ctx,
            plan=batch_plan(cfg),
            posts=posts,
            policy=policy,
            reference=reference,
            reward_model=ctx.scalar(ctx.dirs["reward"].model).eval().requires_grad_(False),
            optimizer=Optimizer(policy.named_parameters(), cfg.optim),
            kl=KLController(cfg.kl_coef, target=cfg.kl_target, horizon=cfg.kl_horizon),
            gold=gold,
        )

    def groups(self) -> Groups:
        """The networks that respond and score."""
        cfg = config_of(self.ctx)
        return Groups(self.ctx, cfg, STAGE, self.policy, self.reference, self.reward_model)

    def modules(self) -> dict[str, torch.nn.Module]:
        """What checkpoints hold beside the optimiser."""
        return {"policy": self.policy, "kl": self.kl}

    def close(self) -> None:
        """End the process that shares the work, if there is one."""
        if self.beside is not None:
            self.beside.partner.close()
            self.beside, self.considered = None, False

    def _share(self) -> None:
        """Fork a process that shares the work, where there is enough of it."""
        self.considered = True
        ctx, cfg = self.ctx, config_of(self.ctx)
        queries = [post.query for post in prompts_of(self.posts, cfg, ctx, 0, STAGE)]
        tokens = cfg.num_generations * sum(map(len, ctx.codec.encode_queries(queries)))
        tokens += cfg.batch_size * cfg.sampling.response_length
        work = self.policy.num_parameters() * tokens / cfg.num_mini_batches / ctx.topology.world
        if in_halves(ctx.config.compute, ctx.device, ctx.config.model, work):
            self.beside = Beside(
                [partial(objective, policy=self.policy, ctx=ctx)],
                [self.optimizer],
                {"gather": self.groups().gather},
            )

    def update(self, step: int) -> Updated:
        """Sample, score, credit, train: update `step` (0-based) of the plan."""
        ctx, cfg = self.ctx, config_of(self.ctx)
        clock = Clock()
        seed_dropout(ctx.config.model, ctx.seed, STAGE, step, ctx.topology.rank)
        prompts = prompts_of(self.posts, cfg, ctx, step, STAGE)
        if not self.considered:
            self._share()
        grouped = self.groups().gather_over_ranks(prompts, step, self.beside, clock.lap)
        rollout: Rollout = grouped.rollout
        posts = [post for post in prompts for _ in range(cfg.num_generations)]
        responses = texts(rollout.generation, ctx.codec.decode_response)
        batch, metrics = reinforce.credit(grouped, cfg, kl_coef=self.kl.value)
        if self.gold is not None:
            judged = [
                self.gold.judge(post.id, text).total
                for post, text in zip(posts, responses, strict=True)
            ]
            metrics["objective/gold"] = Mean(sum(judged), len(judged))
        clock.lap("scores")
        factor = schedule(
            cfg.optim.lr_scheduler_type, step, self.plan.updates, warmup=cfg.optim.warmup_steps
        )
        lr = self.optimizer.set_factor(factor)
        train_metrics, first_minibatch = train_on(
            batch, self.policy, self.optimizer, ctx, step, self.beside, self.keeper
        )
        clock.lap("update")
        found = {
            **values(metrics),
            **values(train_metrics),
            **(first_minibatch if step == 0 else {}),
            "lr": lr,
            "objective/kl_coef": self.kl.value,
            "episode": (step + 1) * cfg.batch_size,
            "tokens_per_second": float(rollout.generation.response_mask_BR.sum()) / clock.total,
        }
        self.kl.observe(found["objective/kl"], cfg.batch_size)
        return Updated(found, rollout, responses, posts, clock.laps)


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """From SFT policy and reward model to `model/`."""
    cfg = config_of(ctx)
    trainer = Trainer.start(ctx, ctx.data.demonstrations("train"), ctx.gold())
    updates, optimizers = trainer.plan.updates, {"policy": trainer.optimizer}
    keeper = trainer.keeper = Keeper(
        where, ctx, trainer.modules(), optimizers, cfg.save_steps, cfg.optim.max_skips
    )
    first = keeper.begin()
    progress = ctx.progress(STAGE, updates - first, "update")
    with closing(trainer), progress as bar, ctx.stop.deferred():
        for step in range(first, updates):
            found = trainer.update(step)
            where.journal(step + 1, found.metrics)
            ctx.watch.update(where, step + 1, trainer, found, STAGE)
            if step % cfg.sample_steps == 0 or step == updates - 1:
                rows = readable(found.rollout, found.responses, found.posts)
                where.write_samples(step + 1, rows)
            kl = found.metrics["objective/kl"]
            bar.tick(
                reward=found.metrics["objective/scores"],
                kl=kl,
                tok_s=found.metrics["tokens_per_second"],
            )
            check_kl(kl, cfg.target_kl_stop, step, STAGE)
            keeper.after(step + 1)
    ctx.keep(trainer.policy, where.model)
    return {"algorithm": cfg.algorithm, "updates": updates, **verdict(where)}
