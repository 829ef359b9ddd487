"""Supervised training of the turns of conversations, and of sequences packed into rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from nplus.algorithms import supervised
from nplus.batches import Objective, PackedBatch, TokenBatch
from nplus.data.collate import WIDTH_MULTIPLE
from nplus.data.targets import Pack, TargetRow, pack, packed_batch, target_batch, target_rows
from nplus.records import Demonstration, InputError
from nplus.runs import StageDir
from nplus.stages.compute import for_training, forward_precision
from nplus.stages.context import Context
from nplus.stages.forwards import packed_objective, token_objective
from nplus.stages.trainer import Trainer

SHOWN = {"loss": "loss/train", "tok_s": "tokens_per_second"}


def rate(micros: Sequence[TokenBatch | PackedBatch], seconds: float) -> dict[str, float]:
    """Real tokens a second."""
    return {"tokens_per_second": sum(int(m.mask_BT.sum()) for m in micros) / seconds}


def target_batches(rows: list[TargetRow], size: int, pad_id: int) -> list[TokenBatch]:
    """Rows sorted by length into micro-batches no wider than their longest row."""
    rows = sorted(rows, key=lambda row: len(row.tokens))
    pieces = (rows[i : i + size] for i in range(0, len(rows), size))
    return [target_batch(piece, pad_id=pad_id, multiple=WIDTH_MULTIPLE) for piece in pieces]


def packed_batches(rows: list[Pack], size: int, pad_id: int) -> list[PackedBatch]:
    """The same of packed rows."""
    rows = sorted(rows, key=lambda row: sum(len(each.tokens) for each in row))
    pieces = (rows[i : i + size] for i in range(0, len(rows), size))
    return [packed_batch(piece, pad_id=pad_id, multiple=WIDTH_MULTIPLE) for piece in pieces]


def turns_trainer(
    model: PreTrainedModel, demonstrations: Sequence[Demonstration], ctx: Context
) -> Trainer[Any, Any]:
    """Training on the turns that `sft.loss_on` names, with packed rows under `sft.packing`.

    The steps are `epochs * rows // batch_size`; packed, a row holds several demonstrations, and is
    the same in every epoch.
    """
    cfg, pad_id = ctx.config.sft, ctx.codec.pad_id
    rows: list[Any] = [*target_rows(ctx.codec, demonstrations, cfg.loss_on)]
    batches: Any = target_batches
    if cfg.packing:
        require_blind(model, rows[:2], pad_id, ctx)
        data = ctx.config.data
        width = cfg.max_length or data.max_query_tokens + data.max_response_tokens
        rows, batches = [*pack(rows, width)], packed_batches

    def objective(micro: TokenBatch | PackedBatch) -> Objective:
        with forward_precision(ctx.device, ctx.config.compute.autocast):
            return either_objective(model, micro)

    for_training(model, ctx.config)
    return Trainer(
        ctx=ctx,
        name="sft",
        model=model,
        rows=rows,
        micro_batches=partial(batches, pad_id=pad_id),
        counts=supervised.counts,
        objective=objective,
        timing=rate,
        epochs=cfg.epochs,
        optim=cfg.optim,
        batch=cfg.batch,
    )


def either_objective(model: PreTrainedModel, batch: TokenBatch | PackedBatch) -> Objective:
    """Next-token loss of rows that hold one sequence, or several."""
    return OBJECTIVES[type(batch)](model, batch)


OBJECTIVES: dict[type, Callable[..., Objective]] = {
    TokenBatch: token_objective,
    PackedBatch: packed_objective,
}


@torch.no_grad()
def require_blind(
    model: PreTrainedModel, rows: Sequence[TargetRow], pad_id: int, ctx: Context
) -> None:
    """Raises InputError where the network ignores the mask that parts the sequences of a row."""
    model.eval()  # dropout would part them too
    batches = target_batch(rows, pad_id=pad_id), packed_batch([rows], pad_id=pad_id)
    apart, together = (
        float(either_objective(model, batch.to(ctx.device)).terms["train"][1].sum)
        for batch in batches
    )
    if abs(apart - together) > 1e-2 * max(1.0, abs(apart)):
        raise InputError(
            f"sft.packing=true: the loss of two sequences in one row is {together:.4g}, apart "
            f"{apart:.4g}: {type(model).__name__} lets them see each other; set sft.packing=false"
        )


def train_turns(
    model: PreTrainedModel,
    demonstrations: Sequence[Demonstration],
    where: StageDir,
    ctx: Context,
) -> Mapping[str, float]:
    """All steps of `turns_trainer`; resumes by itself."""
    made = turns_trainer(model, demonstrations, ctx)
    found = made.run(where, save_steps=ctx.config.sft.save_steps, shown=SHOWN)
    return {**found, "training_rows": len(made.rows)}
