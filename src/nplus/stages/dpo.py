"""Preference optimisation on the reward model's comparisons, and its implicit reward (Detail D9).

Offline, as in the paper; other stages give `train` pairs, a policy and settings of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nplus.algorithms import preference
from nplus.algorithms.preference import Pairs
from nplus.batches import Objective, PairBatch
from nplus.config import DPOConfig
from nplus.data.collate import (
    WIDTH_MULTIPLE,
    PairRow,
    pair_batch,
    pair_rows,
    referred_pairs,
    require_margins,
)
from nplus.evaluation.accuracy import margin_records
from nplus.records import Comparison, InputError, read_records, write_records
from nplus.runs import StageDir
from nplus.stages.compute import for_training, forward_precision
from nplus.stages.context import Context
from nplus.stages.coupling import Coupling
from nplus.stages.forwards import pair_logprobs, require_apart
from nplus.stages.references import referred
from nplus.stages.reward import longest, seconds, validation_reports
from nplus.stages.trainer import Trainer


def rows_of(
    comparisons: list[Comparison], ctx: Context, cfg: DPOConfig, name: str
) -> list[PairRow]:
    """Ids of comparisons, with the margins and designated responses that the loss reads.

    `name` is the stage's, for the message: InputError where a margin is needed and missing.
    """
    if "margin" in preference.kind_of(cfg).reads:
        mend = f"set {name}.loss_type=sigmoid"
        require_margins(comparisons, f"{name}.loss_type={cfg.loss_type}", mend)
    rows = pair_rows(ctx.codec, comparisons, cfg.xpo_policy if cfg.xpo_alpha else None)
    if cfg.xpo_alpha and not any(any(row.designated) for row in rows):
        writers = sorted({policy for c in comparisons for policy in c.policies})
        raise InputError(
            f"{name}.xpo_policy={cfg.xpo_policy}: it wrote no response of these pairs, so the "
            f"optimism of {name}.xpo_alpha={cfg.xpo_alpha} would be of none; name one of "
            f"{', '.join(writers)}, or set {name}.xpo_alpha=0"
        )
    return rows


def in_pieces(rows: list[PairRow], size: int, pad_id: int) -> list[Pairs]:
    """Batches of `size` pairs in the order of the rows, with reference log-probs where known."""
    known = bool(rows) and rows[0].ref_logprobs is not None
    collate = referred_pairs if known else pair_batch
    pieces = (rows[i : i + size] for i in range(0, len(rows), size))
    return [collate(piece, pad_id=pad_id, multiple=WIDTH_MULTIPLE) for piece in pieces]


def micro_batches(rows: list[PairRow], size: int, pad_id: int) -> list[Pairs]:
    """`in_pieces`, rows of like length together."""
    return in_pieces(sorted(rows, key=longest), size, pad_id)


def forward(
    model: PreTrainedModel, pairs: PairBatch, ctx: Context, layout: str = "separate"
) -> Tensor:
    """[2N] summed log-probs in the precision of the run, the chosen responses' first."""
    with forward_precision(ctx.device, ctx.config.compute.autocast):
        return pair_logprobs(model, pairs, shared=layout == "shared")


def trainer(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    rows: list[PairRow],
    ctx: Context,
    cfg: DPOConfig,
    *,
    name: str,
) -> Trainer[PairRow, Pairs]:
    """The loss of `cfg` of `policy` against `reference` on comparisons.

    `name` is the stage's: the order of the rows and what dropout draws hang on it. `reference` may
    be None where the loss has none.
    """

    def ref_logprobs(micro: Pairs, pairs: PairBatch) -> Tensor | None:
        known_2N = preference.known_ref_logprobs(micro)
        if known_2N is not None or not cfg.has_reference:
            return known_2N
        assert reference is not None
        with torch.no_grad():
            return forward(reference, pairs, ctx, cfg.layout)

    def objective(micro: Pairs) -> Objective:
        pairs = preference.plain(micro)
        ref_logprobs_2N = ref_logprobs(micro, pairs)
        logprobs_2N = forward(policy, pairs, ctx, cfg.layout)
        if ref_logprobs_2N is not None:
            ref_logprobs_2N = ref_logprobs_2N.to(logprobs_2N.dtype)
        shared = preference.shared_readings(micro)
        narrow = {key: x_N.to(logprobs_2N.dtype) for key, x_N in shared.items()}
        return preference.objective(logprobs_2N, ref_logprobs_2N, pairs, cfg, narrow)

    if cfg.layout == "shared":
        for network in (policy, reference):
            if network is not None:
                require_apart(network, rows[0], ctx.codec.pad_id, f"{name}.layout")
    for_training(policy, ctx.config)
    pad_id, first_pass = ctx.codec.pad_id, None
    if preference.kind_of(cfg).statistics != "none":
        assert reference is not None
        first_pass = Coupling(
            policy=policy,
            reference=reference,
            cfg=cfg,
            topology=ctx.topology,
            forward=partial(forward, ctx=ctx, layout=cfg.layout),
            micro_batches=partial(micro_batches, pad_id=pad_id),
            device=ctx.device,
        )
    return Trainer(
        ctx=ctx,
        name=name,
        model=policy,
        rows=rows,
        micro_batches=partial(micro_batches, pad_id=pad_id),
        counts=partial(preference.counts, cfg=cfg),
        objective=objective,
        timing=seconds,
        epochs=cfg.epochs,
        optim=cfg.optim,
        batch=cfg.batch,
        part="policy",
        first_pass=first_pass,
    )


def train(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    rows: list[PairRow],
    where: StageDir,
    ctx: Context,
    cfg: DPOConfig,
    *,
    name: str,
    earlier: Sequence[StageDir] = (),
) -> dict[str, float]:
    """`epochs` passes over comparisons, one step per `batch_size` pairs; resumes by itself.

    `earlier` stages may have kept log-probs of the same reference.
    """
    shown = {"loss": "loss/train", "accuracy": "rewards/accuracies"}
    if cfg.ref_logprobs == "cached":
        assert reference is not None
        rows = with_reference(reference, rows, where, ctx, cfg, earlier)
    made = trainer(policy, reference, rows, ctx, cfg, name=name)
    return made.run(where, save_steps=cfg.save_steps, shown=shown)


def with_reference(
    reference: PreTrainedModel,
    rows: list[PairRow],
    where: StageDir,
    ctx: Context,
    cfg: DPOConfig,
    earlier: Sequence[StageDir] = (),
) -> list[PairRow]:
    """The rows with the reference's log-probs, which the stage's directory keeps."""
    batches = partial(in_pieces, size=cfg.batch.micro_batch_size, pad_id=ctx.codec.pad_id)
    rows = [row._replace(ref_logprobs=None) for row in rows]
    reader = partial(forward, ctx=ctx, layout=cfg.layout)
    return referred(rows, reference, where, ctx, batches, reader, earlier)


@torch.no_grad()
def implicit_margins(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    comparisons: list[Comparison],
    ctx: Context,
    cfg: DPOConfig,
) -> list[float]:
    """Per comparison, the implicit reward of the chosen response minus the other's (Detail D9).

    The reward is `beta * (log p - log p_ref)` of the response, EOS included, or for a loss without
    a reference what `preference.rewards` says.
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
        logprobs_2N = pair_logprobs(policy, batch, shared=cfg.layout == "shared")
        ref_logprobs_2N = None
        if cfg.has_reference:
            assert reference is not None
            ref_logprobs_2N = pair_logprobs(reference, batch, shared=cfg.layout == "shared")
        chosen_N, rejected_N = preference.rewards(logprobs_2N, ref_logprobs_2N, batch, cfg)
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
    policy = ctx.policy("sft")
    reference = ctx.policy("sft").eval().requires_grad_(False) if cfg.has_reference else None
    results: dict[str, Any] = {
        **train(policy, reference, rows_of(rows, ctx, cfg, "dpo"), where, ctx, cfg, name="dpo"),
        "pairs": len(rows),
    }
    if reference is None:
        results["implicit_reward"] = "of the policy alone: the loss has no reference"
    margins = implicit_margins(policy.eval(), reference, held, ctx, cfg)
    write_records(where.margins, margin_records(held, margins))
    results |= validation_reports(held, margins)
    ctx.keep(policy, where.model)
    return results
