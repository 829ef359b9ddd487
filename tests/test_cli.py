"""The command line: what it prints, and that wrong input ends in one message and writes nothing."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from typer.testing import CliRunner

import nplus
from nplus.cli import app
from nplus.recipes import RECIPES, recipe
from nplus.records import InputError
from nplus.runs import RunRoot


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def road(monkeypatch):
    """A stand-in for the road and the report; `road.calls` are the roads' arguments."""

    def run_road(config, out, *, until=None, console):
        stub.calls.append((config, out, until))
        if stub.error is not None:
            raise stub.error
        root = RunRoot(out)
        root.write_index(config.recipe, config.model_dump(mode="json"), {})
        return root

    stub = ModuleType("nplus.stages.road")
    stub.calls, stub.error, stub.run_road = [], None, run_road
    copying = ModuleType("nplus.stages.copying")
    copying.CopyGateError = type("CopyGateError", (RuntimeError,), {})
    stub.gate = copying.CopyGateError
    report = ModuleType("nplus.report")
    page, card, tables = (ModuleType(f"nplus.report.{n}") for n in ("page", "card", "tables"))
    page.write_report = lambda root: root.report
    card.write_cards = lambda root: []
    tables.verdict = lambda root: "PPO wins"
    for module in (ModuleType("nplus.stages"), stub, copying, report, page, card, tables):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return stub


def call(*arguments):
    return CliRunner().invoke(app, list(arguments))


def refused(*arguments):
    """The one message of a call that must end with exit code 2."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("nplus: ")
    return result.stderr


def test_help_and_version():
    assert "Begin with" in call("--help").stdout
    assert call("--version").stdout == f"nplus {nplus.__version__}\n"
    assert call().exit_code in (0, 2)


def test_the_options_of_a_command_stay_a_handful():
    options = {
        name: {o for p in command.params for o in p.opts if o.startswith("--")}
        for name, command in _commands().items()
    }
    assert options == {
        "run": {
            "--set",
            "--config",
            "--out",
            "--seed",
            "--until",
            "--processes",
            "--seeds",
            "--jobs",
        },
        "iterate": {"--set", "--config", "--out", "--seed", "--processes"},
        "ledger": {"--format"},
        "check": {"--set", "--config", "--seed", "--world-size"},
        "recipes": set(),
        "report": set(),
        "details": {"--run"},
        "doctor": {"--set", "--config", "--json"},
        "evaluate": {"--against", "--sections", "--with"},
        "ablate": {"--seeds", "--jobs", "--out", "--recipe", "--flip", "--set", "--config"},
        "scale": {"--sizes", "--seeds", "--jobs", "--out", "--set", "--config"},
        "data": set(),
        "data check": {
            *("--recipe", "--set", "--config", "--tokenizer", "--against", "--rows", "--json"),
            "--out",
        },
        "tune": {"--show", "--json", "--force", "--device"},
    }


def _commands():
    import typer

    found = dict(typer.main.get_command(app).commands)
    return found | {
        f"{name} {sub}": command
        for name, group in found.items()
        for sub, command in getattr(group, "commands", {}).items()
    }


def test_recipes_are_listed_with_a_line_each():
    lines = call("recipes").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    assert all(len(line) > 40 for line in lines)


@pytest.mark.parametrize("name", RECIPES)
def test_check_prints_a_config_file_that_says_the_same(name, tmp_path):
    first = call("check", name, "--set", "reward.epochs=3")
    assert first.exit_code == 0, first.output
    assert yaml.safe_load(first.stdout)["reward"]["epochs"] == 3
    (tmp_path / "mine.yaml").write_text(first.stdout, encoding="utf-8")
    assert call("check", name, "--config", "mine.yaml").stdout == first.stdout
    online = {"ppo", "reinforce", "online_dpo"} & {*recipe(name).stage_names()}
    assert ("optimiser_steps=" in first.stdout) == bool(online)
    assert "# memory of one process" in first.stdout
    assert f"# stages: {', '.join(recipe(name).stage_names())}" in first.stdout


def test_check_over_processes_refuses_what_does_not_divide():
    args = ["check", "real", "--world-size"]
    assert "micro_batches=2" in call(*args, "2").stdout
    assert "does not divide over 3 processes" in refused(*args, "3")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "tldr:ppo-6.9b",
            (
                "# sft: 911 optimiser steps of 128 rows (116722 rows, 1 epochs, 16 micro-batches",
                "# reward: 1450 optimiser steps of 64 rows (92832 rows, 1 epochs, 8 micro-batches",
                "updates=1953, local_rows=64, minibatch_rows=64, micro_batches=64, "
                "optimiser_steps=7812",
                "(6,857,302,016 parameters)",
            ),
        ),
        ("tldr:dpo-1b", ("# dpo: 1450 optimiser steps of 64 rows", "(1,011,781,632 parameters)")),
    ],
)
def test_check_prints_the_papers_steps_and_the_memory(name, lines):
    found = call("check", name, "--world-size", "8").stdout
    assert all(line in found for line in lines), found
    figures = [line for line in found.splitlines() if re.match(r"# \w+: \d+\.\d = weights", line)]
    assert len(figures) == len({"sft", "reward", "ppo", "dpo"} & set(recipe(name).stage_names()))
    for line in figures:  # what is named adds up to the total, the larger phase counting
        total, _, parts = line.split(":")[1].partition(" = ")
        sums = [
            max(float(word) for word in re.findall(r"\d+\.\d", part)) for part in parts.split(" + ")
        ]
        assert float(total) == pytest.approx(sum(sums), abs=0.06 * len(sums))


def test_check_plans_the_papers_online_run_without_a_network(monkeypatch):
    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    found = call("check", "online:llama3-8b").stdout
    for line in (
        "# batch plan over 8 processes",
        "3 rounds of 20,000 prompts with 8 responses each: 60,000 prompts of RLHFlow/prompt-coll",
        "480,000 responses, at most 983,040,000 tokens",
        "# round 3: 937 optimiser steps of 128 pairs (at most 60,000 pairs, 2 epochs)",
        "(8,030,261,248 parameters)",
        "# 80 GiB of a100-80gb, with state shared out: every stage fits",
        "as `nplus run` keeps it: over it: sft 145, dpo 180, reward 131, online 180",
        "an estimate and no measurement; assumed (budget.*) are 40% of its peak",
        "# round2_sample: 15.0M read, 105.0M written tokens: 29.4 GPU-hours = read 1.1 + written",
        "the rounds' validate, the rounds' pair, evaluate",
    ):
        assert line in found, line
    hours = re.findall(r"tokens: (\d+\.\d) GPU-hours", found)
    [total, on_eight] = re.findall(r"in all (\d+) GPU-hours, (\d+) hours on 8 GPUs", found)[0]
    assert len(hours) == 11
    assert float(total) == pytest.approx(sum(map(float, hours)), abs=1)
    assert float(on_eight) == pytest.approx(float(total) / 8, abs=1)
    fewer = call("check", "online:llama3-8b", "--world-size", "4").stdout
    assert "# batch plan over 4 processes" in fewer
    assert "hours on 4 GPUs" in fewer


def test_a_budget_is_asked_for():
    assert "GPU-hours" not in call("check", "toy:online").stdout
    early = call("check", "toy:online", "--set", "budget={}", "--set", "until=data")
    assert early.exit_code == 0
    assert "in all 0 GPU-hours" in early.stdout
    found = call("check", "toy:online", "--set", "budget={}").stdout
    assert "# round3_train: " in found
    assert "GPU-hours" in found


def test_check_says_when_it_does_not_know_a_model():
    found = call("check", "real", "--set", "model.model_name_or_path=org/model")
    assert found.exit_code == 0
    assert "# memory: org/model has a shape not known here" in found.stdout


def test_a_recipe_that_ends_early_prints_no_verdict(road):
    result = call("run", "tldr:sft-1b", "--out", "here")
    assert result.exit_code == 0, result.output
    assert "PPO wins" not in result.stdout
    assert "its stages are data, sft" in refused("run", "tldr:sft-1b", "--until", "ppo")


def test_missing_comparisons_are_named_before_anything_is_written(road, tmp_path):
    text = refused("run", "tldr:ppo-1b", "--set", "data.comparisons.data=pairs.jsonl")
    assert "pairs.jsonl: no such file; name yours with --set data.comparisons.data=PATH" in text
    assert road.calls == []
    assert list(tmp_path.iterdir()) == []


def test_run_hands_over_the_config_and_prints_verdict_and_report(road, tmp_path):
    result = call("run", "toy:tiny", "--seed", "5", "--set", "ppo.kl_coef=0.3")
    assert result.exit_code == 0, result.output
    [(config, out, until)] = road.calls
    assert (config.seed, config.ppo.kl_coef, until) == (5, 0.3, None)
    assert str(out) == "runs/toy-tiny"
    assert "PPO wins" in result.stdout
    assert "report: runs/toy-tiny/report.html" in result.stdout


def test_run_until_an_early_stage_prints_no_verdict(road):
    result = call("run", "toy", "--until", "sft", "--out", "here")
    assert result.exit_code == 0, result.output
    assert [(str(out), until) for _, out, until in road.calls] == [("here", "sft")]
    assert "PPO wins" not in result.stdout


def test_report_of_a_run(road):
    RunRoot(Path("r")).write_index("toy", {}, {})
    assert "report: r/report.html" in call("report", "r").stdout
    assert "not a run directory" in refused("report", "nowhere")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", "toyy"], ("unknown recipe 'toyy'", "did you mean 'toy'?")),
        (["run", "toy", "--set", "ppo.klcoef=1"], ("ppo.klcoef", "ppo.kl_coef?")),
        (["run", "toy", "--set", "ppo.batch_size=100"], ("50 rows", "micro_batch_size=32")),
        (["run", "toy", "--set", "ppo.gamma=2", "--set", "x=1"], ("2 problems", "ppo.gamma=2")),
        (["run", "toy", "--config", "none.yaml"], ("none.yaml", "cannot read it")),
        (["run", "toy", "--until", "dpo"], ("--until dpo", "pretrain, sft")),
        (["run", "real"], ("posts.jsonl", "no such file", "--set data=PATH")),
        (["check", "toy", "--set", "seed=x"], ("seed='x'",)),
    ],
)
def test_wrong_input_is_one_message_and_nothing_is_written(road, tmp_path, arguments, parts):
    text = refused(*arguments)
    assert all(part in text for part in parts), text
    assert road.calls == []
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_another_run_is_left_as_it_is(road, tmp_path):
    RunRoot(tmp_path / "r").write_index("real", {}, {})
    before = (tmp_path / "r" / "run.json").read_bytes()
    assert "holds a run of recipe 'real'" in refused("run", "toy", "--out", "r")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    assert "holds files that are not a run" in refused("run", "toy", "--out", "full")
    assert road.calls == []
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["run.json"]
    assert (tmp_path / "r" / "run.json").read_bytes() == before
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("posts.jsonl, line 3: no title"), 2, "nplus: posts.jsonl, line 3: no title\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on"),
    ],
)
def test_what_a_stage_raises_reaches_the_user_as_one_message(road, error, code, text):
    road.error = error
    result = call("run", "toy")
    assert result.exit_code == code
    assert text in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_closed_gate_is_a_message_and_exit_code_1(road):
    road.error = road.gate("too few facts are copied")
    result = call("run", "toy")
    assert (result.exit_code, result.stderr) == (1, "nplus: too few facts are copied\n")


def test_a_fault_of_ours_keeps_its_traceback(road):
    road.error = ValueError("shape mismatch")
    result = call("run", "toy")
    assert result.exit_code == 1
    assert result.exception is road.error


def test_evaluate_against_hands_over_and_shows_where(road, monkeypatch, tmp_path):
    given = []

    def compare(root, file, console):
        given.append((root.path.name, file.name))
        return root.against("a" * 64)

    against, shown = (ModuleType(f"nplus.{n}.against") for n in ("stages", "report"))
    against.compare, shown.comparison = compare, lambda where: "PPO wins against them"
    for module in (against, shown):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    RunRoot(Path("r")).write_index("toy", {}, {})
    result = call("evaluate", "r", "--against", "theirs.jsonl")
    assert result.exit_code == 0, result.output
    assert given == [("r", "theirs.jsonl")]
    for part in ("PPO wins against them", "kept in: r/against-aaaaaaaa", "report: r/report.html"):
        assert part in result.stdout
    assert "not a run directory" in refused("evaluate", "nowhere", "--against", "theirs.jsonl")


@pytest.mark.parametrize("scorer", [None, "preference"])
def test_evaluate_sections_hands_over_and_shows_where(road, monkeypatch, scorer):
    given = []

    def score(root, file, scorer, console):
        given.append((root.path.name, file.name, scorer))
        return root.sections("b" * 64)

    sections, shown = (ModuleType(f"nplus.{n}.sections") for n in ("stages", "report"))
    sections.score, shown.scored = score, lambda where: "Chat 98.60"
    for module in (sections, shown):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    RunRoot(Path("r")).write_index("toy", {}, {})
    asked = ["--with", scorer] if scorer else []
    result = call("evaluate", "r", "--sections", "pairs.jsonl", *asked)
    assert result.exit_code == 0, result.output
    assert given == [("r", "pairs.jsonl", scorer or "reward")]
    assert "Chat 98.60" in result.stdout
    assert "kept in: r/sections-bbbbbbbb" in result.stdout
    assert call("evaluate", "r", "--sections", "x", "--with", "gold").exit_code == 2


def test_evaluate_refuses_bad_completions_with_exit_code_2(tmp_path):
    RunRoot(Path("r")).write_index("toy", {}, {})
    assert "no such file" in refused("evaluate", "r", "--against", "none.jsonl")
    Path("bad.jsonl").write_text('{"id": "a", "summary": "x"}\n{broken\n', encoding="utf-8")
    assert "bad.jsonl, line 2: not valid JSON" in refused("evaluate", "r", "--against", "bad.jsonl")
    Path("ok.jsonl").write_text('{"id": "a", "summary": "x"}\n', encoding="utf-8")
    assert "no finished evaluation" in refused("evaluate", "r", "--against", "ok.jsonl")
    assert call("evaluate", "r").exit_code == 2
