"""The Bradley-Terry reward model (section D)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nplus.algorithms import reward
from nplus.batches import Objective, PairBatch, SharedPairBatch
from nplus.data.collate import (
    WIDTH_MULTIPLE,
    PairRow,
    pair_batch,
    pair_rows,
    require_margins,
    shared_pair_batch,
)
from nplus.data.comparisons import NEWS_SPLIT
from nplus.evaluation.accuracy import accuracy_report, margin_records, share
from nplus.models.scalar import ScalarModel
from nplus.records import Comparison, Sample, read_records, write_records
from nplus.runs import StageDir
from nplus.seeding import take_grouped
from nplus.stages.compute import for_training, forward_precision
from nplus.stages.context import Context
from nplus.stages.forwards import pair_scores, require_apart
from nplus.stages.scorers import Gold, RewardScorer, margins
from nplus.stages.trainer import Trainer

Pairs = PairBatch | SharedPairBatch


def _groups(rows: list[PairRow], layout: str) -> list[list[int]]:
    """The rows that stay side by side: those of one query where it is shared, else each alone."""
    if layout == "separate":
        return [[at] for at in range(len(rows))]
    found: dict[tuple[int, ...], list[int]] = {}
    for at, row in enumerate(rows):
        found.setdefault(tuple(row.query), []).append(at)
    return list(found.values())


def longest(row: PairRow) -> int:
    """Tokens of the query with the longer response."""
    return len(row.query) + max(len(row.chosen), len(row.rejected))


def micro_batches(rows: list[PairRow], size: int, layout: str, pad_id: int) -> list[Pairs]:
    """Micro-batches of `size` pairs, those of like length together."""
    collate = pair_batch if layout == "separate" else shared_pair_batch
    if layout == "separate":
        rows = sorted(rows, key=longest)
    else:  # The pairs of a query stay together.
        rows = sorted(rows, key=lambda row: (len(row.query), row.query))
    pieces = (rows[i : i + size] for i in range(0, len(rows), size))
    return [collate(piece, pad_id=pad_id, multiple=WIDTH_MULTIPLE) for piece in pieces]


def _scores(model: ScalarModel, batch: Pairs) -> Tensor:
    """[2N]: chosen scores, then rejected."""
    if isinstance(batch, SharedPairBatch):
        return model.shared_scores(batch)
    return pair_scores(model, batch)


def trainer(model: ScalarModel, rows: list[PairRow], ctx: Context) -> Trainer[PairRow, Pairs]:
    """The Bradley-Terry loss on comparisons."""
    cfg = ctx.config.reward
    if cfg.layout == "shared":
        require_apart(model, rows[0], ctx.codec.pad_id, "reward.layout")

    def objective(micro: Pairs) -> Objective:
        with forward_precision(ctx.device, ctx.config.compute.autocast):
            scores_2N = _scores(model, micro)
        return reward.objective(scores_2N, micro, center=cfg.center_rewards_coefficient)

    for_training(model.network, ctx.config)
    return Trainer(
        ctx=ctx,
        name="reward",
        model=model,
        rows=rows,
        micro_batches=partial(micro_batches, layout=cfg.layout, pad_id=ctx.codec.pad_id),
        counts=reward.counts,
        objective=objective,
        timing=seconds,
        epochs=cfg.epochs,
        optim=cfg.optim,
        batch=cfg.batch,
        order=partial(take_grouped, ctx.seed, "reward", _groups(rows, cfg.layout)),
    )


def seconds(_: Sequence[Pairs], spent: float) -> dict[str, float]:
    return {"seconds": spent}


def train(
    model: ScalarModel, rows: list[PairRow], where: StageDir, ctx: Context
) -> dict[str, float]:
    """`epochs` passes over comparisons, one step per `batch_size` pairs; resumes by itself."""
    shown = {"loss": "loss/train", "accuracy": "accuracy"}
    save_steps = ctx.config.reward.save_steps
    return trainer(model, rows, ctx).run(where, save_steps=save_steps, shown=shown)


@torch.no_grad()
def normalise(model: ScalarModel, ctx: Context) -> dict[str, float]:
    """Detail D5: shift the scores so that training demonstrations average 0.

    `mean_std` also scales them to a standard deviation of 1.
    """
    demonstrations = ctx.data.demonstrations("train")[: ctx.config.reward.normalise_rows]
    samples = [Sample(d.id, d.query, d.response) for d in demonstrations]
    scores = torch.tensor(RewardScorer(model, ctx.codec).score(samples), dtype=torch.float64)
    model.set_shift(float(model.shift) + float(scores.mean()))
    if ctx.config.reward.normalise == "mean_std":
        model.set_std(float(scores.std()))
    return {"shift": float(model.shift), "demonstration_std": float(scores.std())}


def gold_accuracy(
    rows: list[Comparison], scores: list[tuple[float, float]], gold: Gold
) -> dict[str, float]:
    """How often the reward model orders two responses as gold does; gold ties are left out."""
    agree = decided = 0
    for row, (first, second) in zip(rows, scores, strict=True):
        golds = [gold.judge(row.id, text).total for text in row.responses]
        decided += golds[0] != golds[1]
        agree += (first - second) * (golds[0] - golds[1]) > 0
    return share(agree, decided)


def validation_reports(rows: list[Comparison], found: list[float]) -> dict[str, dict[str, Any]]:
    """Accuracy on held-out comparisons by margin: `validation`, and news apart where there is some,
    since one pooled figure would hide how far the domains are from each other (Detail A11)."""
    index = {"validation": [at for at, row in enumerate(rows) if row.split != NEWS_SPLIT]}
    index[NEWS_SPLIT] = [at for at, row in enumerate(rows) if row.split == NEWS_SPLIT]
    return {
        name: accuracy_report([rows[at] for at in part], [found[at] for at in part])
        for name, part in index.items()
        if part or name == "validation"
    }


def margined_rows(comparisons: list[Comparison], ctx: Context) -> list[PairRow]:
    """Ids of comparisons, with their margins where `reward.margin` wants them."""
    rows = pair_rows(ctx.codec, comparisons, always_eos=True)
    if ctx.config.reward.margin == "data":
        require_margins(comparisons, "reward.margin=data", "set reward.margin=none")
        return rows
    return [row._replace(margin=0.0) for row in rows]


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """From the SFT policy (Detail D1) and the comparisons to `model/`, with accuracy by group."""
    comparisons = read_records(ctx.dirs["label"].comparisons, Comparison)
    rows = [row for row in comparisons if row.split == "train"]
    cfg = ctx.config.reward
    base = ctx.policy("sft" if cfg.init == "sft" else ctx.base_stage)
    model = ctx.as_scalar(
        ScalarModel.from_causal(
            base, pad_id=ctx.codec.pad_id, seed=ctx.seed, head_init=cfg.head_init
        ),
        dropout=ctx.config.model.dropout,
    )
    results: dict[str, Any] = {
        **train(model, margined_rows(rows, ctx), where, ctx),
        "pairs": len(rows),
    }
    model.eval()
    if cfg.normalise != "none":
        results |= normalise(model, ctx)
    held = [row for row in comparisons if row.split != "train"]
    shared = cfg.layout == "shared"
    scores = RewardScorer(model, ctx.codec, shared=shared).pairs(held)
    found = margins(held, scores)
    write_records(where.margins, margin_records(held, found))
    results |= validation_reports(held, found)
    gold = ctx.gold()
    results["validation"]["gold_accuracy"] = gold_accuracy(held, scores, gold) if gold else None
    ctx.keep_scalar(model, where.model)
    return results
