"""Machines that are too small, as their control groups have it, and what a run leaves on disk."""

import math
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from nplus.config.load import load_config
from nplus.config.shapes import shape_of
from nplus.recipes import recipe
from nplus.runs import RunRoot
from nplus.stages.doctor.environment import (
    DATA,
    SUPPORTED,
    disk_need,
    facts,
    machine_findings,
    need_findings,
    this_machine,
)
from nplus.stages.doctor.limits import Memory, cores, memory

GIB = 1 << 30
ROOT = Path(__file__).parents[2]


@pytest.fixture
def machine(tmp_path):
    """This one, with plenty of everything."""
    found = this_machine("cpu", tmp_path)
    plenty = Memory(512 * GIB, 500 * GIB)
    return replace(found, memory=plenty, disk_free=4096 * GIB, threads=2, cores=4.0)


def names(findings):
    return [finding.name for finding in findings]


def config(*sets):
    return load_config(recipe("toy:tiny"), sets=sets)


# --- the machine --------------------------------------------------------------------------------


def test_a_sound_machine_has_no_findings(machine):
    assert names(machine_findings(machine)) == []
    assert names(need_findings(machine, config(), config().stage_names())) == []
    assert [name for name, _ in facts(machine)] == [
        "versions", "device", "threads", "products", "memory", "disk"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "version", "wrong"),
    [
        ("python", "3.10.4", True),
        ("python", "3.13.0", False),
        ("torch", "2.8.1+cpu", True),
        ("torch", "2.13.0+cpu", False),
        ("transformers", "4.57.1", True),
        ("transformers", "6.0.0", True),
        ("transformers", "5.23.0", False),
    ],
)
def test_versions(machine, name, version, wrong):
    found = names(machine_findings(replace(machine, versions=machine.versions | {name: version})))
    assert found == (["version_unsupported"] if wrong else [])


def test_supported_versions_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [f"python{project['requires-python']}", *project["dependencies"]]
    for name, (first, unknown) in SUPPORTED.items():
        [text] = [w for w in wanted if re.match(rf"{name}[<>=]", w)]
        bounds = dict(re.findall(r"(>=|<)([\d.]+)", text))
        assert tuple(map(int, bounds[">="].split("."))) == first
        assert (tuple(map(int, bounds["<"].split("."))) if "<" in bounds else None) == unknown


def test_more_threads_than_cores(machine):
    [finding] = machine_findings(replace(machine, threads=8, cores=2.0))
    assert finding.name == "threads_over_quota"
    assert finding.numbers == {"threads": 8, "cores": 2}
    assert names(machine_findings(replace(machine, threads=1, cores=0.5))) == []


# --- what a run needs ---------------------------------------------------------------------------


def test_memory_that_is_taken_and_memory_that_is_not_there(machine):
    cfg, stages = config(), config().stage_names()
    taken = replace(machine, memory=Memory(64 * GIB, GIB // 2))
    small = replace(machine, memory=Memory(GIB, GIB))
    [finding] = need_findings(taken, cfg, stages)
    assert (finding.name, finding.severity) == ("memory_short", "warning")
    [finding] = need_findings(small, cfg, stages)
    assert (finding.name, finding.severity) == ("memory_lacking", "error")
    assert finding.numbers["need_gib"] > 1
    assert names(need_findings(small, cfg, ("data", "evaluate"))) == []
    assert names(need_findings(replace(machine, memory=None), cfg, stages)) == []


def test_a_large_model_does_not_fit_a_laptop(machine):
    laptop = replace(machine, memory=Memory(16 * GIB, 12 * GIB), disk_free=10 * GIB)
    cfg = recipe("tldr:ppo-6.9b")
    assert names(need_findings(laptop, cfg, cfg.stage_names())) == ["memory_lacking", "disk_short"]


def test_disk_counts_models_and_checkpoints():
    cfg = config("sft.save_steps=0", "reward.save_steps=0", "ppo.save_steps=5")
    shape = shape_of(cfg)
    n, s = shape.parameters, shape.scalar_parameters
    models = 4 * (n + n + s + (n + s))  # pretrain, sft, reward, policy and critic
    checkpoint = 4 * 3 * (n + s)
    assert disk_need(cfg, shape, cfg.stage_names()) == DATA + models + 2 * checkpoint
    assert disk_need(cfg, shape, ("ppo",)) == DATA + 4 * (n + s) + 2 * checkpoint


def test_the_estimate_of_disk_holds_what_a_run_leaves(tmp_path, machine):
    full = replace(machine, disk_free=DATA)
    [finding] = need_findings(full, config(), config().stage_names())
    assert finding.name == "disk_short"
    assert RunRoot(tmp_path).index_path.name == "run.json"


# --- limits -------------------------------------------------------------------------------------


def system(tmp_path, groups, files):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(groups)
    (proc / "meminfo").write_text(
        "MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\n"
    )
    for name, text in files.items():
        (cgroup / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroup / name).write_text(text)
    return proc, cgroup


def test_a_machine_without_limits(tmp_path):
    where = system(tmp_path, "0::/\n", {"memory.max": "max\n", "cpu.max": "max 100000\n"})
    assert memory(*where) == Memory(8 * GIB, 4 * GIB)
    assert cores(*where) >= 1
    assert memory(tmp_path / "nowhere", tmp_path) is None


def test_version_2_limits_of_a_group_and_of_those_above(tmp_path):
    files = {
        "app/job/memory.max": f"{3 * GIB}\n",
        "app/job/memory.current": f"{5 * GIB // 2}\n",
        "app/job/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        "app/memory.max": f"{2 * GIB}\n",
        "app/memory.current": f"{GIB // 4}\n",
        "app/cpu.max": "150000 100000\n",
    }
    where = system(tmp_path, "0::/app/job\n", files)
    assert memory(*where) == Memory(2 * GIB, 3 * GIB // 2)  # cache that can go is free
    assert cores(*where) <= 1.5


def test_version_1_limits_where_the_path_is_the_hosts(tmp_path):
    files = {
        "memory/memory.limit_in_bytes": f"{GIB}\n",
        "memory/memory.usage_in_bytes": f"{GIB // 2}\n",
        "memory/memory.stat": "total_inactive_file 0\n",
        "cpu/cpu.cfs_quota_us": "50000\n",
        "cpu/cpu.cfs_period_us": "100000\n",
    }
    where = system(tmp_path, "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n", files)
    assert memory(*where) == Memory(GIB, GIB // 2)
    assert cores(*where) == 0.5


def test_version_1_without_a_limit_is_the_machine(tmp_path):
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.usage_in_bytes": f"{GIB}\n",
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
    }
    where = system(tmp_path, "4:memory:/\n2:cpu:/\n", files)
    assert memory(*where) == Memory(8 * GIB, 4 * GIB)
    assert math.isfinite(cores(*where))
