"""A round's training: a preference loss on the pairs so far (arXiv 2405.07863, section 4.1)."""

from __future__ import annotations

from typing import Any

from nplus.records import Comparison, read_records
from nplus.runs import StageDir
from nplus.stages import dpo
from nplus.stages.context import Context
from nplus.stages.online.common import (
    begins_at,
    policy_stage,
    refers_to,
    rounds_used,
    settings,
)


def pairs_of(ctx: Context, round: int) -> list[Comparison]:
    """All that a round trains on: the offline comparisons first where they are mixed in."""
    cfg = settings(ctx)
    found: list[Comparison] = []
    if cfg.history == "offline-mix":
        labelled = read_records(ctx.dirs["label"].comparisons, Comparison)
        found += [row for row in labelled if row.split == "train"][: cfg.offline_pairs]
    for number in rounds_used(cfg, round):
        found += read_records(ctx.dirs[f"round{number}_pair"].comparisons, Comparison)
    return found


def run(where: StageDir, ctx: Context, round: int) -> dict[str, Any]:
    """Writes `model/`, the policy after this round."""
    cfg = settings(ctx)
    policy = ctx.policy(policy_stage(begins_at(cfg, round)))
    reference = None
    if cfg.train.has_reference:
        reference = ctx.policy(policy_stage(refers_to(cfg, round))).eval().requires_grad_(False)
    rows = dpo.rows_of(pairs_of(ctx, round), ctx, cfg.train, "online.train")
    earlier = [ctx.dirs[f"round{number}_train"] for number in range(1, round)]
    results = dpo.train(
        policy, reference, rows, where, ctx, cfg.train, name=f"round{round}", earlier=earlier
    )
    ctx.keep(policy, where.model)
    return {**results, "pairs": len(rows)}
