"""Policy gradients on groups of responses: RLOO, GRPO and the like, without a critic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from nplus.algorithms import reinforce
from nplus.algorithms.ppo import KLController
from nplus.batches import GroupRollout, Objective, ReinforceBatch
from nplus.config import ReinforceConfig
from nplus.metrics import Metric
from nplus.models.lm import response_logprobs
from nplus.models.shared import shared_response_logprobs
from nplus.runs import StageDir
from nplus.seeding import epoch_order
from nplus.stages import on_policy
from nplus.stages.compute import forward_precision
from nplus.stages.context import Context
from nplus.stages.ppo import trimmed


@dataclass(frozen=True, slots=True)
class PolicyGradient:
    """The clipped loss of `policy` on advantages that the group, or nothing, is the baseline of."""

    ctx: Context
    policy: PreTrainedModel

    @property
    def cfg(self) -> ReinforceConfig:
        assert self.ctx.config.reinforce is not None
        return self.ctx.config.reinforce

    def controller(self) -> KLController:
        cfg = self.cfg
        return KLController(cfg.kl_coef, target=cfg.kl_target, horizon=cfg.kl_horizon)

    def minibatches(
        self, grouped: GroupRollout, step: int, kl_coef: float, hands: int
    ) -> tuple[Iterator[list[ReinforceBatch]], dict[str, Metric]]:
        batch, metrics = reinforce.credit(grouped, self.cfg, kl_coef=kl_coef)
        return self.cut(batch, step, hands), metrics

    def cut(
        self, batch: ReinforceBatch, step: int, hands: int = 1
    ) -> Iterator[list[ReinforceBatch]]:
        """Every pass a fresh permutation, cut into minibatches, each into micro-batches of like
        length. Responses that share a reading of their prompt stay side by side.

        Where groups were left out minibatches are smaller, and those without rows are left out.
        """
        cfg, ctx = self.cfg, self.ctx
        each = cfg.num_generations if cfg.shared else 1
        read = -batch.response_tokens_BR.shape[1] if cfg.shared else None
        lengths_B = batch.mask_BT[:, :read].sum(1).cpu()
        for epoch in range(cfg.num_iterations if len(batch) else 0):
            name = f"reinforce minibatches {step}"
            order = torch.from_numpy(epoch_order(ctx.seed, name, epoch, len(batch) // each))
            for part in order.tensor_split(cfg.num_mini_batches):
                if not len(part):
                    continue
                index = (part[:, None] * each + torch.arange(each)).flatten()
                index = index[torch.argsort(lengths_B[index], stable=True)]
                rows = min(cfg.micro_batch_size, -(-len(index) // hands))
                micros = batch.rows(index).split(rows)
                narrow = ctx.config.model.positions == "real"
                yield [trimmed(micro) for micro in micros] if narrow else list(micros)

    def counts(self, micro: ReinforceBatch) -> dict[str, float]:
        return reinforce.counts(micro, self.cfg)

    def objective(self, micro: ReinforceBatch) -> Objective:
        cfg = self.cfg
        temperature = cfg.sampling.temperature if "new" in cfg.tempered else None
        width = micro.response_tokens_BR.shape[1]
        with forward_precision(self.ctx.device, cfg.autocast):
            read = shared_response_logprobs if cfg.shared else response_logprobs
            found = read(
                self.policy, micro.tokens_BT, micro.mask_BT, width, temperature=temperature
            )
        return reinforce.objective(*found, micro, cfg)


def trainer(ctx: Context) -> on_policy.Trainer[Any]:
    """The stage's trainer, from SFT policy and reward model."""
    assert ctx.config.reinforce is not None
    policy, reference, reward_model = on_policy.start(ctx, ctx.config.reinforce)
    method = PolicyGradient(ctx, policy)
    posts = ctx.data.demonstrations("train")
    return on_policy.Trainer.of(ctx, method, policy, reference, reward_model, posts, ctx.gold())


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """From SFT policy and reward model to `model/`."""
    built = trainer(ctx)
    return {"algorithm": built.cfg.algorithm, **on_policy.run(where, ctx, built)}
