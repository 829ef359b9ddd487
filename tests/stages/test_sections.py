"""Comparisons from elsewhere, scored by the models of a run: reward, ensemble and pairwise."""

import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from nplus.records import Comparison, InputError, Margin, Sample, read_records
from nplus.report.sections import scored
from nplus.stages.beside import context
from nplus.stages.preference import PairwiseModel
from nplus.stages.scorers import RewardScorer
from nplus.stages.sections import score

SUBSETS = ("donotanswer", "refusals-offensive", "shp")
SCORERS = ("reward", "ensemble", "preference")
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def trained(road_config, drive, tmp_path_factory):
    """A run up to its two reward models and the pairwise one."""
    batch = {"batch_size": 8, "micro_batch_size": 4}
    reward = {**road_config().reward.model_dump(), "members": 2}
    config = road_config(reward=reward, preference={"batch": batch})
    return drive(config, tmp_path_factory.mktemp("sections") / "run", until="reward_2")


@pytest.fixture(scope="module")
def rows(trained):
    """The run's own comparisons under the names of subsets."""
    found = read_records(trained.stages()["label"].comparisons, Comparison)
    return [
        {
            "id": n,
            "prompt": row.query,
            "chosen": row.chosen,
            "rejected": row.rejected,
            "subset": SUBSETS[n % 3],
        }
        for n, row in enumerate(found)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turned(rows):
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


def margins_of(where):
    return {row.id: row.margin for row in read_records(where.margins, Margin)}


def test_every_scorer_scores_as_its_own_model(trained, rows, tmp_path):
    file = write(tmp_path / "pairs.jsonl", rows)
    found = {name: margins_of(score(trained, file, name, QUIET)) for name in SCORERS}
    ctx = context(trained, QUIET)
    judge = PairwiseModel(ctx.policy("preference").eval(), ctx.codec, size=1)
    members = [
        RewardScorer(ctx.scalar(ctx.dirs[name].model).eval(), ctx.codec, size=1)
        for name in ("reward", "reward_2")
    ]
    for row in rows[:5]:
        pair = (row["chosen"].strip(), row["rejected"].strip())
        samples = [Sample("x", row["prompt"], text) for text in pair]
        first, second = (np.subtract(*member.score(samples)) for member in members)
        (p,) = judge.preferences([(row["prompt"], pair)])
        name = str(row["id"])
        assert found["reward"][name] == pytest.approx(first, abs=2e-2)  # in bfloat16
        assert found["ensemble"][name] == pytest.approx((first + second) / 2, abs=2e-2)
        assert found["preference"][name] == pytest.approx(2 * p - 1, abs=2e-2)


def test_an_ensemble_may_count_its_worst_member(trained, rows, tmp_path, monkeypatch):
    file = write(tmp_path / "pairs.jsonl", rows)
    mean = score(trained, file, "ensemble", QUIET)
    monkeypatch.setattr("nplus.stages.sections.aggregate_of", lambda config: "min")
    worst = score(trained, file, "ensemble", QUIET)
    assert worst.path != mean.path
    ctx, found = context(trained, QUIET), margins_of(worst)
    models = [ctx.scalar(ctx.dirs[name].model).eval() for name in ("reward", "reward_2")]
    members = [RewardScorer(model, ctx.codec) for model in models]
    pairs = [(row["prompt"], row["chosen"].strip(), row["rejected"].strip()) for row in rows]
    samples = [Sample("x", prompt, text) for prompt, *texts in pairs for text in texts]
    lowest = np.min([member.score(samples) for member in members], axis=0)
    expected = lowest[::2] - lowest[1::2]
    assert list(found.values()) == pytest.approx(list(expected), abs=2e-2)  # in bfloat16


@pytest.mark.parametrize("name", SCORERS)
def test_figures_are_those_of_the_margins(trained, rows, tmp_path, name):
    where = score(trained, write(tmp_path / "pairs.jsonl", rows), name, QUIET)
    results, margins = where.manifest().results, margins_of(where)
    assert results["read"] == len(rows) == len(margins)
    assert results["dropped"] == {}
    right = {
        subset: [margins[str(row["id"])] > 0 for row in rows if row["subset"] == subset]
        for subset in SUBSETS
    }
    by_subset = {row["name"]: row["accuracy"] for row in results["subsets"]}
    assert by_subset == pytest.approx({subset: np.mean(hits) for subset, hits in right.items()})
    safety = 136 * by_subset["donotanswer"] + 100 * by_subset["refusals-offensive"]
    expected = {"Safety": safety / 236, "Prior Sets": by_subset["shp"]}
    assert {row["name"]: row["accuracy"] for row in results["sections"]} == pytest.approx(expected)
    total = (2 * expected["Safety"] + expected["Prior Sets"]) / 3
    assert results["total"]["accuracy"] == pytest.approx(total)


@pytest.mark.parametrize("name", SCORERS)
def test_which_of_a_pair_stands_first_changes_nothing(trained, rows, tmp_path, name):
    """Position bias (spec trap): the other response called chosen turns the margin, and no more."""
    files = (write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", turned(rows)))
    one, other = (margins_of(score(trained, file, name, QUIET)) for file in files)
    assert one == pytest.approx({id: -margin for id, margin in other.items()}, abs=1e-6)


def test_rows_that_are_too_long_are_counted_and_move_no_other(trained, rows, tmp_path):
    """A pair that is left out must not shift the subsets of those behind it (spec trap)."""
    long = {**rows[0], "id": "long", "prompt": "word " * 2000, "subset": "refusals-dangerous"}
    plain = score(trained, write(tmp_path / "a.jsonl", rows), "reward", QUIET)
    where = score(
        trained, write(tmp_path / "b.jsonl", [*rows[:3], long, *rows[3:]]), "reward", QUIET
    )
    results = where.manifest().results
    assert results["dropped"] == {"refusals-dangerous": 1}
    assert results["subsets"] == plain.manifest().results["subsets"]
    batches = {row.id: row.batch for row in read_records(where.margins, Margin)}
    assert batches == {str(row["id"]): row["subset"] for row in rows}


def test_pairs_without_room_in_the_pairwise_model_are_left_out(trained, rows, tmp_path):
    """Either response alone would fit, as it does into the reward model."""
    ctx = context(trained, QUIET)
    positions = ctx.policy("preference").config.max_position_embeddings
    half = " ".join(["a"] * positions)
    while len(ctx.codec.encode(half)) > positions // 2:
        half = half[:-2]
    long = {**rows[0], "id": "long", "prompt": "a", "chosen": half, "rejected": half + " b"}
    plain = score(trained, write(tmp_path / "a.jsonl", rows), "preference", QUIET)
    file = write(tmp_path / "b.jsonl", [*rows[:3], long, *rows[3:]])
    results = score(trained, file, "preference", QUIET).manifest().results
    assert results["dropped"] == {rows[0]["subset"]: 1}
    assert results["subsets"] == plain.manifest().results["subsets"]
    assert score(trained, file, "reward", QUIET).manifest().results["dropped"] == {}
    with pytest.raises(InputError, match=r"c\.jsonl: no row .*--with reward"):
        score(trained, write(tmp_path / "c.jsonl", [long]), "preference", QUIET)


@pytest.mark.parametrize("broken", ["reward", "reward_2"])
@pytest.mark.parametrize("how", ["mean", "min"])
def test_a_member_without_a_number_makes_the_row_invalid(
    trained, rows, tmp_path, monkeypatch, broken, how
):
    ctx, pairs = context(trained, QUIET), RewardScorer.pairs
    weights = {name: ctx.scalar(ctx.dirs[name].model) for name in ("reward", "reward_2")}
    head = next(reversed(weights[broken].state_dict().values()))

    def spoilt(self, comparisons):
        found = pairs(self, comparisons)
        if torch.equal(next(reversed(self.model.state_dict().values())), head):
            found[0] = (math.nan, found[0][1])
        return found

    monkeypatch.setattr(RewardScorer, "pairs", spoilt)
    monkeypatch.setattr("nplus.stages.sections.aggregate_of", lambda config: how)
    file = write(tmp_path / f"{broken}.jsonl", rows)
    where = score(trained, file, "ensemble", QUIET)
    found = list(margins_of(where).values())
    assert [math.isnan(margin) for margin in found] == [True] + [False] * (len(rows) - 1)
    assert sum(row["invalid"] for row in where.manifest().results["subsets"]) == 1


def test_the_same_again_changes_nothing_and_stages_are_left_alone(trained, rows, tmp_path):
    stages = {path: path.stat().st_mtime_ns for path in trained.path.glob("[!s]*-????????/*")}
    file = write(tmp_path / "again.jsonl", rows)
    first = score(trained, file, "reward", QUIET)
    before = first.manifest_path.read_bytes()
    assert score(trained, file, "reward", QUIET).path == first.path
    assert first.manifest_path.read_bytes() == before
    assert score(trained, file, "preference", QUIET).path != first.path
    assert {path: path.stat().st_mtime_ns for path in stages} == stages


def test_parquet_and_the_table(trained, rows, tmp_path):
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    where = score(trained, file, "preference", QUIET)
    same = score(trained, write(tmp_path / "pairs.jsonl", rows), "preference", QUIET)
    assert where.manifest().results["sections"] == same.manifest().results["sections"]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(scored(where))
    text = console.export_text()
    for part in ("Safety (part)", "donotanswer", "136", "The total is without Chat"):
        assert part in text
