"""nplus's side of the benchmarks still runs: a step of each program on a network of a few weights.

Rivals and times are `make bench`'s affair.
"""

import importlib
import io
import json
import math
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = (32, 2, 2)
QUIET = ["compute.threads=1", "compute.matmul_precision=highest"]


@pytest.fixture(scope="module")
def program():
    """`program(name)`: a module of `benchmarks/` or `benchmarks/programs/`."""
    before, paths = set(sys.modules), [str(BENCHMARKS), str(BENCHMARKS / "programs")]
    sys.path[:0] = paths
    yield importlib.import_module
    for path in paths:
        sys.path.remove(path)
    for name in set(sys.modules) - before:  # their names are anyone's: `common`, `serve`
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.fixture
def converse(program, tmp_path, monkeypatch, capsys):
    """`converse(name, spec)`: parity and one step, as `common.run` hears them."""

    def talk(name, spec):
        path = tmp_path / "spec.json"
        path.write_text(json.dumps(spec))
        monkeypatch.setattr(sys, "stdin", io.StringIO("go\nend\n"))
        program(name).main(str(path))
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        told, timed, ended = map(json.loads, lines)
        assert told["parity"]
        assert all(map(math.isfinite, told["parity"].values()))
        assert all(seconds > 0 for seconds in timed.values())
        assert ended["ended"]
        assert ended["peak_rss_gib"] > 0
        return told["parity"], timed

    return talk


@pytest.fixture(scope="module")
def models(program, tmp_path_factory):
    """What `ppo_update.py` and `group_update.py` tell their programs."""
    return program("ppo_update").build(tmp_path_factory.mktemp("models"), TINY)


def test_an_update_of_ppo(program, converse, models):
    sets = program("ppo_update").ours("float32", 32, QUIET)
    parity, timed = converse("nplus_ppo", models | {"sets": sets})
    assert parity["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert timed.keys() == {"seconds", "rollout", "rest"}


@pytest.mark.parametrize("kind", ["rloo", "grpo", "online-dpo"])
def test_an_update_of_a_group(program, converse, models, kind):
    bench = program("group_update")
    sets = bench.ours(kind, "float32", 32, QUIET)
    parity, _ = converse("nplus_groups", bench.told(kind, models) | {"sets": sets})
    assert parity["update norm"] > 0


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_a_step_of_a_trainer(program, converse, tmp_path, monkeypatch, stage):
    bench = program("trainers")
    monkeypatch.setitem(bench.SHAPES, "tiny", TINY)
    spec = bench.build(tmp_path, "tiny") | {"stage": stage, "steps": 1}
    spec |= {"data": bench.rows_of(stage, 2 * bench.BATCH, spec["eos"])}
    sets = bench.ours(stage, "float32", "highest", QUIET)
    parity, _ = converse("nplus_trainers", spec | {"sets": sets})
    assert parity["update norm"] > 0
