"""A round's training: a preference loss on the pairs so far (arXiv 2405.07863, section 4.1)."""

from __future__ import annotations

from typing import Any

from nplus.data.collate import pair_rows
from nplus.records import Comparison, read_records
from nplus.runs import StageDir
from nplus.stages import dpo
from nplus.stages.context import Context
from nplus.stages.online.common import policy_stage, settings


def begins_at(ctx: Context, round: int) -> int:
    """The round whose policy this one's training begins with; 0 is SFT's."""
    return 0 if settings(ctx).init == "sft" else round - 1


def refers_to(ctx: Context, round: int) -> int:
    """The round whose policy is the loss's reference; 0 is SFT's.

    The published scripts moved it every round, while the paper and its authors keep it at SFT
    (spec trap); `online.reference` says which.
    """
    return 0 if settings(ctx).reference == "sft" else round - 1


def rounds_used(ctx: Context, round: int) -> range:
    """The rounds whose pairs this one trains on."""
    return range(round, round + 1) if settings(ctx).history == "fresh" else range(1, round + 1)


def pairs_of(ctx: Context, round: int) -> list[Comparison]:
    """All that a round trains on: the offline comparisons first where they are mixed in."""
    cfg = settings(ctx)
    found: list[Comparison] = []
    if cfg.history == "offline-mix":
        labelled = read_records(ctx.dirs["label"].comparisons, Comparison)
        found += [row for row in labelled if row.split == "train"][: cfg.offline_pairs]
    for number in rounds_used(ctx, round):
        found += read_records(ctx.dirs[f"round{number}_pair"].comparisons, Comparison)
    return found


def run(where: StageDir, ctx: Context, round: int) -> dict[str, Any]:
    """Writes `model/`, the policy after this round."""
    cfg = settings(ctx)
    policy = ctx.policy(policy_stage(begins_at(ctx, round)))
    reference = ctx.policy(policy_stage(refers_to(ctx, round))).eval().requires_grad_(False)
    pairs = pairs_of(ctx, round)[: cfg.train.max_rows]
    rows = pair_rows(ctx.codec, pairs)
    name = f"round{round}"
    results = dpo.train(policy, reference, rows, where, ctx, cfg.train, name)
    ctx.keep(policy, where.model)
    return {**results, "pairs": len(rows)}
