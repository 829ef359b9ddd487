"""People's comparisons on their way through the label stage to the reward model's report."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from nplus.config import LabelConfig
from nplus.data.prepare import prepare
from nplus.records import Comparison, read_records
from nplus.runs import StageDir
from nplus.stages import label
from nplus.stages.label import people_comparisons
from nplus.stages.reward import validation_reports
from nplus.stages.road import outside_inputs, stage_config

SPLITS = ("train",) * 40 + ("valid1",) * 10 + ("valid2",) * 10 + ("validation_cnndm",) * 6


def labelled():
    return [
        Comparison(f"post {n}", "Q", ("a", "b"), ("p", "q"), choice=n % 2, split=split)
        for n, split in enumerate(SPLITS)
    ]


def counts(rows):
    return Counter(row.split for row in rows)


def test_no_more_than_asked_for_and_news_apart():
    # Detail A11.
    rows = labelled()
    few = people_comparisons(rows, LabelConfig(kind="data", pairs=8, valid_pairs=5), seed=1)
    found = counts(few)
    assert (found["train"], found["validation_cnndm"]) == (8, 5)
    assert found["valid1"] + found["valid2"] == 5
    assert [row.id for row in few] == [row.id for row in rows if row in few]
    assert people_comparisons(rows, LabelConfig(kind="data"), seed=1) == rows


def test_the_seed_draws_what_is_left_out_over_the_whole_data():
    config = LabelConfig(kind="data", pairs=8, valid_pairs=5)
    one, again, other = (people_comparisons(labelled(), config, seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    drawn = {row.id for s in range(30) for row in people_comparisons(labelled(), config, s)}
    assert drawn == {row.id for row in labelled()}


@pytest.mark.detail("A11")
def test_accuracy_on_news_is_told_apart():
    rows = labelled()[40:]
    # Right on every post, wrong on all news: one pooled figure would be 20 of 26.
    margins = [-1.0 if row.split == "validation_cnndm" else 1.0 for row in rows]
    found = validation_reports(rows, margins)
    assert found["validation"]["accuracy"]["rate"] == 1.0
    assert found["validation"]["accuracy"]["n"] == 20
    assert {row["name"] for row in found["validation"]["by_split"]} == {"valid1", "valid2"}
    assert found["validation_cnndm"]["accuracy"]["rate"] == 0.0
    assert found["validation_cnndm"]["accuracy"]["n"] == 6
    assert set(validation_reports(rows[:20], margins[:20])) == {"validation"}


@pytest.fixture
def comparisons_file(tmp_path):
    info = {"title": "T", "subreddit": "s", "site": None, "article": None}
    rows = [
        {
            "info": info | {"id": f"t3_{n}", "post": f"Post number {n}."},
            "summaries": [
                {"text": " One.", "policy": "ref", "note": None},
                {"text": " Two.", "policy": "sup1", "note": None},
            ],
            "choice": n % 2,
            "worker": "w",
            "batch": "batch9" if n < 10 else "cnndm0",
            "split": "train" if n < 8 else "valid1",
            "extra": {"confidence": None},
        }
        for n in range(12)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_label_stage_takes_what_the_data_stage_read(tmp_path, stage_context, comparisons_file):
    ctx = stage_context(
        data={
            "world": {"pretrain": 8, "train": 8, "valid": 2, "test": 2, "heldout": 2, "news": 0},
            "comparisons": {"data": str(comparisons_file)},
        },
        label={"kind": "data", "pairs": 5},
        sample=None,
    )
    assert ctx.config.stage_names()[2:4] == ("sft", "label")
    data, where = StageDir(tmp_path / "data-1"), StageDir(tmp_path / "label-1")
    where.path.mkdir()
    prepare(ctx.config.data, ctx.config.tokenizer, None, data.data)
    ctx.dirs["data"] = data
    results = label.run(where, ctx)
    rows = read_records(where.comparisons, Comparison)
    assert results == {
        "comparisons": 9,
        "splits": {"train": 5, "valid1": 2, "validation_cnndm": 2},
    }
    assert counts(rows) == results["splits"]
    for row in rows:
        n = int(row.id.removeprefix("t3_"))
        assert row.query == f"SUBREDDIT: r/s\n\nTITLE: T\n\nPOST: Post number {n}.\n\nTL;DR:"
        assert (row.responses, row.choice) == (("One.", "Two."), n % 2)


def test_changed_comparisons_are_another_run(stage_context, comparisons_file):
    ctx = stage_context(
        data={"comparisons": {"data": str(comparisons_file)}}, label={"kind": "data"}
    )
    assert stage_config("data", ctx.config)["data"]["comparisons"]["data"] == str(comparisons_file)
    before = outside_inputs(ctx.config)
    assert set(before) == {"comparisons"}
    comparisons_file.write_text("{}\n", encoding="utf-8")
    assert outside_inputs(ctx.config) != before
