"""Cells side by side: the same entries as one by one, never two of a seed, and no orphans."""

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from nplus.cli.grid import _jobs_for
from nplus.recipes import recipe
from nplus.records import InputError
from nplus.stages.grid import Cell, Grid, JobKilledError, _next, crossed, resolve

CONDITIONS = [("baseline", ()), ("no KL", ("ppo.kl_coef=0",)), ("wide", ("reward.epochs=2",))]

RUNNER = '''
"""A road that takes a moment and says who ran it; what it reads tells it how to go wrong."""

import os
import time

import torch

from nplus.records import InputError
from nplus.runs import RunRoot


def run(config, where):
    began, told = time.monotonic(), where.parent.parent
    where.parent.mkdir(exist_ok=True)
    where.with_suffix(".log").touch()
    if (told / "refuse").exists() or (told / f"refuse-{config.seed}").exists():
        raise InputError("posts.jsonl: no such file")
    (told / f"pid-{os.getpid()}").touch()
    time.sleep(60 if (told / "hang").exists() else 0.15)
    if config.seed == 2 and config.ppo.kl_coef == 0 and (told / "kill").exists():
        os._exit(9)
    root = RunRoot(where)
    (where / "data-0").mkdir(parents=True, exist_ok=True)
    root.write_index(config.recipe, config.model_dump(mode="json"), {"data": "data-0"})
    line = f"{config.seed} {began} {time.monotonic()} {torch.get_num_threads()} {os.getpid()}"
    with (told / "spans").open("a") as out:
        out.write(line + "\\n")
    if config.seed == 1 and config.reward.epochs == 2:
        raise FloatingPointError("loss is NaN at update 3")
    return root
'''


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """A runner that another process can import."""
    (tmp_path / "slow_road.py").write_text(RUNNER)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("slow_road", None)
    return importlib.import_module("slow_road").run


def configs_of(seeds):
    return resolve(crossed(CONDITIONS, seeds), lambda _: recipe("toy:tiny"))


def open_grid(tmp_path, name="g"):
    return Grid.open(tmp_path / name, "ablate", "toy:tiny")


def told(entries):
    return [(e.cell, e.key, e.status, e.error, dict(e.stages)) for e in entries]


def test_side_by_side_comes_to_what_one_by_one_comes_to(tmp_path, runner):
    rounds = []
    grid = open_grid(tmp_path)

    def done():
        return [name for (name, _), e in grid.entries.items() if e.status in ("complete", "failed")]

    entries = grid.run(
        configs_of(3), runner, jobs=2, on_round=lambda: rounds.append(Counter(done()))
    )
    alone = open_grid(tmp_path, "h").run(configs_of(3), runner)
    assert told(entries) == told(alone)
    assert [e.cell for e in entries if e.status == "failed"] == [Cell("wide", CONDITIONS[2][1], 1)]
    failed = next(e for e in entries if e.status == "failed")
    assert failed.error == "FloatingPointError: loss is NaN at update 3"
    assert "in run" in failed.traceback
    assert [sum(count == 3 for count in seen.values()) for seen in rounds] == [1, 2, 3]

    rows = [line.split() for line in (tmp_path / "spans").read_text().splitlines()]
    spans = [(int(s), float(a), float(b), int(n), int(pid)) for s, a, b, n, pid in rows]
    apart = [span for span in spans if span[4] != os.getpid()]
    assert len(apart) == len(spans) - len(apart) == 9
    assert {threads for _, _, _, threads, _ in apart} == {max(1, (os.cpu_count() or 1) // 2)}
    at_once = [(x, y) for x, y in combinations(apart, 2) if x[1] < y[2] and y[1] < x[2]]
    assert at_once
    assert all(x[0] != y[0] for x, y in at_once), "two cells of a seed share a directory"


def test_side_by_side_seeds_go_forward_together():
    waiting, order = list(crossed(CONDITIONS, 3)), []
    waiting.sort(key=lambda cell: cell.seed)
    while cell := _next(waiting, order[-1:], jobs=2):
        waiting.remove(cell)
        order.append(cell)
    assert [(c.name, c.seed) for c in order] == [
        (name, seed) for name, _ in CONDITIONS for seed in (1, 2, 3)
    ]


def test_as_many_jobs_as_seeds_or_cores_on_a_cpu_and_one_elsewhere(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert _jobs_for(configs_of(3)) == 3
    assert _jobs_for(configs_of(9)) == 4
    alone = [resolve(crossed([("a", ())], n), lambda _: recipe("toy:tiny")) for n in range(2, 10)]
    assert [_jobs_for(one) for one in alone] == [2, 3, 4, 5, 6, 7, 4, 5]
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert [_jobs_for(one) for one in alone] == [2, 3, 2, 3, 2, 3, 2, 3]
    assert _jobs_for(resolve(crossed(CONDITIONS, 9), lambda _: recipe("tldr:ppo-1b"))) == 1


def test_a_killed_job_is_one_message_and_the_rest_is_kept(tmp_path, runner):
    (tmp_path / "kill").touch()
    with pytest.raises(JobKilledError, match=r"a job was killed.*fewer --jobs than 2"):
        open_grid(tmp_path).run(configs_of(2), runner, jobs=2)
    rows = json.loads((tmp_path / "g" / "grid.json").read_text())["cells"]
    state = {(row["name"], row["seed"]): row["status"] for row in rows}
    assert state["baseline", 1] == state["baseline", 2] == "complete"
    assert state["no KL", 2] == "interrupted"

    (tmp_path / "kill").unlink()
    skipped = []
    entries = open_grid(tmp_path).run(
        configs_of(2), runner, jobs=2, on_cell=lambda e, s: skipped.append(s == "skip")
    )
    assert sum(skipped) >= 2
    assert [e.status for e in entries].count("complete") == 5


def test_a_job_killed_between_two_cells_is_told_alike(tmp_path, runner):
    def kill(entry, state):
        if state == "done":
            for child in multiprocessing.active_children():
                child.kill()
                child.join()

    with pytest.raises(JobKilledError, match="a job was killed"):
        open_grid(tmp_path).run(configs_of(2), runner, jobs=2, on_cell=kill)


def test_bad_input_leaves_nothing(tmp_path, runner):
    (tmp_path / "refuse").touch()
    with pytest.raises(InputError, match=r"^posts.jsonl: no such file$"):
        open_grid(tmp_path).run(configs_of(2), runner, jobs=2)
    assert not (tmp_path / "g").exists()


def test_bad_input_of_one_seed_waits_for_the_other(tmp_path, runner):
    """What the other has done is kept, and the bad one is then a cell that failed."""
    (tmp_path / "refuse-1").touch()
    entries = open_grid(tmp_path).run(configs_of(2), runner, jobs=2)
    told = {(e.cell.name, e.cell.seed): e for e in entries}
    assert told["baseline", 1].error == "InputError: posts.jsonl: no such file"
    assert [told[name, 2].status for name, _ in CONDITIONS] == ["complete"] * 3


def test_an_interrupt_ends_the_jobs_at_once(tmp_path, runner):
    """Of the grid's process alone; from a keyboard all of them get it."""
    (tmp_path / "hang").touch()
    parent = _grid_process(tmp_path)
    try:
        pids = _wait_for(lambda: list(tmp_path.glob("pid-*")), count=2)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(20) != 0
    finally:
        parent.kill()
    assert not [p for p in pids if _alive(int(p.name[4:]))]
    state = json.loads((tmp_path / "g" / "grid.json").read_text())
    assert [row["status"] for row in state["cells"]] == ["interrupted"] * 2


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux who is alive")
def test_jobs_end_with_the_grid(tmp_path, runner):
    """A job that outlived its grid would write beside the one that takes its place."""
    (tmp_path / "hang").touch()
    parent = _grid_process(tmp_path)
    try:
        pids = _wait_for(lambda: list(tmp_path.glob("pid-*")), count=2)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _wait_for(lambda: [p for p in pids if not _alive(int(p.name[4:]))], count=2)


def _grid_process(tmp_path):
    """A grid of two cells side by side, in `tmp_path/g`."""
    script = tmp_path / "main.py"
    script.write_text(
        "import signal\n"
        "from pathlib import Path\n"
        "import slow_road\n"
        "from nplus.recipes import recipe\n"
        "from nplus.stages.grid import Grid, crossed, resolve\n"
        "if __name__ == '__main__':\n"
        # what a shell starts in the background ignores interrupts, and so do its children
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    configs = resolve(crossed([('a', ())], 2), lambda _: recipe('toy:tiny'))\n"
        "    Grid.open(Path('g'), 'ablate', 'toy:tiny').run(configs, slow_road.run, jobs=2)\n"
    )
    return subprocess.Popen([sys.executable, script.name], cwd=tmp_path)


def _wait_for(found, count, seconds=60):
    until = time.monotonic() + seconds
    while len(now := found()) < count and time.monotonic() < until:
        time.sleep(0.05)
    assert len(now) == count
    return now


def _alive(pid):
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return text.rsplit(")", 1)[1].split()[0] != "Z"  # nobody may have asked how it ended
