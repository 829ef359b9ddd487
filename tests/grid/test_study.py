"""Studies: what `nplus run` makes of a recipe that is one, and how its arms are compared."""

import json

import pytest
from typer.testing import CliRunner

from nplus.cli import app
from nplus.recipes.studies import STUDIES
from nplus.records import Judgement, write_records
from nplus.runs import Pipeline, RunRoot
from nplus.stages.outcomes import main_policy

POSTS = 20
WINS = {"sft": 4, "dpo": 9, "online": 13}
"""Of twenty posts; every seed adds one to iterative DPO."""


def judged(policy, wins):
    for post in range(POSTS):
        yield Judgement(
            id=f"p{post}",
            split="test",
            policy=f"{policy}@0.01",
            opponent="reference",
            response="",
            opponent_response="",
            score=float(post < wins),
            opponent_score=0.5,
            tokens=20,
            opponent_tokens=20,
        )


def system(policy, temperature):
    kl = None if policy == "sft" or temperature < 0.1 else {"value": 2.0, "low": 1.0, "high": 3.0}
    return {
        "policy": policy,
        "temperature": temperature,
        "split": "test",
        "tokens": 20.0,
        "eos_rate": 1.0,
        "kl": kl,
        "score": 2.0,
        "proxy": 0.5,
        "against_sft": {"rate": 0.8},
        "reward_length_correlation": temperature,
    }


def judged_round(number, temperature, seed):
    """Wins a tenth more by round, and in the first a hundredth more by seed."""
    rate = 0.2 + 0.1 * number + (0.01 * seed if number else 0.0)
    return {**system(f"round{number}", temperature), "against_reference": {"rate": rate}}


def road(config, where):
    """A run of the study without training."""
    root = RunRoot(where)
    root.open(config.recipe)
    pipeline = Pipeline(root, config.recipe, config.model_dump(mode="json"), config.seed)

    def online(where):
        rounds = [
            {
                "round": number,
                "validation": {
                    "systems": [judged_round(number, t, config.seed) for t in (0.01, 0.7)]
                },
                "pairs": {"reward_length_correlation": 0.9} if number else {},
            }
            for number in range(3)
        ]
        return {"rounds": rounds, "chosen": 2}

    def evaluate(where):
        wins = {**WINS, "online": WINS["online"] + config.seed}
        write_records(where.judgements, [row for name in wins for row in judged(name, wins[name])])
        systems = [system(name, t) for name in wins for t in (0.01, 0.7)]
        return {"split": "test", "temperatures": [0.01, 0.7], "systems": systems}

    pipeline.run("online", {"seed": config.seed}, online)
    pipeline.run("evaluate", {}, evaluate, inputs={"online": "online"})
    return root


def walk(config, where):
    """A run of the study of algorithms without training: every policy wins a tenth more at each of
    two later looks, and under each later seed."""
    root = RunRoot(where)
    root.open(config.recipe)
    settings = config.model_dump(mode="json")
    pipeline = Pipeline(root, config.recipe, settings, config.seed)
    policy = main_policy(config)

    def point(kl, rate, **head):
        wins = {"rate": rate, "low": 0.0, "high": 1.0, "n": POSTS}
        measures = {"score": 1.0, "proxy": 0.5, "tokens": 20.0}
        return {**head, **measures, "kl": {"value": float(kl)}, "against_reference": wins}

    def curve(where):
        first = point(0, 0.2, policy="sft", step=0, rollouts=0)
        rates = {} if policy == "sft" else {1: 0.3, 2: 0.4}
        later = [
            point(step, rate + 0.1 * config.seed, policy=policy, step=step, rollouts=64 * step)
            for step, rate in rates.items()
        ]
        best_of = [point(n - 1, 0.2 + 0.1 * n, n=n) for n in config.curve.best_of[:2]]
        return {"points": [first, *later], "best_of": best_of}

    def evaluate(where):
        called = config.reinforce.algorithm if policy == "reinforce" else policy
        wins = {called: 9, "sft": 4}
        write_records(where.judgements, [row for name in wins for row in judged(name, wins[name])])
        systems = [system(name, t) for name in {"sft", policy} for t in (0.01, 0.7)]
        return {"split": "test", "temperatures": [0.01, 0.7], "systems": systems}

    pipeline.run("curve", settings, curve)
    pipeline.run("evaluate", settings, evaluate, inputs={"curve": "curve"})
    return root


@pytest.fixture
def studied(monkeypatch, tmp_path):
    monkeypatch.setattr("nplus.cli.grid._run_here", road)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return CliRunner().invoke(app, ["run", *arguments])

    return run


def test_a_study_compares_its_arms_over_seeds(studied, tmp_path):
    found = studied("toy:online", "--jobs", "1", "--out", "study")
    assert found.exit_code == 0, found.output
    data = json.loads((tmp_path / "study" / "study.json").read_text())
    assert data["seeds"] == [1, 2, 3]
    rates = {arm["label"]: arm["win_rate"]["value"] for arm in data["arms"]}
    # twenty posts: 4, 9, and 14, 15 and 16 of them won
    expected = {"SFT": 0.2, "offline DPO": 0.45, "iterative DPO": 0.75}
    assert rates == pytest.approx(expected)
    effects = {(row["ours"], row["theirs"]): row["win_rate"] for row in data["contrasts"]}
    gain = effects["iterative DPO", "offline DPO"]
    assert gain["value"] == pytest.approx(0.3)
    assert gain["per_seed"] == pytest.approx([0.25, 0.3, 0.35])
    # t with 2 degrees of freedom, standard error 0.05 / sqrt(3)
    assert gain["high"] - gain["value"] == pytest.approx(4.302653 * 0.05 / 3**0.5, abs=1e-6)
    (loop,) = data["rounds"]
    assert [row["round"] for row in loop["rounds"]] == [0, 1, 2]
    before, first, second = loop["rounds"]
    bias = second["reward_length_correlation"]["value"]
    assert bias == pytest.approx(0.7)  # of its own policy, at the temperature of KL
    assert second["win_rate"]["value"] == pytest.approx(0.42)
    assert before["gain"] is None
    assert first["gain"]["per_seed"] == pytest.approx([0.11, 0.12, 0.13])
    assert second["gain"]["per_seed"] == pytest.approx([0.1, 0.1, 0.1])
    page = (tmp_path / "study" / "study.html").read_text()
    assert "iterative DPO less offline DPO" in page
    assert "round 1 less SFT" in page
    assert "<svg" in page
    assert "iterative DPO" in (tmp_path / "study" / "study.md").read_text()


def test_a_study_of_algorithms_draws_their_ways(studied, monkeypatch, tmp_path):
    monkeypatch.setattr("nplus.cli.grid._run_here", walk)
    found = studied("toy:algorithms", "--jobs", "1", "--out", "study")
    assert found.exit_code == 0, found.output
    data = json.loads((tmp_path / "study" / "study.json").read_text())
    labels = ["PPO", "RLOO", "GRPO", "online DPO", "iterative DPO", "RAFT"]
    rates = {arm["label"]: arm["win_rate"]["per_seed"] for arm in data["arms"]}
    assert rates == {"SFT": [0.2] * 3, **{label: [0.45] * 3 for label in labels}}
    for row in data["contrasts"]:
        assert row["win_rate"]["per_seed"] == pytest.approx([0.25] * 3), row["ours"]
    assert [curve["label"] for curve in data["curves"]] == labels
    for curve in data["curves"]:
        assert [(row["step"], row["rollouts"]) for row in curve["points"]] == [
            (0, 0),
            (1, 64),
            (2, 128),
        ]
        last = curve["points"][-1]["win_rate"]
        assert last["per_seed"] == pytest.approx([0.5, 0.6, 0.7])  # 0.4 and a tenth a seed
        assert last["value"] == pytest.approx(0.6)
        assert curve["points"][-1]["kl"]["value"] == pytest.approx(2.0)
    assert [(row["n"], row["win_rate"]["value"]) for row in data["best_of"]] == [
        (1, pytest.approx(0.3)),
        (2, pytest.approx(0.4)),
    ]
    page = (tmp_path / "study" / "study.html").read_text()
    for text in ("Win rate against distance", "Win rate against rollouts", "best of n", *labels):
        assert text in page


def test_one_run_of_several_is_asked_for_by_its_own_name(studied, tmp_path):
    found = studied("toy:algorithms", "--seed", "2", "--out", "run")
    assert found.exit_code == 2
    assert "toy:rloo" in found.output
    assert not (tmp_path / "run").exists()


def test_the_algorithms_have_the_same_budget():
    """The same models and prompts, and as many rollouts; what differs is the stage."""
    study = STUDIES["toy:algorithms"]
    configs = {name: make() for name, make in study.cells.items()}
    shared = ("data", "model", "pretrain", "sft", "sample", "label", "reward", "evaluate")
    for name, config in configs.items():
        for key in shared:
            assert getattr(config, key) == getattr(configs["PPO"], key), (name, key)
        if config.online is not None:
            loop = config.online
            assert loop.rounds * loop.prompts * loop.samples == 4096
        for stage in (config.ppo, config.reinforce, config.online_dpo):
            if stage is not None:
                assert stage.total_episodes == 4096
                assert stage.sampling.temperature == 0.7


def test_a_study_goes_on(studied):
    assert studied("toy:online", "--seeds", "2", "--jobs", "1", "--out", "study").exit_code == 0
    again = studied("toy:online", "--jobs", "1", "--out", "study")
    assert again.output.count("complete, skipped") == 2


def test_every_arm_is_a_policy_of_its_cell():
    for study in STUDIES.values():
        labels = {arm.label for arm in study.arms}
        assert {label for pair in study.contrasts for label in pair} <= labels
        for arm in study.arms:
            assert arm.policy in study.cells[arm.cell]().stage_names()


@pytest.mark.parametrize("option", ["--seeds", "--jobs"])
def test_what_only_studies_take(studied, option, tmp_path):
    found = studied("toy:tiny", option, "2", "--out", "run")
    assert found.exit_code == 2
    assert option in found.output
    assert not (tmp_path / "run").exists()
