"""One process at a time in a directory, and no trace of a lock where nothing came to be."""

import subprocess
import sys
import time

import pytest

from nplus.records import InputError
from nplus.runs import RunRoot, alone_in
from nplus.runs.lock import is_vacant

HOLDER = """
import sys, time
from pathlib import Path
from nplus.runs import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def enter(where):
    with alone_in(where):
        pass


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("nplus.runs.lock.PATIENCE", 0.1)


def test_another_process_is_told_apart_until_it_is_killed(tmp_path, impatient):
    where = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, where], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=r"run: another nplus process.*--out"):
            enter(where)
    finally:
        holder.kill()
        holder.wait()
    enter(where)


def test_a_directory_made_for_nothing_is_gone(tmp_path):
    where = tmp_path / "a" / "run"
    with alone_in(where):
        assert where.is_dir()
    assert not where.parent.exists()
    (tmp_path / "a").mkdir()
    enter(where)
    assert not any((tmp_path / "a").iterdir())


def test_what_was_there_stays(tmp_path):
    (tmp_path / "run").mkdir()
    enter(tmp_path / "run")
    assert is_vacant(tmp_path / "run")
    with alone_in(tmp_path / "new"):
        (tmp_path / "new" / "file").touch()
    assert not is_vacant(tmp_path / "new")


def test_a_lock_and_torn_files_alone_are_no_run(tmp_path):
    for name in (".lock", ".run.json.12.tmp"):
        (tmp_path / name).touch()
    RunRoot(tmp_path).open("toy")
    (tmp_path / ".hidden").touch()
    with pytest.raises(InputError, match="holds files that are not a run"):
        RunRoot(tmp_path).open("toy")


def test_a_process_that_is_about_to_end_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("nplus.runs.lock.PATIENCE", 30)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE)
    holder.stdout.readline()
    began = time.monotonic()
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {holder.pid}"])
    with alone_in(tmp_path):
        assert time.monotonic() - began > 0.3
    holder.wait()
