"""The run directory: a journal that survives a kill, and a refusal to write over anything else."""

import pytest

from nplus.records import InputError
from nplus.runs import RunRoot, StageDir


@pytest.fixture
def stage(tmp_path):
    return StageDir(tmp_path)


def steps(stage):
    return [row["step"] for row in stage.journal_rows()]


def test_the_journal_keeps_metrics_in_order_and_events_apart(stage):
    stage.event("started")
    for step in (1, 2):
        stage.journal(step, {"loss": 1.0 / step}, episode=step * 64)
    assert steps(stage) == [1, 2]
    row = list(stage.journal_rows())[1]
    assert row["metrics"] == {"loss": 0.5}
    assert row["episode"] == 128


def test_rewinding_drops_what_a_resume_will_write_again(stage):
    stage.event("started")
    for step in range(1, 6):
        stage.journal(step, {"loss": 0.0})
    stage.log.rewind(3)
    stage.event("resumed")
    stage.journal(4, {"loss": 0.0})
    assert steps(stage) == [1, 2, 3, 4]
    assert stage.journal_path.read_text(encoding="utf-8").count('"event"') == 2


def test_a_line_torn_by_a_kill_takes_nothing_with_it(stage):
    stage.journal(1, {"loss": 0.0})
    with stage.journal_path.open("a", encoding="utf-8") as out:
        out.write('{"step": 2, "metr')
    assert steps(stage) == [1]
    stage.event("started")
    stage.journal(2, {"loss": 0.0})
    assert steps(stage) == [1, 2]
    stage.log.rewind(2)
    assert steps(stage) == [1, 2]
    assert "started" in stage.journal_path.read_text(encoding="utf-8")
    assert '"metr{' not in stage.journal_path.read_text(encoding="utf-8")


def test_an_empty_journal(stage):
    stage.log.rewind(0)
    assert steps(stage) == []


def test_samples_with_odd_line_separators_come_back(stage):
    rows = [{"response": "a\u2028b\x85c", "score": 1.0}, {"response": "d", "score": 2.0}]
    stage.write_samples(5, rows)
    stage.write_samples(12, rows[:1])
    assert stage.read_samples() == {5: rows, 12: rows[:1]}


def contents(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def test_a_new_or_empty_directory_is_taken_and_not_yet_written(tmp_path):
    RunRoot(tmp_path / "new").open("toy")
    RunRoot(tmp_path).open("toy")
    assert contents(tmp_path) == []


def test_a_directory_with_other_content_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"not a run; name another directory with --out"):
        RunRoot(tmp_path).open("toy")
    assert contents(tmp_path) == ["thesis.tex"]


def test_another_recipes_run_is_refused_and_ones_own_is_not(tmp_path):
    root = RunRoot(tmp_path)
    root.write_index("toy", {"seed": 1}, {"sft": "sft-12345678"})
    root.open("toy")
    with pytest.raises(InputError, match="holds a run of recipe 'toy', not 'real'"):
        root.open("real")


def test_a_file_is_not_a_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        RunRoot(tmp_path / "file").open("toy")


def test_the_index_lists_the_stages(tmp_path):
    root = RunRoot(tmp_path / "run")
    with pytest.raises(InputError, match="not a run directory"):
        root.index()
    root.write_index("toy", {}, {"data": "data-1", "sft": "sft-2"})
    assert list(root.stages()) == ["data", "sft"]
    assert root.stages()["sft"].path == tmp_path / "run" / "sft-2"
