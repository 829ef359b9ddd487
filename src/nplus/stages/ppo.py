"""PPO against the reward model, with the KL to the SFT policy priced in (sections E to G)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nplus.algorithms import ppo
from nplus.batches import Objective, PPOBatch, ReinforceBatch, Rollout
from nplus.config import PPOConfig
from nplus.config.batch_plan import BatchPlan, batch_plan
from nplus.metrics import Mean, Metric, merge, values
from nplus.models.critic import SharedCritic
from nplus.models.lm import response_logprobs
from nplus.models.scalar import ScalarModel
from nplus.records import Demonstration, StopError
from nplus.rollout import Critic, spare_columns, texts
from nplus.runs import StageDir
from nplus.seeding import epoch_order
from nplus.stages.compute import for_training, forward_precision, in_halves, seed_dropout
from nplus.stages.context import Clock, Context
from nplus.stages.experience import Experience, prompts_of, readable
from nplus.stages.keeping import Keeper
from nplus.stages.scorers import Gold
from nplus.stages.scoring import failures
from nplus.training.optim import Optimizer
from nplus.training.update import Beside, NonFiniteLossError, update


class KLStopError(StopError):
    """The policy drifted further than `target_kl_stop` allows."""


def minibatches(
    batch: PPOBatch,
    cfg: PPOConfig,
    seed: int,
    step: int,
    hands: int = 1,
    positions: str = "real",
) -> Iterator[list[PPOBatch]]:
    """Every epoch a fresh permutation, split into minibatches, each into micro-batches (Detail G1).

    Within a minibatch rows are sorted by length: the sums do not care, the padding does. A mean of
    micro-batch means (`normalise=micro`) does care, and keeps the permutation's order; else there
    is a micro-batch at least for each of `hands` processes.
    """
    whitens = cfg.whiten_advantages and cfg.whitening_scope == "minibatch"
    size = len(batch) // cfg.num_mini_batches
    lengths_B = batch.mask_BT.sum(1)
    for epoch in range(cfg.num_ppo_epochs):
        order = torch.from_numpy(epoch_order(seed, f"ppo minibatches {step}", epoch, len(batch)))
        for index in order.split(size):
            if cfg.normalise == "global":
                index = index[torch.argsort(lengths_B[index].cpu(), stable=True)]
            minibatch = batch.rows(index)
            if whitens:
                minibatch = ppo.whitened(minibatch, cfg)
            rows = cfg.micro_batch_size
            if cfg.normalise == "global":
                rows = min(rows, -(-len(minibatch) // hands))
            micros = minibatch.split(rows)
            yield [trimmed(micro) for micro in micros] if positions == "real" else list(micros)


Trained = TypeVar("Trained", PPOBatch, ReinforceBatch)


def trimmed(batch: Trained) -> Trained:
    """Without the columns of left padding that no row needs, but for a round width."""
    response = batch.response_tokens_BR.shape[1]
    start = spare_columns(batch.mask_BT[:, :-response], response)
    return replace(batch, tokens_BT=batch.tokens_BT[:, start:], mask_BT=batch.mask_BT[:, start:])


def train_on(
    batch: PPOBatch,
    policy: PreTrainedModel,
    critic: Critic,
    optimizers: dict[str, Optimizer],
    ctx: Context,
    step: int,
    beside: Beside[PPOBatch] | None = None,
    keeper: Keeper | None = None,
) -> tuple[dict[str, Metric], dict[str, float]]:
    """All optimiser steps of one update; also the figures of the first, before it moved.

    `keeper` leaves out a step that is not finite; without one that is a NonFiniteLossError.
    """
    cfg = ctx.config.ppo
    assert cfg is not None
    loss = objectives(policy, critic, ctx)
    metrics: dict[str, Metric] = {}
    first: dict[str, float] = {}
    ratios: list[float] = []
    hands = ctx.topology.world * (1 if beside is None else 2)
    for micros in minibatches(batch, cfg, ctx.seed, step, hands, ctx.config.model.positions):
        try:
            found = update(
                micros,
                counts=ppo.counts,
                objectives=loss,
                optimizers=list(optimizers.values()),
                normalise=cfg.normalise,
                topology=ctx.topology,
                beside=beside,
            )
        except NonFiniteLossError as error:
            if keeper is None:
                raise
            keeper.skip(step, error, micros)
            continue
        if keeper is not None:
            keeper.moved()
        metrics = merge([metrics, found])
        ratios.append(found["val/ratio"].value)
        if not first:
            names = ("val/ratio", "policy/approxkl_avg", "policy/clipfrac_avg")
            first = {f"first_minibatch/{name.split('/')[1]}": found[name].value for name in names}
    # Detail G5: over the update's optimiser steps.
    metrics["val/ratio_var"] = Mean(statistics.variance(ratios) if len(ratios) > 1 else 0.0, 1.0)
    return metrics, first


def objectives(
    policy: PreTrainedModel, critic: Critic, ctx: Context
) -> list[Callable[[PPOBatch], Objective]]:
    """The policy's loss and the critic's; one for both where they share a trunk."""
    cfg = ctx.config.ppo
    assert cfg is not None
    temperature = cfg.sampling.temperature if "new" in cfg.tempered else None

    def rectangle(micro: PPOBatch) -> tuple[Tensor, Tensor, int]:
        return micro.tokens_BT, micro.mask_BT, micro.response_tokens_BR.shape[1]

    if isinstance(critic, SharedCritic):

        def both(micro: PPOBatch) -> Objective:
            with forward_precision(ctx.device, cfg.autocast):
                found = critic.logprobs_and_values(*rectangle(micro), temperature=temperature)
            return ppo.objective(*found, micro, cfg)

        return [both]

    def of_policy(micro: PPOBatch) -> Objective:
        with forward_precision(ctx.device, cfg.autocast):
            found = response_logprobs(policy, *rectangle(micro), temperature=temperature)
        return ppo.policy_objective(*found, micro, cfg)

    def of_values(micro: PPOBatch) -> Objective:
        with forward_precision(ctx.device, cfg.autocast):
            values_BR = critic.response_values(*rectangle(micro))
        return ppo.value_objective(values_BR, micro, cfg)

    return [of_policy, of_values]


def make_critic(policy: PreTrainedModel, ctx: Context) -> Critic:
    """Detail E3: the reward model's copy, or the SFT policy's trunk under a fresh head."""
    cfg = ctx.config.ppo
    assert cfg is not None
    if cfg.value == "shared":
        init = "zero" if cfg.value_init == "zero" else "normal"
        critic = SharedCritic(policy, init=init, seed=ctx.seed).to(ctx.device)
        some_BT = torch.arange(4, device=ctx.device)[None]
        critic.require_plain_head(some_BT, torch.ones_like(some_BT, dtype=torch.bool), 2)
        return critic
    dropout = ctx.config.model.dropout
    if cfg.value_init == "reward":
        return ctx.scalar(ctx.dirs["reward"].model, dropout=dropout)
    fresh = ScalarModel.from_causal(
        policy,
        pad_id=ctx.codec.pad_id,
        seed=ctx.seed,
        head_init="zero" if cfg.value_init == "zero" else "normal",
    )
    return ctx.as_scalar(fresh, dropout=dropout)


@dataclass(frozen=True, slots=True)
class Updated:
    """What one update came to."""

    metrics: dict[str, float]
    rollout: Rollout
    responses: list[str]
    posts: list[Demonstration]
    seconds: dict[str, float]
    """Wall time of its parts: `rollout` (sampling), `scores` (reference, reward, values) and
    `update` (all optimiser steps)."""


@dataclass(slots=True)
class Trainer:
    """The networks of PPO, their optimisers and the prompts: one `update` after the other."""

    ctx: Context
    plan: BatchPlan
    posts: list[Demonstration]
    policy: PreTrainedModel
    reference: PreTrainedModel
    reward_model: ScalarModel
    critic: Critic
    optimizers: dict[str, Optimizer]
    kl: ppo.KLController
    gold: Gold | None
    beside: Beside[PPOBatch] | None = None
    considered: bool = False
    """Whether it has been looked at if two processes pay."""
    keeper: Keeper | None = None
    """Keeps what `run` does; None for single updates."""

    @classmethod
    def start(cls, ctx: Context, posts: list[Demonstration], gold: Gold | None) -> Self:
        """SFT policy and reward model, as the stages before have left them (Detail E3)."""
        cfg = ctx.config.ppo
        assert cfg is not None
        policy, reference = ctx.policy("sft"), ctx.policy("sft").eval().requires_grad_(False)
        critic = make_critic(policy, ctx)
        for model in (policy, critic):
            for_training(getattr(model, "network", model), ctx.config)
        value_optim = cfg.optim.model_copy(
            update={"learning_rate": cfg.value_learning_rate or cfg.optim.learning_rate}
        )
        return cls(
            ctx=ctx,
            plan=batch_plan(cfg),
            posts=posts,
            policy=policy,
            reference=reference,
            reward_model=ctx.scalar(ctx.dirs["reward"].model).eval().requires_grad_(False),
            critic=critic,
            optimizers={
                "policy": Optimizer(policy.named_parameters(), cfg.optim),
                "critic": Optimizer(critic.named_parameters(), value_optim),
            },
            kl=ppo.KLController(cfg.kl_coef, target=cfg.kl_target, horizon=cfg.kl_horizon),
            gold=gold,
        )

    def experience(self) -> Experience:
        return Experience(self.ctx, self.policy, self.reference, self.reward_model, self.critic)

    def modules(self) -> dict[str, torch.nn.Module]:
        """What checkpoints hold beside the optimisers."""
        return {"policy": self.policy, "critic": self.critic, "kl": self.kl}

    def close(self) -> None:
        """End the process that shares the work, if there is one."""
        if self.beside is not None:
            self.beside.partner.close()
            self.beside, self.considered = None, False

    def _share(self) -> None:
        """Fork a process that shares the work, where there is enough of it."""
        self.considered = True
        ctx, cfg = self.ctx, self.ctx.config.ppo
        assert cfg is not None
        queries = [post.query for post in prompts_of(self.posts, cfg, ctx, 0)]
        tokens = sum(map(len, ctx.codec.encode_queries(queries)))
        tokens += cfg.batch_size * cfg.sampling.response_length
        work = self.policy.num_parameters() * tokens / cfg.num_mini_batches / ctx.topology.world
        if in_halves(ctx.config.compute, ctx.device, ctx.config.model, work):
            self.beside = Beside(
                objectives(self.policy, self.critic, ctx),
                list(self.optimizers.values()),
                {"gather": self.experience().gather},
            )

    def update(self, step: int) -> Updated:
        """Sample, score, credit, train: update `step` (0-based) of the plan."""
        ctx, cfg = self.ctx, self.ctx.config.ppo
        assert cfg is not None
        clock = Clock()
        seed_dropout(ctx.config.model, ctx.seed, "ppo", step, ctx.topology.rank)
        posts = prompts_of(self.posts, cfg, ctx, step)
        if not self.considered:
            self._share()
        valued = self.experience().gather_over_ranks(posts, step, self.beside, clock.lap)
        rollout = valued.rollout
        responses = texts(rollout.generation, ctx.codec.decode_response)
        batch, metrics = ppo.credit(valued, cfg, kl_coef=self.kl.value, parts=ctx.topology.world)
        metrics |= failures(int(rollout.failed_B.sum()), len(rollout) * len(ctx.terms))
        if self.gold is not None:
            metrics["objective/gold"] = self.gold.mean(posts, responses)
        clock.lap("scores")
        lr, _ = (each.follow(step, self.plan.updates) for each in self.optimizers.values())
        train_metrics, first_minibatch = train_on(
            batch, self.policy, self.critic, self.optimizers, ctx, step, self.beside, self.keeper
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
    """From SFT policy and reward model to `model/` and `critic/`, which starts as the RM (E3).

    Detail E1: the paper's set-up is the default of `PPOConfig`.
    """
    cfg = ctx.config.ppo
    assert cfg is not None
    trainer = Trainer.start(ctx, ctx.data.demonstrations("train"), ctx.gold())
    updates = trainer.plan.updates
    keeper = trainer.keeper = Keeper(
        where,
        ctx,
        trainer.modules(),
        trainer.optimizers,
        cfg.save_steps,
        cfg.optim.max_skips,
        cfg.keep_policy_steps,
    )
    first = keeper.begin()
    progress = ctx.progress("ppo", updates - first, "update")
    with closing(trainer), progress as bar, ctx.stop.deferred():
        for step in range(first, updates):
            found = trainer.update(step)
            where.journal(step + 1, found.metrics)
            ctx.watch.update(where, step + 1, trainer, found)
            if step % cfg.sample_steps == 0 or step == updates - 1:
                rows = readable(found.rollout, found.responses, found.posts)
                where.write_samples(step + 1, rows)
            kl = found.metrics["objective/kl"]
            bar.tick(
                reward=found.metrics["objective/scores"],
                kl=kl,
                tok_s=found.metrics["tokens_per_second"],
            )
            check_kl(kl, cfg.target_kl_stop, step, "ppo")
            keeper.after(step + 1)
    keeper.require_steps()
    ctx.keep(trainer.policy, where.model)
    ctx.keep_scalar(trainer.critic, where.critic)
    return {"updates": updates, **verdict(where)}


def check_kl(kl: float, limit: float | None, step: int, stage: str) -> None:
    """Raise KLStopError where the mean KL of an update, in nats a response, is above `limit`."""
    if limit is not None and kl > limit:
        raise KLStopError(
            f"update {step + 1}: KL to the reference is {kl:.1f} nats a response, above "
            f"{stage}.target_kl_stop={limit}; raise {stage}.kl_coef or lower "
            f"{stage}.optim.learning_rate"
        )


def verdict(where: StageDir) -> dict[str, Any]:
    """The figures at the first update, where KL is 0 and the ratio 1, and at the last."""
    rows = [row["metrics"] for row in where.journal_rows()]
    first, last = rows[0], rows[-1]
    shown = (
        "objective/kl",
        "objective/scores",
        "objective/gold",
        "val/response_length",
        "val/eos_rate",
    )
    at_first = {n: v for n, v in first.items() if n.startswith("first_minibatch/") or n in shown}
    return {
        "first": at_first,
        "last": {n: last[n] for n in shown if n in last},
        **_of_functions(rows),
    }


def _of_functions(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """How many calls of verifiable rewards gave no value, of all updates; empty without any."""
    told = [row for row in rows if "scoring/failed" in row]
    if not told:
        return {}
    failed = sum(row["scoring/failed"] for row in told)
    share = statistics.fmean(row["scoring/failed_share"] for row in told)
    return {"scoring": {"failed": failed, "failed_share": share}}
