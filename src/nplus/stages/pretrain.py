"""Next-token training of a toy model from scratch, on posts with summaries or retellings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nplus.data.collate import sequence_rows
from nplus.models.toy import build_toy
from nplus.runs import StageDir
from nplus.stages.context import Context
from nplus.stages.sft import train


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """Writes `model/`: a toy GPT-NeoX that reads and retells the world's posts."""
    cfg, size = ctx.config.pretrain, ctx.config.model.size
    if cfg is None or size is None:
        raise ValueError("pretraining needs `pretrain` and `model.size`")
    codec = ctx.codec.with_rules(replace(ctx.codec.rules, distinct_pad=True))
    model = build_toy(
        size, vocab_size=codec.size, eos_id=codec.eos_id, pad_id=codec.pad_id, seed=ctx.seed
    )
    model.set_attn_implementation(ctx.config.model.attn_implementation)
    model.to(ctx.device)
    rows = sequence_rows(codec, ctx.data.demonstrations("pretrain"))
    results = train(
        model,
        rows,
        where,
        ctx,
        name="pretrain",
        epochs=cfg.epochs,
        optim=cfg.optim,
        batch=cfg.batch,
        save_steps=cfg.save_steps,
        response_weight=cfg.summary_weight,
        pad_id=codec.pad_id,
    )
    ctx.keep(model, where.model)
    return {**results, "rows": len(rows), "parameters": sum(p.numel() for p in model.parameters())}
