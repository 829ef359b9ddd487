"""The loop's own prompts: rounds draw from them, each once, and bad rows end it before training."""

import json

import pytest
import torch

from nplus.records import InputError
from nplus.runs import StageDir
from nplus.runs.ledger import read_ledger
from nplus.stages import data
from nplus.stages.context import Context
from nplus.stages.online import prompts, steps
from nplus.stages.online.common import prompts_of
from nplus.stages.road import outside_inputs, stage_config

LOOP = {
    "rounds": 2,
    "prompts": 4,
    "samples": 2,
    "response_length": 48,
    "piece": 2,
    "train": {"batch": {"batch_size": 2, "micro_batch_size": 2}},
}
POSTS = [
    {"subreddit": "pets", "title": f"Question {n}", "post": f"My dog has eaten {n} shoes today."}
    for n in range(9)
]
QUERIES = {
    f"SUBREDDIT: r/pets\n\nTITLE: Question {n}\n\nPOST: My dog has eaten {n} shoes today.\n\nTL;DR:"
    for n in range(9)
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def own_config(road_config):
    """`own_config(path)`: the smallest road, whose loop draws from a file of prompts."""

    def build(path, **changed):
        return road_config(online={**LOOP, "prompts_data": str(path)}, **changed)

    return build


def kinds(ctx):
    return {found["kind"] for found in ctx.dirs["prompts"].data_check()["findings"]}


@pytest.fixture
def checked(own_config, tmp_path):
    """`checked(rows)`: what the stage makes of a file of prompts, beside the data stage's rows."""

    def run(rows, **changed):
        config = own_config(write(tmp_path / "prompts.jsonl", rows), **changed)
        stages = {name: StageDir(tmp_path / name) for name in ("data", "prompts")}
        if not stages["data"].data.exists():
            data.run(stages["data"], config)
        where, ctx = stages["prompts"], Context(config, torch.device("cpu"), None, stages)
        return prompts.run(where, ctx), ctx

    return run


def test_rounds_draw_from_the_file_and_not_twice(own_config, drive, tmp_path):
    config = own_config(write(tmp_path / "prompts.jsonl", [*POSTS, POSTS[3]]))
    root = drive(config, tmp_path / "run", until="round2_sample")
    stages = root.stages()
    found = read_ledger(stages["round1_pair"].ledger)
    drawn = [
        json.loads(line)
        for line in stages["round2_sample"].responses.read_text().split("\n")
        if line
    ]
    first, second = {row.query for row in found}, {row["query"] for row in drawn}
    assert (len(first), len(second)) == (4, 4)
    assert first | second <= QUERIES
    assert not first & second
    kept = stages["prompts"].manifest().results
    assert (kept["rows"], kept["dropped"]) == (9, 1)
    assert list(stages)[:2] == ["data", "prompts"]


def test_what_a_bad_row_ends(own_config, drive, tmp_path):
    """File and row, the other bad rows too, before anything else is done."""
    rows = [*POSTS[:2], {"title": "x", "post": "y"}, POSTS[2], {**POSTS[3], "post": "  "}]
    config = own_config(write(tmp_path / "prompts.jsonl", rows))
    with pytest.raises(InputError, match=r"prompts\.jsonl, line 3: no field 'subreddit'") as error:
        drive(config, tmp_path / "run")
    assert "2 faulty rows (3, 5)" in str(error.value)
    assert not (tmp_path / "run").exists() or [*(tmp_path / "run").glob("data-*")] == []


@pytest.mark.parametrize("tokens", [320, 90], ids=["whole", "cut"])
def test_a_held_out_post_among_the_prompts_is_told(checked, tokens):
    limits = {"max_query_tokens": tokens}
    _, ctx = checked(POSTS, data=limits)
    assert "leakage" not in kinds(ctx)
    post = ctx.data.demonstrations("test")[0]
    assert (post.fields["post"] in post.query) == (tokens == 320)
    columns = {name: post.fields[name] for name in ("subreddit", "title", "post")}
    _, ctx = checked([POSTS[0], columns], data=limits)
    report = ctx.dirs["prompts"].data_check()
    [leak] = [found for found in report["findings"] if found["kind"] == "leakage"]
    assert (leak["count"], leak["severity"]) == (1, "warning")
    assert leak["rows"][0]["file"].startswith("test.jsonl")


def test_ready_made_queries_are_prompts_too(checked):
    _, ctx = checked([{"query": f"What is {n} and {n}?\nA:"} for n in range(5)])
    assert {post.query for post in prompts_of(ctx, 1)} <= {
        f"What is {n} and {n}?\nA:" for n in range(5)
    }


def test_fewer_prompts_than_a_round_asks_for(checked):
    _, ctx = checked([*POSTS[:3], POSTS[0]])
    with pytest.raises(InputError, match=r"online\.prompts=4: there are 3 different prompts in"):
        prompts_of(ctx, 1)


def test_one_id_for_two_prompts_is_refused(checked):
    with pytest.raises(InputError, match=r"line 2: id '7' is that of another post"):
        checked([{**POSTS[0], "id": 7}, {**POSTS[1], "id": 7}])


def test_other_prompts_do_the_rounds_anew_and_nothing_else(own_config, road_config, tmp_path):
    config = own_config(write(tmp_path / "prompts.jsonl", POSTS))
    plain = road_config(online=LOOP)
    before = outside_inputs(config, "prompts")
    assert "prompts" not in outside_inputs(config, "data")
    for name in plain.stage_names():
        assert stage_config(name, config) == stage_config(name, plain)
    assert "prompts" not in plain.stage_names()
    reads = [
        step.name for step in config.online.steps() if "prompts" in steps.inputs_of(step, config)
    ]
    assert reads == ["round1_sample", "round2_sample"]
    write(tmp_path / "prompts.jsonl", POSTS[1:])
    assert outside_inputs(config, "prompts") != before
