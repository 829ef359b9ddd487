"""Offline DPO on the reward model's comparisons, and its implicit reward (Detail D9)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from nplus.algorithms import preference
from nplus.batches import Objective, PairBatch
from nplus.config import DPOConfig
from nplus.data.collate import WIDTH_MULTIPLE, PairRow, pair_batch, pair_rows
from nplus.evaluation.accuracy import margin_records
from nplus.records import Comparison, read_records, write_records
from nplus.runs import StageDir
from nplus.stages.compute import for_training, forward_precision
from nplus.stages.context import Context
from nplus.stages.forwards import pair_logprobs
from nplus.stages.reward import micro_batches, seconds, validation_reports
from nplus.stages.trainer import Trainer


def trainer(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    rows: list[PairRow],
    ctx: Context,
    cfg: DPOConfig,
    *,
    name: str,
) -> Trainer[PairRow, PairBatch]:
    """The loss of `cfg` of `policy` against `reference` on comparisons.

    `name` is the stage's: the order of the rows and what dropout draws hang on it.
    """

    def objective(micro: PairBatch) -> Objective:
        with forward_precision(ctx.device, ctx.config.compute.autocast):
            with torch.no_grad():
                ref_logprobs_2N = pair_logprobs(reference, micro)
            logprobs_2N = pair_logprobs(policy, micro)
        return preference.objective(logprobs_2N, ref_logprobs_2N, micro, cfg)

    for_training(policy, ctx.config)
    return Trainer(
        ctx=ctx,
        name=name,
        model=policy,
        rows=rows,
        micro_batches=partial(micro_batches, layout="separate", pad_id=ctx.codec.pad_id),
        counts=preference.counts,
        objective=objective,
        timing=seconds,
        epochs=cfg.epochs,
        optim=cfg.optim,
        batch=cfg.batch,
        part="policy",
    )


def train(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    rows: list[PairRow],
    where: StageDir,
    ctx: Context,
    cfg: DPOConfig,
    *,
    name: str,
) -> dict[str, float]:
    """`epochs` passes over comparisons, one step per `batch_size` pairs; resumes by itself."""
    shown = {"loss": "loss/train", "accuracy": "rewards/accuracies"}
    made = trainer(policy, reference, rows, ctx, cfg, name=name)
    return made.run(where, save_steps=cfg.save_steps, shown=shown)


@torch.no_grad()
def implicit_margins(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    comparisons: list[Comparison],
    ctx: Context,
    cfg: DPOConfig,
) -> list[float]:
    """Per comparison, the implicit reward of the chosen response minus the other's (Detail D9).

    The reward is `beta * (log p - log p_ref)` of the response, EOS included.
    """
    rows = pair_rows(ctx.codec, comparisons)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].query) + len(rows[i].chosen))
    found = [0.0] * len(rows)
    size = cfg.batch.micro_batch_size
    for start in range(0, len(order), size):
        picked = order[start : start + size]
        batch = pair_batch(
            [rows[i] for i in picked], pad_id=ctx.codec.pad_id, multiple=WIDTH_MULTIPLE
        ).to(ctx.device)
        gains_2N = pair_logprobs(policy, batch) - pair_logprobs(reference, batch)
        chosen_N, rejected_N = (cfg.beta * gains_2N).chunk(2)
        for i, margin in zip(picked, (chosen_N - rejected_N).tolist(), strict=True):
            found[i] = margin
    return found


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """From the SFT policy and the comparisons to `model/`, with the implicit reward's accuracy."""
    comparisons = read_records(ctx.dirs["label"].comparisons, Comparison)
    cfg = ctx.config.dpo
    assert cfg is not None
    rows = [row for row in comparisons if row.split == "train"][: cfg.max_rows]
    held = [row for row in comparisons if row.split != "train"]
    policy, reference = ctx.policy("sft"), ctx.policy("sft").eval().requires_grad_(False)
    results: dict[str, Any] = {
        **train(policy, reference, pair_rows(ctx.codec, rows), where, ctx, cfg, name="dpo"),
        "pairs": len(rows),
    }
    margins = implicit_margins(policy.eval(), reference, held, ctx, cfg)
    write_records(where.margins, margin_records(held, margins))
    results |= validation_reports(held, margins)
    ctx.keep(policy, where.model)
    return results
