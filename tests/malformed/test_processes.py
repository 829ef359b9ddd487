"""A few malformed inputs as processes of their own: what a shell sees."""

import os
import subprocess
import sys

import pytest
from zoo import POSTS, jsonl, snapshot, text, with_line
from zoo_data import run_on

COMMANDS = [
    (("check", "toy", "--config", "mine.yaml"), "mine.yaml, line 1", text("mine.yaml", "a: [")),
    (("run", "toyy"), "did you mean 'toy'?", lambda place: None),
    (("run", "toy", "--bogus"), "`nplus run --help` tells more", lambda place: None),
    (("details", "F7", "--run", "r"), "run.json: not valid JSON", text("r/run.json", "{")),
    (run_on("posts.jsonl"), "posts.jsonl, line 2", jsonl("posts.jsonl", with_line("{", POSTS))),
]


@pytest.mark.parametrize(("command", "says", "make"), COMMANDS, ids=lambda value: None)
def test_a_process_ends_with_one_line_and_exit_code_2(place, command, says, make):
    make(place)
    before = snapshot(place.parent)
    found = subprocess.run(
        [sys.executable, "-m", "nplus", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert found.returncode == 2, found.stderr
    assert len(found.stderr.splitlines()) == 1, found.stderr
    assert found.stderr.startswith("nplus: ")
    assert says in found.stderr
    assert snapshot(place.parent) == before
