"""Margins from people's files: read, kept on the road, and what losses make of them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from nplus.algorithms import preference as pair_losses
from nplus.algorithms import reward as reward_loss
from nplus.config import DPOConfig
from nplus.data.collate import pair_batch
from nplus.data.conversations import preference
from nplus.data.prepare import prepare
from nplus.data.sources import comparison
from nplus.records import Comparison, InputError, RowError, read_records
from nplus.runs import StageDir
from nplus.stages import dpo, label, reward

ROW = {"prompt": "Q", "chosen": "good", "rejected": "bad"}
OPENAI = {
    "info": {"id": "t1", "post": "P.", "title": "T", "subreddit": "s"},
    "summaries": [{"text": "One."}, {"text": "Two."}],
    "choice": 1,
}


@pytest.mark.parametrize("read", [comparison, preference])
@pytest.mark.parametrize(
    ("columns", "margin"),
    [
        ({}, None),
        ({"margin": 0.75}, 0.75),
        ({"margin": 2}, 2.0),
        ({"margin": None, "score_chosen": 8.5, "score_rejected": 7}, 1.5),
        ({"margin": 0.0, "score_chosen": 8.5, "score_rejected": 7}, 0.0),
        ({"chosen_score": 3, "rejected_score": 4.5}, -1.5),
        ({"chosen_rating": 5, "rejected_rating": 5}, 0.0),
        ({"score_chosen": 8.5}, None),
        ({"score_chosen": 8.5, "score_rejected": None}, None),
        ({"score_chosen": "8.5", "score_rejected": 7}, None),
        ({"score_chosen": math.nan, "score_rejected": 7}, None),
    ],
)
def test_what_a_row_tells(read: Any, columns: dict[str, Any], margin: float | None) -> None:
    assert read("here", ROW | columns).margin == margin


def test_openais_rows_have_the_preferred_ones_margin() -> None:
    found = comparison("here", OPENAI | {"margin": 0.5})
    assert (found.choice, found.margin) == (1, 0.5)


@pytest.mark.parametrize("value", ["1.0", True, math.inf, math.nan, [1.0]])
def test_a_margin_that_is_no_number_is_named(value: Any) -> None:
    for row in (ROW, OPENAI):
        with pytest.raises(RowError, match=r"^f, line 3: field .margin. is .*finite number"):
            comparison("f, line 3", row | {"margin": value})


WORLD = {"pretrain": 8, "train": 8, "valid": 2, "test": 2, "heldout": 2, "news": 0}


@pytest.fixture
def labelled(tmp_path, stage_context):
    """`labelled(rows)`: a context, and comparisons after the stages `data` and `label`."""

    def build(rows: list[dict[str, Any]]) -> tuple[Any, list[Comparison]]:
        file = tmp_path / "pairs.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        ctx = stage_context(
            data={
                "world": WORLD,
                "comparisons": {"data": str(file)},
            },
            label={"kind": "data"},
            sample=None,
            reward={"margin": "data"},
        )
        ctx.dirs["data"] = StageDir(tmp_path / "data-1")
        prepare(ctx.config.data, ctx.config.tokenizer, None, ctx.dirs["data"].data)
        where = StageDir(tmp_path / "label-1")
        where.path.mkdir()
        label.run(where, ctx)
        return ctx, read_records(where.comparisons, Comparison)

    return build


def rows(**columns: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Question {n}.", "chosen": "Good.", "rejected": "Bad one."}
        | {"split": "train" if n < 4 else "valid1"}
        | {name: values[n] for name, values in columns.items()}
        for n in range(6)
    ]


def test_margins_reach_both_losses(labelled: Any) -> None:
    scores = {"score_chosen": [3, 5, 2, 9, 1, 1], "score_rejected": [1, 5, 3, 8.5, 0, 0]}
    ctx, found = labelled(rows(**scores))
    given = {row.id: row.margin for row in found}
    assert sorted(given.values()) == sorted([2.0, 0.0, -1.0, 0.5, 1.0, 1.0])
    trained = [row for row in found if row.split == "train"]
    margins = [row.margin for row in trained]
    cfg = DPOConfig(loss_type="soft_rev_kl", beta=1.0)
    for made in (reward.margined_rows(trained, ctx), dpo.rows_of(trained, ctx, cfg, "dpo")):
        batch = pair_batch(made, pad_id=ctx.codec.pad_id)
        assert batch.margin_N.tolist() == margins
    # Scores 1 and 0: the loss is -log sigmoid(1 - margin).
    scores_2N = torch.tensor([1.0] * 4 + [0.0] * 4, dtype=torch.float64)
    _, loss = reward_loss.objective(scores_2N, batch).terms["train"]
    expected = sum(math.log(1 + math.exp(margin - 1.0)) for margin in margins)
    assert float(loss.sum) == pytest.approx(expected)
    # At equal policies p = 1/2, whatever the label: -q log 1/2 - (1 - q) log 1/2; its slope in h
    # is p - q.
    logprobs_2N = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    nothing_2N = torch.zeros(8, dtype=torch.float64)
    _, loss = pair_losses.objective(logprobs_2N, nothing_2N, batch, cfg).terms["train"]
    assert loss.sum.item() == pytest.approx(4 * math.log(2))
    loss.sum.backward()
    slopes = [0.5 - 1 / (1 + math.exp(-margin)) for margin in margins]
    assert logprobs_2N.grad.tolist() == pytest.approx([*slopes, *(-slope for slope in slopes)])


def test_one_comparison_without_is_refused(labelled: Any) -> None:
    ctx, found = labelled(rows(margin=[1.0, None, 1.0, 1.0, 1.0, 1.0]))
    trained = [row for row in found if row.split == "train"]
    with pytest.raises(InputError, match=r"reward\.margin=data: .* margin None; .*score_chosen"):
        reward.margined_rows(trained, ctx)
