"""The whole measurement, for real and small; and the command around it."""

import json
import os

import pytest
import torch
from typer.testing import CliRunner

from nplus.cli import app
from nplus.config.auto import AUTO_KEYS
from nplus.config.tuning import Tuning, read_tuning
from nplus.stages.tuning import measure as measuring
from nplus.stages.tuning.allocator import measure_allocator
from nplus.stages.tuning.cache import path_of, this_machine, write
from nplus.stages.tuning.measure import PROBES, measure
from nplus.stages.tuning.turns import Pace
from nplus.stages.tuning.work import LOADS, Load, Loads, Net

SMALL = Net(width=16, layers=1, heads=2, groups=2, inner=32, vocab=64)
WIDER = Net(width=32, layers=1, heads=4, groups=2, inner=32, vocab=64)
TINY = Loads(Load(SMALL, 4, 8, 4), Load(SMALL, 2, 16, 4), Load(WIDER, 2, 16, 4))


def measured(monkeypatch, *, processes=False):
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if not processes:
        probes = tuple(probe for probe in PROBES["cpu"] if probe is not measure_allocator)
        monkeypatch.setitem(measuring.PROBES, "cpu", probes)
    return measure("cpu", loads=TINY, pace=Pace(1, 1, 0.0))


def test_a_small_measurement_is_whole_and_leaves_the_process_as_it_was(monkeypatch):
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    found = measured(monkeypatch)
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before
    assert {c.key for c in found.choices if not c.advice} == set(AUTO_KEYS) - {"compute.allocator"}
    assert {c.key for c in found.choices if c.advice} == {
        "compute.autocast",
        "ppo.micro_batch_size",
        "ppo.rollout_micro_batch_size",
    }
    for row in found.measurements:
        assert row.alternatives[0].ratio == 1.0, row.work
        assert all(0 < way.low <= way.seconds <= way.high for way in row.alternatives)
    assert 1e-8 < found.errors["highest"] < 1e-6  # float32 has 24 bits: 6e-8
    assert found.machine == this_machine("cpu")
    assert read_tuning(found.model_dump_json()) == found


@pytest.mark.slow
def test_the_allocator_is_measured_in_processes_of_its_own(monkeypatch):
    found = measured(monkeypatch, processes=True)
    rows = [row for row in found.measurements if row.key == "compute.allocator"]
    assert [[way.name for way in row.alternatives] for row in rows] == [
        ["one_arena", "keep", "system"]
    ] * 2
    assert found.choice("compute.allocator") is not None


@pytest.mark.gpu
def test_a_gpu_is_measured():
    found = measure("cuda", pace=Pace(1, 1, 0.0))
    assert found.machine.device == torch.cuda.get_device_name()
    keys = {c.key for c in found.choices if not c.advice}
    assert keys == {"compute.matmul_precision", "model.attn_implementation"}
    assert found.errors["high"] > 100 * found.errors["highest"]  # TF32
    assert found.choice("compute.matmul_precision").value == "highest"


def test_a_gpu_has_no_threads_and_no_allocator_to_tune():
    names = {probe.__name__ for probe in PROBES["cuda"]}
    assert {p.__name__ for p in PROBES["cpu"]} - names == {"measure_threads", "measure_allocator"}
    assert set(PROBES) == set(LOADS)


# --- the command --------------------------------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(app, ["tune", *arguments], env={"COLUMNS": "200"})


@pytest.fixture
def calls(monkeypatch, tuning):
    """Stands in for the measurement; the devices it was asked for."""
    asked = []

    def measure(device, on_work=None):
        asked.append(device)
        return tuning(made=f"2026-11-2{len(asked)}T10:00:00+00:00")

    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return asked


def test_tune_measures_once_and_keeps_it(calls):
    path = path_of(this_machine("cpu"))
    first = call()
    assert first.exit_code == 0, first.output
    for part in ("compute.matmul_precision", "medium", "batched", "(advice)", "2026-11-21"):
        assert part in first.stdout
    assert f"kept in {path}" in first.stderr
    second = call()
    assert second.stdout == first.stdout
    assert "measured already; --force measures again" in second.stderr
    assert calls == ["cpu"]
    assert "2026-11-22" in call("--force").stdout
    assert read_tuning(path.read_text()).made.startswith("2026-11-22")
    assert calls == ["cpu", "cpu"]


def test_tune_json_is_the_file(calls):
    for arguments in (("--json",), ("--json", "--show"), ("--json", "--force")):
        found = call(*arguments)
        assert found.exit_code == 0, found.output
        assert json.loads(found.stdout) == json.loads(path_of(this_machine("cpu")).read_text())
        assert Tuning.model_validate_json(found.stdout).choices


def test_show_measures_nothing(calls, tuning):
    missing = call("--show")
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert missing.stderr == "nplus: this machine is not tuned; run `nplus tune`\n"
    write(tuning())
    shown = call("--show")
    assert shown.exit_code == 0
    assert "compute.allocator" in shown.stdout
    assert shown.stderr == ""
    assert calls == []


def test_a_damaged_file_is_told_and_measured_again(calls, tuning):
    path = write(tuning())
    path.write_text("{", encoding="utf-8")
    assert call("--show").exit_code == 2
    found = call()
    assert found.exit_code == 0
    assert f"{path}: ignored, it is damaged" in found.stderr
    assert calls == ["cpu"]
    assert read_tuning(path.read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "--device tpu: must be one of auto, cpu, cuda"),
        (["--device", "cuda"], "torch finds no CUDA device here; take --device cpu"),
        (["--show", "--force"], "give one of them"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(calls, arguments, message):
    found = call(*arguments)
    assert (found.exit_code, found.stdout) == (2, "")
    assert message in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert calls == []


def test_a_cache_that_cannot_be_written_is_told_before_measuring(calls, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = call()
    assert found.exit_code == 2
    assert "cannot write there" in found.stderr
    assert calls == []


def test_check_says_which_settings_are_settled_later():
    found = CliRunner().invoke(app, ["check", "toy", "--set", "compute=auto"])
    assert found.exit_code == 0, found.output
    assert "threads: auto" in found.stdout
    assert "# compute.threads: what `nplus tune` found" in found.stdout
    assert "else null" in found.stdout
    assert "# model.attn_implementation: what `nplus tune` found" in found.stdout


def test_the_variable_of_the_kernel_cache_is_the_users(monkeypatch):
    measured(monkeypatch)
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
