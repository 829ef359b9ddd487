"""Real commands: several processes on one run, signals on the way, and the way back."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from nplus.distributed.launch import launch
from nplus.runs import RunRoot
from nplus.training.checkpoint import all_checkpoints

STEPS = 16
SETS = (
    "data.max_query_tokens=320",
    "data.max_response_tokens=48",
    "data.world={pretrain: 32, train: 32, valid: 8, test: 6, heldout: 4, news: 2}",
    "tokenizer.vocab_size=800",
    "model.dtype=float64",
    "model.attn_implementation=sdpa",
    "compute.autocast=none",
    "compute.matmul_precision=highest",
    "compute.side_by_side=false",
    "pretrain.batch={batch_size: 8, micro_batch_size: 8}",
    "sft.batch={batch_size: 4, micro_batch_size: 4}",
    "sft.epochs=2",
    "evaluate.response_length=48",
    "ppo.sampling.response_length=48",
    "sample.response_length=48",
)


def command(out, *sets, until="sft"):
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


def sft(out):
    return RunRoot(out).stages()["sft"]


def weights(out):
    return load_file(sft(out).model / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process, up to SFT."""
    out = tmp_path_factory.mktemp("alone") / "run"
    done = start(command(out))
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 0, said
    return out


@pytest.fixture
def before(alone, tmp_path):
    """A copy that has not come to SFT yet."""
    shutil.copytree(alone, tmp_path / "run")
    shutil.rmtree(sft(tmp_path / "run").path)
    return tmp_path / "run"


def assert_same(out, alone, tolerance=1e-9):
    found, expected = weights(out), weights(alone)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= tolerance, name


def test_two_processes_by_option(alone, before):
    done = start([*command(before), "--processes", "2"])
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 0, said
    assert said.count("sft       done") == 1  # one of them speaks
    assert_same(before, alone)
    assert (before / "logs/attempt_1/rank_1.log").is_file()
    assert [row["step"] for row in sft(before).journal_rows()] == list(range(1, STEPS + 1))


def test_what_ends_one_process_ends_all(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    began = time.monotonic()
    code = launch(command(tmp_path / "run"), 2)
    assert code == 2  # the first one's, for bad input
    assert time.monotonic() - began < 60
    assert os.listdir(tmp_path / "run") == ["notes.txt"]


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_signal_ends_a_run_with_a_checkpoint_and_it_goes_on(number, processes, alone, before):
    many = [] if processes == 1 else ["--processes", str(processes)]
    running = start([*command(before), *many])
    journal = sft(alone).path.name + "/journal.jsonl"
    while running.poll() is None:
        there = before / journal
        if there.is_file() and '"metrics"' in there.read_text():
            break
        time.sleep(0.005)
    running.send_signal(number)
    said, _ = running.communicate(timeout=60)
    if running.returncode == 0:
        pytest.skip("the run was done before the signal came")
    assert running.returncode == 128 + number, said
    assert said.splitlines()[-1].startswith("nplus: interrupted; the same command goes on")
    assert "Traceback" not in said
    (newest, *_) = all_checkpoints(sft(before).checkpoints)
    step = json.loads((newest / "cursor.json").read_text())["step"]
    assert [row["step"] for row in sft(before).journal_rows()] == list(range(1, step + 1))
    # It goes on, on one process now.
    again = start(command(before))
    said, _ = again.communicate(timeout=100)
    assert again.returncode == 0, said
    assert_same(before, alone, tolerance=0.0 if processes == 1 else 1e-9)
    assert [row["step"] for row in sft(before).journal_rows()] == list(range(1, STEPS + 1))
