"""The grid: order, sharing, resume after a kill, failures, and bad input before work."""

import json

import pytest

from nplus.recipes import recipe
from nplus.records import InputError
from nplus.stages.grid import Cell, Grid, cell_key, crossed, resolve

CONDITIONS = [("baseline", ()), ("no KL", ("ppo.kl_coef=0",)), ("wide", ("reward.epochs=2",))]


def configs_of(conditions=CONDITIONS, seeds=2, **shared):
    return resolve(crossed(conditions, seeds), lambda _: recipe("toy:tiny"), **shared)


def open_grid(tmp_path):
    return Grid.open(tmp_path / "g", "ablate", "toy:tiny")


def state(tmp_path):
    """`grid.json` as `(name, seed) -> row`."""
    rows = json.loads((tmp_path / "g" / "grid.json").read_text())["cells"]
    return {(row["name"], row["seed"]): row for row in rows}


def test_cells_go_seed_by_seed_and_share_stages(tmp_path, road):
    told = []
    grid = open_grid(tmp_path)
    entries = grid.run(configs_of(), road, on_cell=lambda e, s: told.append((e.cell, s)))
    order = [(cell.seed, cell.name) for cell, state in told if state == "run"]
    assert order == [(s, n) for s in (1, 2) for n in ("baseline", "no KL", "wide")]
    assert [entry.status for entry in entries] == ["complete"] * 6
    whole = ["data", "pretrain", "label", "reward", "ppo", "evaluate"]
    expected = [*whole, "ppo", "evaluate", "reward", "ppo", "evaluate"]
    assert road.ran == [(stage, seed) for seed in (1, 2) for stage in expected]


def test_the_state_on_disk_names_settings_and_stages(tmp_path, road):
    open_grid(tmp_path).run(configs_of(), road)
    found = state(tmp_path)
    assert list(found) == [(n, s) for s in (1, 2) for n in ("baseline", "no KL", "wide")]
    row = found["no KL", 2]
    assert (row["sets"], row["status"], row["error"]) == (["ppo.kl_coef=0"], "complete", "")
    assert row["seconds"] >= 0
    assert all((tmp_path / "g" / "seed-2" / where).is_dir() for where in row["stages"].values())
    same = {k for k, v in row["stages"].items() if found["baseline", 2]["stages"][k] == v}
    assert same == {"data", "pretrain", "label", "reward"}
    assert not set(row["stages"].values()) & set(found["no KL", 1]["stages"].values())


def test_a_killed_grid_goes_on_where_it_was(tmp_path, road):
    def kill(config, stage):
        if (config.seed, config.ppo.kl_coef, stage) == (2, 0.0, "ppo"):
            raise KeyboardInterrupt

    road.fail = kill
    with pytest.raises(KeyboardInterrupt):
        open_grid(tmp_path).run(configs_of(), road)
    found = {key: row["status"] for key, row in state(tmp_path).items()}
    assert found["no KL", 2] == "interrupted"
    assert found["wide", 2] == "pending"
    assert [s for k, s in found.items() if k[1] == 1] == ["complete"] * 3

    road.fail, before = lambda config, stage: None, len(road.ran)
    told = []
    entries = open_grid(tmp_path).run(
        configs_of(), road, on_cell=lambda e, s: told.append((e.cell.name, e.cell.seed, s))
    )
    assert [t[:2] for t in told if t[2] == "skip"] == [
        ("baseline", 1),
        ("no KL", 1),
        ("wide", 1),
        ("baseline", 2),
    ]
    assert road.ran[before:] == [(s, 2) for s in ("ppo", "evaluate", "reward", "ppo", "evaluate")]
    assert {entry.status for entry in entries} == {"complete"}


def test_logs_beside_the_seeds_are_no_runs(tmp_path, road):
    open_grid(tmp_path).run(configs_of(seeds=1), road)
    (tmp_path / "g" / "seed-1.log").touch()
    assert {e.status for e in open_grid(tmp_path).entries.values()} == {"complete"}


def test_a_finished_grid_does_nothing(tmp_path, road):
    open_grid(tmp_path).run(configs_of(), road)
    rounds = []
    entries = open_grid(tmp_path).run(configs_of(), _never, on_round=lambda: rounds.append(1))
    assert {entry.status for entry in entries} == {"complete"}
    assert rounds == []


def _never(config, out):
    raise AssertionError("a complete cell ran again")


def test_another_version_or_a_lost_stage_runs_again(tmp_path, road):
    grid = open_grid(tmp_path)
    entries = grid.run(configs_of(seeds=1), road, version="1")
    with pytest.raises(AssertionError):
        raise_failures(open_grid(tmp_path).run(configs_of(seeds=1), _never, version="2"))
    grid = open_grid(tmp_path)
    entries = grid.run(configs_of(seeds=1), road, version="1")
    for file in (where := grid.stage(entries[1], "evaluate")).path.iterdir():
        file.unlink()
    where.path.rmdir()
    before = len(road.ran)
    open_grid(tmp_path).run(configs_of(seeds=1), road, version="1")
    assert road.ran[before:] == [("evaluate", 1)]


def raise_failures(entries):
    assert not [entry.error for entry in entries if entry.status == "failed"]


def test_a_changed_setting_runs_again_under_the_same_name(tmp_path, road):
    open_grid(tmp_path).run(configs_of(seeds=1), road)
    before = len(road.ran)
    changed = [CONDITIONS[0], ("no KL", ("ppo.kl_coef=0.5",)), CONDITIONS[2]]
    open_grid(tmp_path).run(configs_of(changed, seeds=1), road)
    assert road.ran[before:] == [("ppo", 1), ("evaluate", 1)]
    assert state(tmp_path)["no KL", 1]["sets"] == ["ppo.kl_coef=0.5"]


def test_a_failing_cell_is_recorded_and_the_others_run(tmp_path, road):
    def fail(config, stage):
        if config.ppo.kl_coef == 0 and stage == "ppo" and config.seed == 1:
            raise FloatingPointError("loss is NaN at update 3")

    road.fail = fail
    entries = open_grid(tmp_path).run(configs_of(), road)
    by_name = {(e.cell.name, e.cell.seed): e for e in entries}
    failed = by_name.pop(("no KL", 1))
    assert (failed.status, failed.error) == (
        "failed",
        "FloatingPointError: loss is NaN at update 3",
    )
    assert "in fail" in failed.traceback
    assert set(failed.stages) == {"data", "pretrain", "label", "reward", "ppo"}
    assert {e.status for e in by_name.values()} == {"complete"}
    assert state(tmp_path)["no KL", 1]["error"] == failed.error

    road.fail, before = lambda config, stage: None, len(road.ran)
    assert open_grid(tmp_path).run(configs_of(), road)[1].status == "complete"
    assert road.ran[before:] == [("ppo", 1), ("evaluate", 1)]


def test_bad_data_before_any_work_ends_the_grid_and_leaves_nothing(tmp_path, road):
    def fail(config, stage):
        if stage == "data":
            raise InputError("posts.jsonl, line 3: no title")

    road.fail = fail
    with pytest.raises(InputError, match="line 3"):
        open_grid(tmp_path).run(configs_of(), road)
    assert not (tmp_path / "g").exists()


def test_bad_input_of_a_later_cell_is_its_result(tmp_path, road):
    def fail(config, stage):
        if config.reward.epochs == 2 and stage == "reward":
            raise InputError("too few pairs")

    road.fail = fail
    entries = open_grid(tmp_path).run(configs_of(), road)
    assert [e.error for e in entries if e.status == "failed"] == ["InputError: too few pairs"] * 2


def test_tables_can_be_written_after_every_seed(tmp_path, road):
    seen = []
    grid = open_grid(tmp_path)
    grid.run(
        configs_of(),
        road,
        on_round=lambda: seen.append([e.status for e in grid.entries.values()]),
    )
    assert seen == [["complete"] * 3 + ["pending"] * 3, ["complete"] * 6]


def test_every_wrong_cell_is_named_before_work():
    conditions = [
        ("baseline", ()),
        ("typo", ("ppo.klcoef=1",)),
        ("range", ("ppo.gamma=2",)),
        ("rows", ("ppo.num_mini_batches=3",)),
    ]
    with pytest.raises(InputError) as raised:
        configs_of(conditions)
    text = str(raised.value)
    assert "typo: --set ppo.klcoef=1" in text
    assert "range: ppo.gamma=2" in text
    assert "rows: " in text
    assert "baseline" not in text
    assert text.count("typo") == 1  # not once a seed


def test_the_cell_has_the_last_word_and_the_seed_is_its_own():
    cells = crossed([("a", ["ppo.kl_coef=0.3"])], 2)
    configs = resolve(cells, lambda _: recipe("toy:tiny"), sets=["ppo.kl_coef=0.2", "ppo.lam=0.5"])
    found = [(c.seed, c.ppo.kl_coef, c.ppo.lam) for c in configs.values()]
    assert found == [(1, 0.3, 0.5), (2, 0.3, 0.5)]
    assert list(configs) == [Cell("a", ("ppo.kl_coef=0.3",), 1), Cell("a", ("ppo.kl_coef=0.3",), 2)]


def test_a_seed_of_ones_own_is_refused():
    with pytest.raises(InputError, match="say how many with --seeds"):
        configs_of(sets=["ppo.lam=0.5", " seed =7"])


def test_two_at_once_are_refused_and_the_first_goes_on(tmp_path, road, monkeypatch):
    """Each would take the other's unfinished stage for one that was killed, and delete it."""
    monkeypatch.setattr("nplus.runs.lock.PATIENCE", 0.1)
    refused = []

    def again(config, stage):
        if (config.seed, stage) == (1, "reward"):
            with pytest.raises(InputError, match="another nplus process is at work"):
                open_grid(tmp_path).run(configs_of(), _never)
            refused.append(config)

    road.fail = again
    assert {e.status for e in open_grid(tmp_path).run(configs_of(), road)} == {"complete"}
    assert refused
    road.fail = lambda config, stage: None
    open_grid(tmp_path).run(configs_of(), _never)  # the lock ended with the first


def test_what_has_changed_since_the_grid_was_opened_counts(tmp_path, road):
    late = open_grid(tmp_path)
    open_grid(tmp_path).run(configs_of(), road)
    assert {e.status for e in late.run(configs_of(), _never)} == {"complete"}


def test_torn_files_of_a_killed_process_are_no_obstacle(tmp_path, road):
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / ".grid.json.7.tmp").write_text("{")
    assert {e.status for e in open_grid(tmp_path).run(configs_of(), road)} == {"complete"}
    (tmp_path / "g" / "seed-3").mkdir()
    (tmp_path / "g" / "seed-3" / ".run.json.7.tmp").write_text("{")
    assert {e.status for e in open_grid(tmp_path).run(configs_of(seeds=3), road)} == {"complete"}


def test_a_complete_cell_has_stages(tmp_path, road):
    """Also where the run's config reads otherwise than the cell's, and an old state without any
    is not complete."""
    entries = open_grid(tmp_path).run(configs_of(seeds=1), road)
    path = tmp_path / "g" / "grid.json"
    told = json.loads(path.read_text())
    told["cells"][0]["stages"] = {}
    path.write_text(json.dumps(told))
    again = open_grid(tmp_path).run(configs_of(seeds=1), road)
    assert again[0].stages == entries[0].stages


def test_a_changed_file_of_comparisons_runs_again(tmp_path):
    file = tmp_path / "people.jsonl"
    file.write_text("{}\n")
    sets = [f"data.comparisons.data={file}", "label.kind=data"]
    [config] = configs_of([("a", ())], 1, sets=sets).values()
    key = cell_key(config)
    assert cell_key(config) == key
    file.write_text("{} \n")
    assert cell_key(config) != key


@pytest.mark.parametrize(
    ("names", "seeds", "text"), [(["a", "a"], 1, "a: given twice"), (["a"], 0, "at least one seed")]
)
def test_a_grid_that_makes_no_sense(names, seeds, text):
    with pytest.raises(InputError, match=text):
        crossed([(name, ()) for name in names], seeds)


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path, road):
    where = tmp_path / "g"
    open_grid(tmp_path).run(configs_of(seeds=1), road)
    for kind, name in (("scale", "toy:tiny"), ("ablate", "toy")):
        with pytest.raises(InputError, match="holds the grid of `nplus ablate`"):
            Grid.open(where, kind, name)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(InputError, match="not a grid"):
        Grid.open(tmp_path / "full", "ablate", "toy")
    with pytest.raises(InputError, match="is a file"):
        Grid.open(tmp_path / "full" / "notes.txt", "ablate", "toy")
    (where / "seed-2").mkdir()
    (where / "seed-2" / "notes.txt").touch()
    with pytest.raises(InputError, match="seed-2: holds files that are not a run"):
        open_grid(tmp_path)
