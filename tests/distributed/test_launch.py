"""Real commands: several processes on one run, signals on the way, and the way back."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from nplus.distributed.launch import launch
from nplus.runs import RunRoot
from nplus.training.checkpoint import all_checkpoints

SETS = (
    "data.max_query_tokens=320",
    "data.max_response_tokens=48",
    "data.world={pretrain: 32, train: 32, valid: 8, test: 6, heldout: 4, news: 2}",
    "tokenizer.vocab_size=800",
    "compute.autocast=none",
    "compute.matmul_precision=highest",
    "compute.side_by_side=false",
    "pretrain.batch={batch_size: 8, micro_batch_size: 8}",
    "pretrain.save_steps=1",
    "evaluate.response_length=48",
    "ppo.sampling.response_length=48",
    "sample.response_length=48",
)


def command(out, *sets, until="pretrain"):
    flags = [flag for each in (*SETS, *sets) for flag in ("--set", each)]
    return ["run", "toy:tiny", "--out", str(out), "--until", until, *flags]


def start(arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "nplus", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


def weights(out):
    return load_file(RunRoot(out).stages()["pretrain"].model / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    done = start(command(out))
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 0, said
    return weights(out)


def assert_close(found, expected, tolerance=2e-5):
    """A toy is pretrained in float32, where processes add gradients in another order."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= tolerance, name


def test_two_processes_by_option(alone, tmp_path):
    done = start([*command(tmp_path / "run"), "--processes", "2"])
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 0, said
    assert said.count("pretrain  done") == 1  # one of them speaks
    assert_close(weights(tmp_path / "run"), alone)
    assert (tmp_path / "run/logs/attempt_1/rank_1.log").is_file()
    rows = list(RunRoot(tmp_path / "run").stages()["pretrain"].journal_rows())
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_what_ends_one_process_ends_all(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    began = time.monotonic()
    code = launch(command(tmp_path / "run"), 2)
    assert code == 2  # the first one's, for bad input
    assert time.monotonic() - began < 60
    assert os.listdir(tmp_path / "run") == ["notes.txt"]


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_signal_ends_a_run_with_a_checkpoint_and_it_goes_on(number, processes, alone, tmp_path):
    out = tmp_path / "run"
    many = [] if processes == 1 else ["--processes", str(processes)]
    # by signal alone: no checkpoint is due by steps
    running = start([*command(out, "pretrain.save_steps=0"), *many])
    deadline = time.monotonic() + 100
    while not any(out.glob("pretrain-*/journal.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    (journal,) = out.glob("pretrain-*/journal.jsonl")
    while '"metrics"' not in journal.read_text() and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(number)
    said, _ = running.communicate(timeout=60)
    if running.returncode == 0:
        pytest.skip("the run was done before the signal came")
    assert running.returncode == 128 + number, said
    assert said.splitlines()[-1].startswith("nplus: interrupted; the same command goes on")
    assert "Traceback" not in said
    (newest, *_) = all_checkpoints(journal.parent / "checkpoints")
    step = json.loads((newest / "cursor.json").read_text())["step"]
    rows = [row["step"] for row in RunRoot(out).stages()["pretrain"].journal_rows()]
    assert rows == list(range(1, step + 1))
    # It goes on, on one process now.
    again = start(command(out, "pretrain.save_steps=0"))
    said, _ = again.communicate(timeout=100)
    assert again.returncode == 0, said
    assert_close(weights(out), alone, tolerance=0.0 if processes == 1 else 2e-5)
    rows = [row["step"] for row in RunRoot(out).stages()["pretrain"].journal_rows()]
    assert rows == [1, 2, 3, 4]
