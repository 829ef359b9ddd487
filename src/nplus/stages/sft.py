"""Supervised training on demonstrations (section C); `train` is also the loop of pretraining."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from nplus.algorithms import supervised
from nplus.batches import Objective, TokenBatch
from nplus.config import BatchConfig, OptimConfig
from nplus.data.collate import WIDTH_MULTIPLE, sequence_rows, token_batch
from nplus.metrics import values
from nplus.models.files import save_causal_lm
from nplus.models.lm import sequence_logits
from nplus.runs import StageDir
from nplus.seeding import take
from nplus.stages.compute import forward_precision, seed_dropout
from nplus.stages.context import Context
from nplus.stages.copying import copy_test
from nplus.training.checkpoint import resume, save_checkpoint
from nplus.training.optim import Optimizer, schedule
from nplus.training.update import update

Row = tuple[list[int], list[int]]


def micro_batches(
    rows: list[Row],
    size: int,
    *,
    pad_id: int,
    loss_on: str,
    query_weight: float,
    response_weight: float,
) -> list[TokenBatch]:
    """Rows sorted by length into micro-batches no wider than their longest row."""
    rows = sorted(rows, key=lambda row: len(row[0]) + len(row[1]))
    pieces = [rows[i : i + size] for i in range(0, len(rows), size)]
    weights = {"query_weight": query_weight, "response_weight": response_weight}
    return [
        token_batch(piece, pad_id=pad_id, loss_on=loss_on, multiple=WIDTH_MULTIPLE, **weights)
        for piece in pieces
    ]


def train(
    model: torch.nn.Module,
    rows: list[Row],
    where: StageDir,
    ctx: Context,
    *,
    name: str,
    epochs: int,
    optim: OptimConfig,
    batch: BatchConfig,
    save_steps: int,
    pad_id: int,
    loss_on: str = "all",
    query_weight: float = 1.0,
    response_weight: float = 1.0,
) -> Mapping[str, float]:
    """`epochs` passes over `rows`, one optimiser step per `batch_size` rows; resumes by itself.

    A last incomplete batch is left out, as in the paper (Detail B3's step counts).
    """
    total = max(1, epochs * len(rows) // batch.batch_size)
    optimizer = Optimizer(model.named_parameters(), optim)
    modules, optimizers = {"model": model}, {"model": optimizer}
    first = resume(where, modules=modules, optimizers=optimizers)

    def objective(micro: TokenBatch) -> Objective:
        with forward_precision(ctx.device, ctx.config.compute.autocast):
            logits_BTV = sequence_logits(model, micro.tokens_BT, micro.mask_BT)
        return supervised.objective(logits_BTV, micro)

    model.train()
    with ctx.progress(name, total - first) as bar:
        for step in range(first, total):
            began = time.monotonic()
            seed_dropout(ctx.config.model, ctx.seed, name, step)
            index = take(
                ctx.seed, name, len(rows), step * batch.batch_size, min(batch.batch_size, len(rows))
            )
            micros = micro_batches(
                [rows[i] for i in index],
                batch.micro_batch_size,
                pad_id=pad_id,
                loss_on=loss_on,
                query_weight=query_weight,
                response_weight=response_weight,
            )
            lr = optimizer.set_factor(
                schedule(optim.lr_scheduler_type, step, total, warmup=optim.warmup_steps)
            )
            metrics = update(
                [m.to(ctx.device) for m in micros],
                counts=supervised.counts,
                objectives=[objective],
                optimizers=[optimizer],
            )
            tokens = sum(int(m.mask_BT.sum()) for m in micros)
            rate = tokens / (time.monotonic() - began)
            last = {**values(metrics), "lr": lr, "tokens_per_second": rate}
            where.journal(step + 1, last)
            bar.tick(loss=last["loss/train"], tok_s=rate)
            if save_steps and (step + 1) % save_steps == 0:
                save_checkpoint(
                    where.checkpoints, step + 1, modules=modules, optimizers=optimizers, cursor={}
                )
    return {"steps": total, "loss": where.last_metrics()["loss/train"]}


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """From the pretrained toy or the named model to `model/`, with a copy test in the world.

    Detail C1: the paper's set-up is the default of `SFTConfig`, over all demonstrations.
    """
    cfg = ctx.config.sft
    model = ctx.policy(ctx.base_stage)
    demonstrations = ctx.data.demonstrations("train")[: cfg.max_rows]
    results = train(
        model,
        sequence_rows(ctx.codec, demonstrations),
        where,
        ctx,
        name="sft",
        epochs=cfg.epochs,
        optim=cfg.optim,
        batch=cfg.batch,
        save_steps=cfg.save_steps,
        pad_id=ctx.codec.pad_id,
        loss_on=cfg.loss_on,
    )
    save_causal_lm(model, where.model, ctx.codec.tokenizer)
    return {**results, "rows": len(demonstrations), **copy_test(model, where, ctx)}
