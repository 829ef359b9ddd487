"""The pairwise preference model, trained on the reward model's comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel

from nplus.data.collate import WIDTH_MULTIPLE, padded
from nplus.data.preference import (
    has_room,
    letter_ids,
    letter_rows,
    pair_prompts,
    require_room,
)
from nplus.data.tokens import Codec
from nplus.evaluation.accuracy import margin_records, share
from nplus.models.lm import response_logits
from nplus.records import Comparison, Verdict, Winner, read_records, write_records
from nplus.runs import StageDir
from nplus.stages import sft
from nplus.stages.context import Context
from nplus.stages.reward import validation_reports


class PairwiseModel:
    """A Comparator: p(first is better) by the letter's logits, the mean over both orders.

    A preference for a place cancels: with a bias b, the orders say `sigmoid(d + b)` and
    `1 - sigmoid(-d + b)`, whose mean is above 1/2 exactly where d is above 0.
    """

    def __init__(self, model: PreTrainedModel, codec: Codec, *, size: int = 32) -> None:
        self.model, self.codec, self.size = model, codec, size
        self.letters = letter_ids(codec)
        self.positions: int | None = getattr(model.config, "max_position_embeddings", None)

    def fits(self, comparisons: Sequence[Comparison]) -> list[bool]:
        """Whether the model has positions for each query with both responses."""
        queries, pairs = [row.query for row in comparisons], [row.responses for row in comparisons]
        prompts = pair_prompts(self.codec, queries, pairs)
        return [has_room(prompt, self.positions) for prompt in prompts]

    def compare(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """One verdict a comparison, from both orders; exactly 1/2 is a tie."""
        asked = [(row.query, row.responses) for row in comparisons]
        orders = self.both_orders(asked)
        verdicts = []
        for row, (forward, back) in zip(comparisons, orders, strict=True):
            p = mean_of_orders(forward, back)
            votes = (_winner(forward), _winner(1.0 - back))
            verdicts.append(Verdict(row.id, _winner(p), ("ours", "opponent"), votes))
        return verdicts

    def preferences(self, asked: Sequence[tuple[str, tuple[str, str]]]) -> list[float]:
        """p(the first of two responses is better) for each (query, responses)."""
        return [mean_of_orders(*each) for each in self.both_orders(asked)]

    def both_orders(
        self, asked: Sequence[tuple[str, tuple[str, str]]]
    ) -> list[tuple[float, float]]:
        """`p(A)` with the responses as they are, and with the second one as A."""
        turned = [(query, (second, first)) for query, (first, second) in asked]
        found = self._first_is_better([*asked, *turned])
        return list(zip(found[: len(asked)], found[len(asked) :], strict=True))

    @torch.no_grad()
    def _first_is_better(self, asked: Sequence[tuple[str, tuple[str, str]]]) -> list[float]:
        """`p(A)`, softmax over the two letters alone, in the order shown."""
        queries, pairs = [query for query, _ in asked], [pair for _, pair in asked]
        prompts = pair_prompts(self.codec, queries, pairs)
        require_room(prompts, queries, self.positions)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found = [0.0] * len(prompts)
        for start in range(0, len(order), self.size):
            picked = order[start : start + self.size]
            # Some letter stands last: its logits are those that training has taught.
            rows, pad_id = [[*prompts[i], self.letters[0]] for i in picked], self.codec.pad_id
            tokens_BT, mask_BT = padded(rows, pad_id, left=True, multiple=WIDTH_MULTIPLE)
            device = self.model.device
            logits_BV = response_logits(self.model, tokens_BT.to(device), mask_BT.to(device), 1)
            both_B2 = logits_BV[:, 0, list(self.letters)].float()
            for i, p in zip(picked, both_B2.softmax(-1)[:, 0].tolist(), strict=True):
                found[i] = p
        return found


def mean_of_orders(forward: float, back: float) -> float:
    """p(first is better) from `p(A)` in both orders."""
    return 0.5 * (forward + 1.0 - back)


def _winner(p: float) -> Winner:
    if p != p:
        return "invalid"
    return "tie" if p == 0.5 else "ours" if p > 0.5 else "opponent"


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """From the SFT policy and the comparisons to `model/`, with accuracy and place bias."""
    cfg = ctx.config.preference
    assert cfg is not None
    comparisons = read_records(ctx.dirs["label"].comparisons, Comparison)
    rows = [row for row in comparisons if row.split == "train"][: cfg.max_rows]
    model = ctx.policy("sft" if cfg.init == "sft" else ctx.base_stage)
    trained = letter_rows(ctx.codec, rows, ctx.seed)
    positions = getattr(model.config, "max_position_embeddings", None)
    require_room([row.prompt for row in trained], [row.id for row in rows], positions)
    results: dict[str, Any] = dict(
        sft.train(
            model,
            [(row.prompt, row.letter) for row in trained],
            where,
            ctx,
            name="preference",
            epochs=cfg.epochs,
            optim=cfg.optim,
            batch=cfg.batch,
            save_steps=cfg.save_steps,
            pad_id=ctx.codec.pad_id,
            loss_on="response",
        )
    )
    held = [row for row in comparisons if row.split != "train"]
    results |= report(PairwiseModel(model.eval(), ctx.codec), held, where, ctx)
    ctx.keep(model, where.model)
    return {**results, "pairs": len(rows)}


def report(
    judge: PairwiseModel, held: Sequence[Comparison], where: StageDir, ctx: Context
) -> dict[str, Any]:
    """Accuracy on held-out comparisons as the reward model's, and the bias for the first place.

    A margin is `p(chosen) - p(rejected)`, over both orders.
    """
    orders = judge.both_orders([(row.query, row.responses) for row in held])
    means = [mean_of_orders(*each) for each in orders]
    margins = [
        2.0 * (p if row.choice == 0 else 1.0 - p) - 1.0 for row, p in zip(held, means, strict=True)
    ]
    write_records(where.margins, margin_records(list(held), margins))
    found: dict[str, Any] = validation_reports(list(held), margins)
    gold = ctx.gold()
    if gold is not None:
        agree = decided = 0
        for row, p in zip(held, means, strict=True):
            one, other = (gold.judge(row.id, text).total for text in row.responses)
            decided += one != other
            agree += (p - 0.5) * (one - other) > 0
        found["validation"]["gold_accuracy"] = share(agree, decided)
    flipped = sum((forward > 0.5) == (back > 0.5) for forward, back in orders)
    found["first_place"] = {
        "p_first": fmean(fmean(each) for each in orders),
        "flips": share(flipped, len(orders)),
    }
    return found
