"""The stages without a critic in a whole run: what they leave, and how they go on after a stop."""

import math
import shutil

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from nplus.config import OnlineDPOConfig, ReinforceConfig
from nplus.glossary import METRICS
from nplus.records import Judgement, StopError, read_records
from nplus.report.collect import collect
from nplus.report.page import render
from nplus.report.tables import verdict
from nplus.runs import RunRoot
from nplus.stages import on_policy
from nplus.stages.outcomes import read_outcome
from nplus.stages.ppo import KLStopError
from nplus.training.update import NonFiniteLossError

BUDGET = {
    "total_episodes": 12,
    "batch_size": 4,
    "num_generations": 2,
    "micro_batch_size": 2,
    "rollout_micro_batch_size": 4,
    "save_steps": 1,
    "sampling": {"response_length": 48},
    "missing_eos_penalty": None,
}
STAGES = ("reinforce", "online_dpo")
TIMES = ("seconds", "tokens_per_second")


@pytest.fixture(scope="session")
def config_without_ppo(road_config):
    """`config_without_ppo(reinforce={...}, online_dpo={...})`: a road with both stages instead."""

    def build(**changed):
        settings = {
            "reinforce": {"algorithm": "grpo", "kl_target": 1.0} | changed.get("reinforce", {}),
            "online_dpo": {"layout": "shared"} | changed.get("online_dpo", {}),
        }
        return road_config().model_copy(
            update={
                "ppo": None,
                "reinforce": ReinforceConfig.model_validate(BUDGET | settings["reinforce"]),
                "online_dpo": OnlineDPOConfig.model_validate(BUDGET | settings["online_dpo"]),
            }
        )

    return build


@pytest.fixture(scope="session")
def whole(config_without_ppo, drive, finished, tmp_path_factory):
    """A finished run, which shares its first stages with `finished`."""
    out = tmp_path_factory.mktemp("groups") / "run"
    shutil.copytree(finished.path, out)
    return drive(config_without_ppo(), out)


def journal(where):
    return [
        (row["step"], {k: v for k, v in row["metrics"].items() if k not in TIMES})
        for row in where.journal_rows()
    ]


def weights(where):
    return load_file(where.model / "model.safetensors")


def test_ppo_is_not_among_the_stages(config_without_ppo):
    names = config_without_ppo().stage_names()
    assert names[-3:] == ("reinforce", "online_dpo", "evaluate")
    assert "ppo" not in names


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_complete_and_its_metrics_are_in_the_glossary(stage, whole):
    where = whole.stages()[stage]
    assert where.manifest().status == "complete"
    known = {entry.name for entry in METRICS if stage in entry.stages}
    rows = list(where.journal_rows())
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert set(row["metrics"]) <= known
        assert all(math.isfinite(x) for x in row["metrics"].values())
    first = rows[0]["metrics"]
    assert abs(first["objective/kl"]) < 1e-4  # the policy is the reference still
    seen = set().union(*(row["metrics"] for row in rows))
    assert {"objective/gold", "groups/equal", "lr", "val/eos_rate"} <= seen
    if stage == "reinforce":
        assert abs(first["first_minibatch/ratio"] - 1) < 1e-5
        assert where.manifest().results["algorithm"] == "grpo"
    else:
        assert first["loss/train"] == pytest.approx(math.log(2), abs=1e-6)
    samples = where.read_samples()
    assert set(samples) == {1, 3}
    assert {row["tokens"] > 0 for rows in samples.values() for row in rows} == {True}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_stage_goes_on_to_the_bit(
    stage, whole, config_without_ppo, drive, tmp_path, monkeypatch
):
    root = RunRoot(shutil.copytree(whole.path, tmp_path / "run"))
    shutil.rmtree(root.stages()[stage].path)
    original, left = on_policy.Trainer.update, [2]

    def dies(self, step):
        if self.cfg.stage == stage:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return original(self, step)

    monkeypatch.setattr(on_policy.Trainer, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        drive(config_without_ppo(), root.path)
    monkeypatch.setattr(on_policy.Trainer, "update", original)
    again = drive(config_without_ppo(), root.path)
    ours, theirs = again.stages()[stage], whole.stages()[stage]
    assert journal(ours) == journal(theirs)
    for name, tensor in weights(theirs).items():
        assert torch.equal(weights(ours)[name], tensor), name


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_draws_ahead_tells_how_old_and_goes_on_to_the_bit(
    stage, whole, config_without_ppo, drive, tmp_path, monkeypatch
):
    ahead = {"max_staleness": 1, "sample_steps": 1, "algorithm": "rloo"}
    if stage == "online_dpo":
        ahead.pop("algorithm")
    config = config_without_ppo(**{stage: ahead})
    config = config.model_copy(update={other: None for other in STAGES if other != stage})

    def made(name):
        return shutil.copytree(whole.path, tmp_path / name)

    plain = drive(config, made("plain"), until=stage).stages()[stage]
    rows = [row["metrics"] for row in plain.journal_rows()]
    assert [row["val/staleness"] for row in rows] == [0, 1, 1]
    known = {entry.name for entry in METRICS if stage in entry.stages}
    assert set().union(*rows) <= known
    samples = plain.read_samples()
    told = [
        (step, row["policy_version"], row["staleness"]) for step in samples for row in samples[step]
    ]
    assert set(told) == {(1, 0, 0), (2, 0, 1), (3, 1, 1)}
    assert plain.manifest().results["staleness"] == {"mean": pytest.approx(2 / 3), "max": 1.0}

    original = on_policy.Trainer.update

    def dies(self, step):
        if step == 2:
            raise KeyboardInterrupt
        return original(self, step)

    out = made("stopped")
    monkeypatch.setattr(on_policy.Trainer, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        drive(config, out, until=stage)
    monkeypatch.setattr(on_policy.Trainer, "update", original)
    again = drive(config, out, until=stage).stages()[stage]
    assert journal(again) == journal(plain)
    assert again.read_samples() == samples
    for name, tensor in weights(plain).items():
        assert torch.equal(weights(again)[name], tensor), name


def test_the_verdict_takes_the_policies_there_are(whole):
    results = whole.stages()["evaluate"].manifest().results
    assert results["policies"] == ["sft", "reinforce", "online_dpo"]
    tuned = {row["policy"] for row in results["win_rates"]}
    assert {"reinforce", "online_dpo"} <= tuned
    rows = read_records(whole.stages()["evaluate"].judgements, Judgement)
    assert {"grpo@0.7", "online_dpo@0.7"} <= {row.policy for row in rows}
    for policy in results["policies"]:  # what studies and ablations compare
        found = read_outcome(whole.stages()["evaluate"], policy)
        assert found is not None, policy
        assert len(found.posts) == 4


def test_page_and_terminal_show_them(whole):
    view = collect(whole)
    assert (view.online, view.algorithm) == ("reinforce", "grpo")
    page = render(view)
    for text in ("REINFORCE stands here for grpo", "online DPO", "Spread within groups"):
        assert text in page
    console = Console(record=True, width=120, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(verdict(whole))
    assert "REINFORCE" in console.export_text()


def spoil(*_, **__):
    raise NonFiniteLossError("loss is nan")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_all_of_whose_steps_are_left_out_leaves_no_policy(
    stage, whole, config_without_ppo, drive, tmp_path, monkeypatch
):
    root = RunRoot(shutil.copytree(whole.path, tmp_path / "run"))
    changed = {"total_episodes": 4, "optim": {"max_skips": 9}}
    monkeypatch.setattr(on_policy, "update", spoil)
    with pytest.raises(StopError, match=r"every step of the stage.*Lower the learning rate"):
        drive(config_without_ppo(**{stage: changed}), root.path)
    assert not root.stages()[stage].model.exists()


def test_too_much_kl_stops_the_stage_if_asked(config_without_ppo, drive, whole, tmp_path):
    out = shutil.copytree(whole.path, tmp_path / "run")
    cfg = config_without_ppo(reinforce={"target_kl_stop": 1e-9, "optim": {"learning_rate": 0.05}})
    with pytest.raises(KLStopError, match=r"above reinforce\.target_kl_stop=1e-09"):
        drive(cfg, out)
