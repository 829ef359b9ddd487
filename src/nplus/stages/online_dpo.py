"""DPO on the policy's own responses: the best and the worst of each prompt, at every update."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nplus.algorithms import preference
from nplus.algorithms.reinforce import rollout_metrics, shaped
from nplus.batches import GroupRollout, Objective, PairBatch
from nplus.config import DPOConfig, OnlineDPOConfig
from nplus.data.collate import WIDTH_MULTIPLE, PairRow, pair_batch
from nplus.metrics import Mean, Metric, Sum
from nplus.ops.groups import best_and_worst
from nplus.runs import StageDir
from nplus.seeding import epoch_order
from nplus.stages import on_policy
from nplus.stages.compute import forward_precision
from nplus.stages.context import Context
from nplus.stages.forwards import pair_logprobs


@dataclass(frozen=True, slots=True)
class PairLoss:
    """A pair loss of `policy` against `reference` on the best and worst of each group."""

    ctx: Context
    policy: PreTrainedModel
    reference: PreTrainedModel

    @property
    def cfg(self) -> OnlineDPOConfig:
        assert self.ctx.config.online_dpo is not None
        return self.ctx.config.online_dpo

    @property
    def loss(self) -> DPOConfig:
        """The loss as offline DPO has it."""
        return self.cfg.pair_loss()

    def controller(self) -> None:
        """The pull to the reference is in the loss."""

    def minibatches(
        self, grouped: GroupRollout, step: int, kl_coef: float, hands: int
    ) -> tuple[Iterator[list[PairBatch]], dict[str, Metric]]:
        rollout, cfg = grouped.rollout, self.cfg
        scores_B = shaped(rollout.scores_B, rollout.has_eos_B, cfg)
        scores_QG = scores_B.view(-1, cfg.num_generations)
        best_Q, worst_Q, apart_Q = best_and_worst(scores_QG)
        gaps_Q = scores_QG.amax(1) - scores_QG.amin(1)
        rows = [row for row in pairs(grouped, best_Q, worst_Q, gaps_Q, apart_Q) if teaches(row)]
        metrics = rollout_metrics(grouped, scores_B) | {
            "groups/score_std": Mean.of(scores_QG.std(1)),
            "groups/score_gap": Mean.of(gaps_Q),
            "groups/equal": Mean.of(~apart_Q),
            "groups/dropped": Sum(float(len(apart_Q) - len(rows))),
        }
        return self.cut(rows, step, hands), metrics

    def cut(self, rows: list[PairRow], step: int, hands: int = 1) -> Iterator[list[PairBatch]]:
        """Every pass a fresh permutation of the pairs, cut into minibatches, each into
        micro-batches of like length."""
        cfg, ctx = self.cfg, self.ctx
        for epoch in range(cfg.num_iterations if rows else 0):
            order = epoch_order(ctx.seed, f"online_dpo minibatches {step}", epoch, len(rows))
            for index in torch.from_numpy(order).tensor_split(cfg.num_mini_batches):
                picked = sorted((rows[i] for i in index.tolist()), key=longest)
                size = max(1, min(cfg.micro_batch_size // 2, -(-len(picked) // hands)))
                parts = [picked[i : i + size] for i in range(0, len(picked), size)]
                pad_id = ctx.codec.pad_id
                micros = [pair_batch(p, pad_id=pad_id, multiple=WIDTH_MULTIPLE) for p in parts]
                if micros:
                    yield [micro.to(ctx.device) for micro in micros]

    def counts(self, micro: PairBatch) -> dict[str, float]:
        return {"train": float(len(micro))}

    def objective(self, micro: PairBatch) -> Objective:
        with forward_precision(self.ctx.device, self.cfg.autocast):
            with torch.no_grad():
                ref_logprobs_2N = pair_logprobs(self.reference, micro, shared=self.cfg.shared)
            logprobs_2N = pair_logprobs(self.policy, micro, shared=self.cfg.shared)
        # A score that is no number spoils the step, which is then left out, as without pairs.
        spoiled_N = ~micro.margin_N.isfinite()
        logprobs_2N = logprobs_2N.masked_fill(spoiled_N.repeat(2), math.nan)
        return preference.objective(logprobs_2N, ref_logprobs_2N, micro, self.loss)


def pairs(
    grouped: GroupRollout, best_Q: Tensor, worst_Q: Tensor, gaps_Q: Tensor, apart_Q: Tensor
) -> list[PairRow]:
    """The chosen and the rejected response of each group in `apart_Q`, and how far their scores
    are apart; `best_Q` and `worst_Q` are their places in the group."""
    generation = grouped.rollout.generation
    each = len(generation) // len(apart_Q)
    first_N = apart_Q.nonzero().flatten() * each
    best_N, worst_N = best_Q[apart_Q], worst_Q[apart_Q]

    def ids(tokens: Tensor, mask: Tensor, index: Tensor) -> list[list[int]]:
        return [row[real].tolist() for row, real in zip(tokens[index], mask[index], strict=True)]

    prompts = generation.prompts
    responses = generation.tokens_BR, generation.response_mask_BR
    found = zip(
        ids(prompts.tokens_BP, prompts.mask_BP, first_N),
        ids(*responses, first_N + best_N),
        ids(*responses, first_N + worst_N),
        gaps_Q[apart_Q].tolist(),
        strict=True,
    )
    return [PairRow(*row) for row in found]


def teaches(row: PairRow) -> bool:
    """Whether a pair is of two texts, or is to spoil its step; equal texts may differ in the last
    digit of their scores."""
    return row.chosen != row.rejected or not math.isfinite(row.margin)


def longest(row: PairRow) -> int:
    """Tokens of the longer side."""
    return len(row.query) + max(len(row.chosen), len(row.rejected))


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """From SFT policy and reward model to `model/`; the SFT policy stays the reference."""
    assert ctx.config.online_dpo is not None
    policy, reference, reward_model = on_policy.start(ctx, ctx.config.online_dpo)
    posts = ctx.data.demonstrations("train")
    method = PairLoss(ctx, policy, reference)
    trainer = on_policy.Trainer.of(ctx, method, policy, reference, reward_model, posts, ctx.gold())
    return on_policy.run(where, ctx, trainer)
