"""Offline DPO on the reward model's comparisons, and its implicit reward (Detail D9)."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nplus.algorithms import preference
from nplus.batches import Objective, PairBatch
from nplus.data.collate import WIDTH_MULTIPLE, PairRow, pair_batch, pair_rows
from nplus.evaluation.accuracy import margin_records
from nplus.metrics import values
from nplus.models.files import save_causal_lm
from nplus.models.lm import sequence_logprobs
from nplus.records import Comparison, read_records, write_records
from nplus.runs import StageDir
from nplus.seeding import take
from nplus.stages.compute import forward_precision, seed_dropout
from nplus.stages.context import Context
from nplus.stages.reward import micro_batches, validation_reports
from nplus.training.checkpoint import resume, save_checkpoint
from nplus.training.optim import Optimizer, schedule
from nplus.training.update import update


def logprobs(model: PreTrainedModel, batch: PairBatch) -> Tensor:
    """[2N] summed log-probs of the responses, the chosen ones first."""
    return sequence_logprobs(model, *batch.stacked(), batch.stacked_response_mask())


def train(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    rows: list[PairRow],
    where: StageDir,
    ctx: Context,
) -> dict[str, float]:
    """`epochs` passes over comparisons, one step per `batch_size` pairs; resumes by itself."""
    cfg = ctx.config.dpo
    assert cfg is not None
    size = min(cfg.batch.batch_size, len(rows))
    total = max(1, cfg.epochs * len(rows) // cfg.batch.batch_size)
    optimizer = Optimizer(policy.named_parameters(), cfg.optim)
    modules, optimizers = {"policy": policy}, {"policy": optimizer}
    first = resume(where, modules=modules, optimizers=optimizers)

    def objective(micro: PairBatch) -> Objective:
        with forward_precision(ctx.device, ctx.config.compute.autocast):
            with torch.no_grad():
                ref_logprobs_2N = logprobs(reference, micro)
            logprobs_2N = logprobs(policy, micro)
        return preference.objective(logprobs_2N, ref_logprobs_2N, micro, cfg)

    policy.train(bool(ctx.config.model.dropout))
    with ctx.progress("dpo", total - first) as bar:
        for step in range(first, total):
            began = time.monotonic()
            seed_dropout(ctx.config.model, ctx.seed, "dpo", step)
            index = take(ctx.seed, "dpo", len(rows), step * cfg.batch.batch_size, size)
            micros = micro_batches(
                [rows[i] for i in index], cfg.batch.micro_batch_size, "separate", ctx.codec.pad_id
            )
            lr = optimizer.set_factor(
                schedule(cfg.optim.lr_scheduler_type, step, total, warmup=cfg.optim.warmup_steps)
            )
            metrics = update(
                [m.to(ctx.device) for m in micros],
                counts=preference.counts,
                objectives=[objective],
                optimizers=[optimizer],
            )
            last = {**values(metrics), "lr": lr, "seconds": time.monotonic() - began}
            where.journal(step + 1, last)
            bar.tick(loss=last["loss/train"], accuracy=last["rewards/accuracies"])
            if cfg.save_steps and (step + 1) % cfg.save_steps == 0:
                save_checkpoint(
                    where.checkpoints, step + 1, modules=modules, optimizers=optimizers, cursor={}
                )
    return {"steps": total, "loss": where.last_metrics()["loss/train"]}


@torch.no_grad()
def implicit_margins(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    comparisons: list[Comparison],
    ctx: Context,
) -> list[float]:
    """Per comparison, the implicit reward of the chosen response minus the other's (Detail D9).

    The reward is `beta * (log p - log p_ref)` of the response, EOS included.
    """
    cfg = ctx.config.dpo
    assert cfg is not None
    rows = pair_rows(ctx.codec, comparisons)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].query) + len(rows[i].chosen))
    found = [0.0] * len(rows)
    size = cfg.batch.micro_batch_size
    for start in range(0, len(order), size):
        picked = order[start : start + size]
        batch = pair_batch(
            [rows[i] for i in picked], pad_id=ctx.codec.pad_id, multiple=WIDTH_MULTIPLE
        ).to(ctx.device)
        gains_2N = logprobs(policy, batch) - logprobs(reference, batch)
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
        **train(policy, reference, pair_rows(ctx.codec, rows), where, ctx),
        "pairs": len(rows),
    }
    margins = implicit_margins(policy.eval(), reference, held, ctx)
    write_records(where.margins, margin_records(held, margins))
    results |= validation_reports(held, margins)
    save_causal_lm(policy, where.model, ctx.codec.tokenizer)
    return results
