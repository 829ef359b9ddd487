"""Supervised training on demonstrations (section C); `train` is also the loop of pretraining."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from nplus.algorithms import supervised
from nplus.batches import Objective, TokenBatch
from nplus.config import BatchConfig, OptimConfig
from nplus.data.collate import WIDTH_MULTIPLE, sequence_rows, token_batch
from nplus.runs import StageDir
from nplus.stages.compute import for_training, forward_precision
from nplus.stages.context import Context
from nplus.stages.copying import copy_test
from nplus.stages.forwards import token_objective
from nplus.stages.trainer import Trainer
from nplus.stages.turns import SHOWN, rate, train_turns

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


def trainer(
    model: PreTrainedModel,
    rows: list[Row],
    ctx: Context,
    *,
    name: str,
    epochs: int,
    optim: OptimConfig,
    batch: BatchConfig,
    pad_id: int,
    loss_on: str = "all",
    query_weight: float = 1.0,
    response_weight: float = 1.0,
) -> Trainer[Row, TokenBatch]:
    """Next-token training of `model` on `rows`; `name` names their order."""

    def objective(micro: TokenBatch) -> Objective:
        with forward_precision(ctx.device, ctx.config.compute.autocast):
            return token_objective(model, micro)

    for_training(model, ctx.config)
    return Trainer(
        ctx=ctx,
        name=name,
        model=model,
        rows=rows,
        micro_batches=partial(
            micro_batches,
            pad_id=pad_id,
            loss_on=loss_on,
            query_weight=query_weight,
            response_weight=response_weight,
        ),
        counts=supervised.counts,
        objective=objective,
        timing=rate,
        epochs=epochs,
        optim=optim,
        batch=batch,
    )


def train(
    model: PreTrainedModel,
    rows: list[Row],
    where: StageDir,
    ctx: Context,
    *,
    save_steps: int,
    **settings: Any,
) -> Mapping[str, float]:
    """All steps of `trainer`, with its `settings`; resumes by itself."""
    return trainer(model, rows, ctx, **settings).run(where, save_steps=save_steps, shown=SHOWN)


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """From the pretrained toy or the named model to `model/`, with a copy test in the world.

    Detail C1: the paper's set-up is the default of `SFTConfig`, over all demonstrations.
    """
    cfg = ctx.config.sft
    model = ctx.policy(ctx.base_stage)
    if cfg.packing or cfg.loss_on == "assistant":
        read = ctx.data.dialogues if ctx.config.data.format == "chat" else ctx.data.demonstrations
        rows = read("train")[: cfg.max_rows]
        results = train_turns(model, rows, where, ctx)
        ctx.keep(model, where.model)
        return {**results, "rows": len(rows), **copy_test(model, where, ctx)}
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
    ctx.keep(model, where.model)
    return {**results, "rows": len(demonstrations), **copy_test(model, where, ctx)}
