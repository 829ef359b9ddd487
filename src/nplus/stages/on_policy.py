"""Groups of responses, an update on them, again: the loop of the stages without a critic."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from transformers import PreTrainedModel

from nplus.algorithms.ppo import KLController
from nplus.batches import GroupRollout, Objective, Rollout
from nplus.config import GroupConfig
from nplus.config.batch_plan import BatchPlan, batch_plan
from nplus.data.collate import PairRow
from nplus.metrics import Metric, merge, values
from nplus.models.scalar import ScalarModel
from nplus.records import Demonstration
from nplus.rollout import texts
from nplus.runs import StageDir
from nplus.stages.ahead import Ahead
from nplus.stages.compute import for_training, in_halves, seed_dropout
from nplus.stages.context import Clock, Context
from nplus.stages.experience import readable
from nplus.stages.forwards import require_apart
from nplus.stages.groups import Groups, prompts_of
from nplus.stages.keeping import Keeper
from nplus.stages.ppo import Updated, check_kl, verdict
from nplus.stages.refill import refilled
from nplus.stages.scorers import Gold
from nplus.stages.scoring import failures
from nplus.training.optim import Optimizer
from nplus.training.update import Beside, NonFiniteLossError, update

Micro = TypeVar("Micro")
FIRST = ("val/ratio", "policy/approxkl_avg", "policy/clipfrac_avg")
"""Told of the very first minibatch, where the policy has not moved."""


class Method(Protocol[Micro]):
    """What an algorithm makes of a group rollout, and what it descends."""

    @property
    def cfg(self) -> GroupConfig: ...

    def controller(self) -> KLController | None:
        """Of the price of KL; None where nothing is priced."""
        ...

    def minibatches(
        self, grouped: GroupRollout, step: int, kl_coef: float, hands: int
    ) -> tuple[Iterator[list[Micro]], dict[str, Metric]]:
        """The micro-batches of each optimiser step, at least one for each of `hands` processes, and
        the rollout's metrics."""
        ...

    def counts(self, micro: Micro) -> Mapping[str, float]: ...

    def objective(self, micro: Micro) -> Objective: ...


@dataclass(slots=True)
class Trainer(Generic[Micro]):
    """The networks, the optimiser and the prompts: one `update` after the other."""

    ctx: Context
    method: Method[Micro]
    plan: BatchPlan
    posts: list[Demonstration]
    policy: PreTrainedModel
    reference: PreTrainedModel
    reward_model: ScalarModel
    optimizer: Optimizer
    kl: KLController | None
    gold: Gold | None
    ahead: Ahead | None = None
    """Draws from older weights; None where each rollout is drawn from those it is trained on."""
    beside: Beside[Micro] | None = None
    considered: bool = False
    """Whether it has been looked at if two processes pay."""
    keeper: Keeper | None = None
    """Keeps what `run` does; None for single updates."""

    @classmethod
    def of(
        cls,
        ctx: Context,
        method: Method[Micro],
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        reward_model: ScalarModel,
        posts: list[Demonstration],
        gold: Gold | None = None,
    ) -> Self:
        """Before the first update; the reference and the reward model are frozen."""
        for_training(policy, ctx.config)
        found = cls(
            ctx=ctx,
            method=method,
            plan=batch_plan(method.cfg),
            posts=posts,
            policy=policy,
            reference=reference.eval().requires_grad_(False),
            reward_model=reward_model.eval().requires_grad_(False),
            optimizer=Optimizer(policy.named_parameters(), method.cfg.optim),
            kl=method.controller(),
            gold=gold,
        )
        if method.cfg.max_staleness:
            found.ahead = Ahead(found.groups(), posts, found.plan.updates)
        return found

    @property
    def cfg(self) -> GroupConfig:
        return self.method.cfg

    def groups(self) -> Groups:
        """The networks that respond and score."""
        return Groups(self.ctx, self.cfg, self.policy, self.reference, self.reward_model)

    def modules(self) -> dict[str, torch.nn.Module]:
        """What checkpoints hold beside the optimiser."""
        found: dict[str, torch.nn.Module] = {"policy": self.policy}
        if self.kl is not None:
            found["kl"] = self.kl
        if self.ahead is not None:
            found["snapshots"] = self.ahead.snapshots
        return found

    def close(self) -> None:
        """End the process that shares the work, if there is one."""
        if self.ahead is not None:
            self.ahead.close()
        if self.beside is not None:
            self.beside.partner.close()
            self.beside, self.considered = None, False

    def _share(self) -> None:
        """Fork a process that shares the work, where there is enough of it."""
        self.considered = True
        ctx, cfg = self.ctx, self.cfg
        queries = [post.query for post in prompts_of(self.posts, cfg, ctx, 0)]
        tokens = cfg.num_generations * sum(map(len, ctx.codec.encode_queries(queries)))
        tokens += cfg.batch_size * cfg.sampling.response_length
        work = self.policy.num_parameters() * tokens / cfg.num_mini_batches / ctx.topology.world
        if in_halves(ctx.config.compute, ctx.device, ctx.config.model, work):
            jobs = {"gather": self.groups().gather}
            self.beside = Beside([self.method.objective], [self.optimizer], jobs)

    def update(self, step: int) -> Updated:
        """Sample, score, credit, train: update `step` (0-based) of the plan."""
        ctx, cfg = self.ctx, self.cfg
        clock = Clock()
        seed_dropout(ctx.config.model, ctx.seed, cfg.stage, step, ctx.topology.rank)
        prompts = prompts_of(self.posts, cfg, ctx, step)
        if self.ahead is None:
            if not self.considered:
                self._share()
            groups = self.groups()
            grouped = groups.gather_over_ranks(prompts, step, self.beside, clock.lap)
            prompts, grouped = refilled(groups, self.posts, prompts, grouped, step, self.beside)
            updated = self._learn(grouped, prompts, step, clock)
        else:
            stale = self.ahead.take(step)
            clock.lap("rollout")

            def learn() -> Updated:
                return self._learn(self.groups().at_update(stale), prompts, step, clock)

            updated = self.ahead.beside(learn, step)
        clock.lap("update")
        tokens = float(updated.rollout.generation.response_mask_BR.sum())
        updated.metrics["tokens_per_second"] = tokens / clock.total
        return updated

    def _learn(
        self, grouped: GroupRollout, prompts: list[Demonstration], step: int, clock: Clock
    ) -> Updated:
        """Credit and train: what an update makes of its rollout."""
        ctx, cfg = self.ctx, self.cfg
        rollout: Rollout = grouped.rollout
        posts = [post for post in prompts for _ in range(cfg.num_generations)]
        responses = texts(rollout.generation, ctx.codec.decode_response)
        price = 0.0 if self.kl is None else self.kl.value
        hands = ctx.topology.world * (1 if self.beside is None else 2)
        minibatches, metrics = self.method.minibatches(grouped, step, price, hands)
        metrics |= failures(int(rollout.failed_B.sum()), len(rollout) * len(ctx.terms))
        if self.gold is not None:
            metrics["objective/gold"] = self.gold.mean(posts, responses)
        clock.lap("scores")
        lr = self.optimizer.follow(step, self.plan.updates)
        found = {
            **values(metrics),
            **self.train_on(minibatches, step),
            "val/staleness": float(step - rollout.generation.policy_version),
            "lr": lr,
            "episode": (step + 1) * cfg.batch_size,
        }
        if self.kl is not None:
            found["objective/kl_coef"] = price
            self.kl.observe(found["objective/kl"], cfg.batch_size)
        return Updated(found, rollout, responses, posts, clock.laps)

    def train_on(self, minibatches: Iterator[list[Micro]], step: int) -> dict[str, float]:
        """An optimiser step for each minibatch; figures over them, and of the very first.

        The keeper leaves out a step that is not finite; without one that is a NonFiniteLossError.
        """
        metrics: dict[str, Metric] = {}
        first: dict[str, float] = {}
        steps = 0
        for micros in minibatches:
            try:
                found = update(
                    micros,
                    counts=self.method.counts,
                    objectives=[self.method.objective],
                    optimizers=[self.optimizer],
                    topology=self.ctx.topology,
                    beside=self.beside,
                )
            except NonFiniteLossError as error:
                if self.keeper is None:
                    raise
                self.keeper.skip(step, error, micros)
                continue
            if self.keeper is not None:
                self.keeper.moved()
            metrics = merge([metrics, found])
            if step == steps == 0:
                told = (name for name in FIRST if name in found)
                first = {f"first_minibatch/{n.split('/')[1]}": found[n].value for n in told}
            steps += 1
        return {**values(metrics), **first, "groups/steps": float(steps)}


def start(ctx: Context, cfg: GroupConfig) -> tuple[PreTrainedModel, PreTrainedModel, ScalarModel]:
    """Policy, reference and reward model, as the stages before have left them.

    InputError where responses are to share a reading of their prompt and one of them mixes them up.
    """
    policy, reference = ctx.policy("sft"), ctx.policy("sft")
    reward_model = ctx.scalar(ctx.dirs["reward"].model)
    if cfg.shared:
        posts = ctx.data.demonstrations("train")[:2]
        queries = [posts[0].query] * len(posts)
        (query, one), *others = ctx.codec.encode_pairs(queries, [post.response for post in posts])
        row = PairRow(query, one, others[0][1] if others else one)
        for model in (policy, reward_model):
            require_apart(model, row, ctx.codec.pad_id, f"{cfg.stage}.layout")
    return policy, reference, reward_model


def run(where: StageDir, ctx: Context, trainer: Trainer[Any]) -> dict[str, Any]:
    """All updates, from the last checkpoint on, and `model/`."""
    cfg, stage = trainer.cfg, trainer.cfg.stage
    updates, optimizers = trainer.plan.updates, {"policy": trainer.optimizer}
    keeper = trainer.keeper = Keeper(
        where,
        ctx,
        trainer.modules(),
        optimizers,
        cfg.save_steps,
        cfg.optim.max_skips,
        cfg.keep_policy_steps,
    )
    first = keeper.begin()
    progress = ctx.progress(stage, updates - first, "update")
    with closing(trainer), progress as bar, ctx.stop.deferred():
        for step in range(first, updates):
            found = trainer.update(step)
            where.journal(step + 1, found.metrics)
            ctx.watch.update(where, step + 1, trainer, found, stage)
            if step % cfg.sample_steps == 0 or step == updates - 1:
                rows = readable(found.rollout, found.responses, found.posts)
                version = found.rollout.generation.policy_version
                told = {"policy_version": version, "staleness": step - version}
                where.write_samples(step + 1, [row | told for row in rows])
            kl = found.metrics["objective/kl"]
            bar.tick(
                reward=found.metrics["objective/scores"],
                kl=kl,
                tok_s=found.metrics["tokens_per_second"],
            )
            check_kl(kl, cfg.target_kl_stop, step, stage)
            keeper.after(step + 1)
    keeper.require_steps()
    ctx.keep(trainer.policy, where.model)
    return {"updates": updates, "staleness": staleness(where), **verdict(where)}


def staleness(where: StageDir) -> dict[str, float]:
    """Of all responses that the stage has trained on."""
    found = [row["metrics"]["val/staleness"] for row in where.journal_rows()]
    return {"mean": statistics.fmean(found), "max": max(found)}
