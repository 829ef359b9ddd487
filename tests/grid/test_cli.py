"""`nplus ablate` and `nplus scale` from the command line, on a road that takes no time."""

import json
import sys
from types import ModuleType

import pytest
from typer.testing import CliRunner

from nplus.cli import app
from nplus.runs import RunRoot


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stub(road, monkeypatch):
    """The stand-in road in the place of the real one; the rest is the product."""
    import nplus.stages.grid  # noqa: F401  # reads settings of the real road when first loaded

    module = ModuleType("nplus.stages.road")
    module.VERSIONS = {"data": 1}
    module.preflight = lambda config: None
    module.run_road = lambda config, out: road(config, out)
    monkeypatch.setitem(sys.modules, "nplus.stages.road", module)
    monkeypatch.setattr("nplus.cli.grid._jobs_for", lambda configs: 1)  # others would not have it
    return module


def call(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_ablate_from_a_command_to_its_page(stub, road, tmp_path):
    road.wins = lambda config: 5 + 2 * (config.ppo.kl_coef == 0)
    arguments = ["ablate", "F7", "--flip", "no KL: ppo.kl_coef=0", "--recipe", "toy:tiny"]
    result = call(*arguments, "--seeds", "2", "--out", "g", "--set", "ppo.lam=0.9")
    assert result.exit_code == 0, result.output
    assert "report: g/ablation.html" in result.stdout
    assert "+20.0" in result.stdout
    assert [line for line in result.stdout.splitlines() if line.startswith("[6/6] no KL, seed 2")]
    data = json.loads((tmp_path / "g" / "ablation.json").read_text())
    assert data["command"] == (
        "nplus ablate F7 --seeds 2 --out g --recipe toy:tiny --flip 'no KL: ppo.kl_coef=0' "
        "--set ppo.lam=0.9"
    )
    assert [c["name"].split()[0] for c in data["conditions"]] == ["F7", "no"]
    assert {c["status"] for c in data["cells"]} == {"complete"}
    config = RunRoot(tmp_path / "g" / "seed-2").index()["config"]
    assert (config["seed"], config["ppo"]["lam"], config["ppo"]["kl_coef"]) == (2, 0.9, 0.0)

    before = len(road.ran)
    again = call(*arguments, "--seeds", "3", "--out", "g", "--set", "ppo.lam=0.9")
    assert again.exit_code == 0, again.output
    assert {seed for _, seed in road.ran[before:]} == {3}
    assert again.stdout.count("complete, skipped") == 6


def test_an_interrupted_grid_says_how_to_go_on_and_keeps_what_it_has(stub, road, tmp_path):
    def fail(config, stage):
        if config.seed == 2:
            raise KeyboardInterrupt

    road.fail = fail
    flip = ("--flip", "x: ppo.lam=1", "--recipe", "toy:tiny", "--out", "g", "--seeds", "2")
    result = call("ablate", *flip)
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr
    page = (tmp_path / "g" / "ablation.html").read_text()
    assert page.count('class="badge complete"') == 2
    assert page.count('class="badge interrupted"') == 1
    assert "1 of 4 cells have not run yet" in page
    road.fail = lambda config, stage: None
    assert call("ablate", *flip).exit_code == 0
    assert "pending" not in (tmp_path / "g" / "ablation.html").read_text()


def test_scale_from_a_command_to_its_figure(stub, road, tmp_path):
    def fail(config, stage):
        if config.model.size == "1M":
            raise RuntimeError("broken pipe [bold]")

    road.fail = fail
    result = call("scale", "--sizes", "0.3M,1M", "--seeds", "2", "--out", "s")
    assert result.exit_code == 0, result.output
    assert "broken pipe [bold]" in result.stdout  # told, and not read as markup
    for name in ("json", "md", "html", "svg", "png"):
        assert (tmp_path / "s" / f"scale.{name}").stat().st_size > 0
    data = json.loads((tmp_path / "s" / "scale.json").read_text())
    assert [(row["size"], row["complete"]) for row in data["sizes"]] == [("0.3M", 2), ("1M", 0)]


def test_a_grid_without_any_result_ends_with_1(stub, road):
    def fail(config, stage):
        raise RuntimeError("no")

    road.fail = fail
    assert call("scale", "--sizes", "1M", "--seeds", "1", "--out", "s").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["ablate", "Q7"], ("unknown detail 'Q7'",)),
        (["ablate", "F7", "--recipe", "toyy"], ("unknown recipe", "did you mean 'toy'?")),
        (["ablate", "--flip", "a: ppo.x=1", "--flip", "b: ppo.gamma=2"], ("a: --set ppo.x", "b: ")),
        (["ablate", "--flip", "a: ppo.lam=0.95"], ("a: the baseline has these", "leave them out")),
        (["ablate", "--flip", "a: ppo.lam=1", "--flip", "a: ppo.lam=0"], ("a: given twice",)),
        (["ablate", "--flip", "a: ppo.lam=1", "--set", "until=sft"], ("set until=null",)),
        (["ablate", "F7", "--recipe", "real"], ("posts.jsonl", "no such file")),
        (["scale", "--sizes", "2M"], ("unknown size '2M'", "0.3M, 1M")),
        (["scale", "cow"], ("unknown family 'cow'",)),
        (["scale", "--set", "model.size=4M"], ("--sizes",)),
        (["scale", "--sizes", ""], ("unknown size ''",)),
    ],
)
def test_wrong_input_is_one_message_and_nothing_is_written(stub, road, tmp_path, arguments, parts):
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("nplus: ")
    assert len(result.stderr.splitlines()) == 1
    assert all(part in result.stderr for part in parts), result.stderr
    assert road.ran == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_tiny_grid_of_real_runs(tmp_path):
    """One condition and two seeds of `toy:tiny`: shared stages run once, the tables are whole."""
    flip = ("--flip", "no KL: ppo.kl_coef=0", "--recipe", "toy:tiny")
    result = call("ablate", *flip, "--seeds", "2", "--out", "g")
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "g" / "ablation.json").read_text())
    assert [cell["status"] for cell in data["cells"]] == ["complete"] * 4
    effect = data["conditions"][0]
    assert effect["win_rate"]["posts"] == 16
    assert len(effect["kl"]["per_seed"]) == 2
    for seed in (1, 2):
        folders = [p.name for p in (tmp_path / "g" / f"seed-{seed}").iterdir() if p.is_dir()]
        counts = {
            name: sum(f.startswith(f"{name}-") for f in folders) for name in ("reward", "ppo")
        }
        assert counts == {"reward": 1, "ppo": 2}
