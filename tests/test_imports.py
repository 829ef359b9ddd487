"""What an import loads: the command line no torch, a stage no optional package."""

import json
import os
import statistics
import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "transformers", "numpy", "scipy", "datasets", "pyarrow", "matplotlib")
OPTIONAL = ("vllm", "ray", "openai", "peft", "wandb", "trackio")


def loaded(statement: str) -> set[str]:
    """Top-level packages in `sys.modules` after `statement`, in a fresh interpreter."""
    probe = "import json, sys; print(json.dumps([m.partition('.')[0] for m in sys.modules]))"
    out = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{probe}"], capture_output=True, text=True, check=True
    )
    return set(json.loads(out.stdout.splitlines()[-1]))


def test_the_probe_sees_what_is_loaded():
    assert "numpy" in loaded("import numpy")


@pytest.mark.parametrize(
    "statement",
    [
        "import nplus.cli",
        "import nplus.config.load, nplus.config.batch_plan",
        "import nplus.recipes",
        "import nplus.records, nplus.runs",
        "from nplus.recipes import RECIPES\n[make() for make in RECIPES.values()]",
    ],
)
def test_the_light_half_loads_nothing_heavy(statement):
    assert loaded(statement).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "command", [["check", "toy"], ["check", "online:llama3-8b"], ["recipes"], ["--help"]]
)
def test_commands_that_run_nothing_load_nothing_heavy(command):
    statement = (
        "from nplus.cli import app\n"
        f"try: app({command!r})\n"
        "except SystemExit as stop: assert not stop.code, stop.code"
    )
    assert loaded(statement).isdisjoint(HEAVY)


def test_a_stage_loads_nothing_optional():
    assert loaded("import nplus.stages.ppo").isdisjoint(OPTIONAL)


def test_help_is_quick():
    """Under 0.6 s; the best of a few medians, since the machine may be busy with other tests."""
    medians = []
    for _ in range(4):
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "nplus", "--help"],
                stdout=subprocess.DEVNULL,
                check=True,
                env=os.environ | {"COLUMNS": "80"},
            )
            taken.append(time.perf_counter() - began)
        medians.append(statistics.median(taken))
        if medians[-1] < 0.6:
            return
        time.sleep(2)
    pytest.fail(f"nplus --help takes {min(medians):.2f} s")
