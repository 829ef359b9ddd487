"""The data contract in a run: what is kept, what is told, and that errors leave nothing behind."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from nplus.config import RunConfig
from nplus.data.prepare import prepare
from nplus.recipes import recipe
from nplus.records import Comparison, InputError
from nplus.runs import StageDir
from nplus.stages import contract, label
from nplus.stages.road import run_road

POST = "The harbour closed and the boat we never bought sank near the pier, number {}."
WORLD = {"pretrain": 8, "train": 8, "valid": 2, "test": 2, "heldout": 2, "news": 0}


def post(n, **changed):
    return {"post": POST.format(n), "summary": f"Boat {n} sank."} | changed


def files_config(path, **data):
    tree = recipe("toy:tiny").model_dump()
    tree["data"] |= {"source": "files", "data": str(path), **data}
    tree["label"]["kind"], tree["evaluate"]["judge"] = "contrast", "reward"
    return RunConfig.model_validate(tree)


@pytest.fixture
def posts_file(tmp_path):
    def write(rows, name="posts.jsonl"):
        path = tmp_path / name
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


def found(report):
    return {f["kind"]: f["count"] for f in report["findings"]}


def test_the_data_stage_keeps_and_tells_what_it_found(tmp_path, posts_file):
    (tmp_path / "posts").mkdir()
    path = posts_file([*[post(n) for n in range(40)], post(3)], "posts/train.jsonl")
    for number, name in enumerate(("valid", "test", "pretrain")):
        posts_file(
            [post(n) for n in range(100 + 50 * number, 104 + 50 * number)], f"posts/{name}.jsonl"
        )
    out = Console(file=io.StringIO(), width=80)
    root = run_road(files_config(path.parent), tmp_path / "run", until="data", console=out)
    report = root.stages()["data"].data_check()
    assert found(report) == {"duplicate_row": 1}
    (row,) = report["findings"][0]["rows"]
    assert (row["file"], row["row"]) == (str(path), 41)  # as in the source
    assert report["rows"] == 53
    assert set(report["splits"]) == {"train", "valid", "test", "pretrain"}
    told = out.file.getvalue()
    assert "53 rows checked: 0 errors, 1 warning (duplicate_row 1); " in told
    assert "data_check.json" in told


def test_a_fault_names_all_faulty_rows_and_leaves_nothing(tmp_path, posts_file):
    rows = [post(0), post(1), post(2, summary=""), post(3), "{broken", *map(post, range(5, 30))]
    path = posts_file(rows)
    with pytest.raises(InputError) as error:
        run_road(files_config(path), tmp_path / "run", console=Console(quiet=True))
    said = str(error.value)
    assert f"{path}, line 5: not valid JSON" in said
    assert f"{path} has 2 faulty rows (3, 5): `nplus data check {path}`" in said
    assert not (tmp_path / "run").exists()


def test_one_fault_is_told_as_the_loader_tells_it(tmp_path, posts_file):
    path = posts_file([post(0), post(1, summary=" "), *map(post, range(5, 30))])
    with pytest.raises(
        InputError, match=r"line 2: field 'summary' is empty; fill it in or rem"
    ) as e:
        run_road(files_config(path), tmp_path / "run", console=Console(quiet=True))
    assert "faulty rows" not in str(e.value)


def test_an_error_that_only_the_check_knows_ends_the_stage(tmp_path, posts_file, monkeypatch):
    from nplus.data.check import kinds

    worse = kinds.KINDS["duplicate_row"]._replace(severity="error")
    monkeypatch.setitem(kinds.KINDS, "duplicate_row", worse)
    path = posts_file([*[post(n) for n in range(40)], post(3)])
    expected = rf"{path}, row 41: the same as {path}, line 4; remove it"
    with pytest.raises(InputError, match=expected):
        run_road(files_config(path), tmp_path / "run", console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_the_label_stage_checks_what_reward_learns_from(tmp_path, stage_context, posts_file):
    def row(n, texts, **changed):
        info = {"id": f"t3_{n}", "post": f"Post number {n}.", "title": "T", "subreddit": "s"}
        sides = [{"text": f" {text}", "policy": "p"} for text in texts]
        label = {"choice": n % 2, "worker": "w", "batch": "batch9", "split": "train"}
        return {"info": info, "summaries": sides, **label, **changed}

    rows = [row(n, (f"One {n}.", f"Two {n}.")) for n in range(10)]
    rows += [row(3, ("Two 3.", "One 3."), choice=1), row(11, ("Same.", "Same."))]
    rows += [row(12, ("a b", "c d"), split="valid1"), row(4, ("a b", "c d"), split="valid1")]
    source = posts_file(rows, "pairs.jsonl")
    ctx = stage_context(
        data={"world": WORLD, "comparisons": {"data": str(source)}},
        label={"kind": "data"},
        sample=None,
    )
    ctx.console = Console(file=io.StringIO(), width=80)
    data, where = StageDir(tmp_path / "data-1"), StageDir(tmp_path / "label-1")
    where.path.mkdir()
    prepare(ctx.config.data, ctx.config.tokenizer, None, data.data)
    ctx.dirs["data"] = data
    label.run(where, ctx)
    report = where.data_check()
    assert found(report) == {"duplicate_row": 1, "identical_pair": 1, "leakage": 1} or found(
        report
    ) == {"conflicting_label": 1, "identical_pair": 1, "leakage": 1}
    numbers = {f["kind"]: f["rows"][0]["row"] for f in report["findings"]}
    assert numbers["identical_pair"] == 12
    assert numbers["leakage"] == 14
    assert report["ok"]
    assert "14 rows checked" in ctx.console.file.getvalue()


def test_pairs_of_the_verdicts_posts_are_leakage(tmp_path, stage_context):
    ctx = stage_context(data={"world": WORLD})
    ctx.dirs["data"] = StageDir(tmp_path / "data-1")
    prepare(ctx.config.data, ctx.config.tokenizer, None, ctx.dirs["data"].data)
    judged = ctx.data.demonstrations(ctx.config.evaluate.split)
    trained = ctx.data.demonstrations("train")
    pairs = [
        Comparison(post.id, post.query, ("a", "b"), ("p", "q"), 0, split="train")
        for post in (*trained[:3], judged[1])
    ]
    report = contract.labelled(pairs, tmp_path / "comparisons.jsonl", ctx)
    (leak,) = [f for f in report["findings"] if f["kind"] == "leakage"]
    assert leak["count"] == 1
    assert leak["rows"][0]["why"] == "also comparisons.jsonl, line 4"


def test_a_world_run_is_checked_and_its_results_are_the_same(finished):
    stages = finished.stages()
    for name in ("data", "label"):
        report = stages[name].data_check()
        assert report["ok"]
        assert report["lengths"]["eos"]["share"] == 1.0
        assert report["preview"]
        assert "check" not in stages[name].manifest().results
    kept = stages["label"].data_check()
    assert kept["rows"] == stages["label"].manifest().results["comparisons"]
    assert all(stages[name].data_check() is None for name in ("sft", "reward", "ppo"))
