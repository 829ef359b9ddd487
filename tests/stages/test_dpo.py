"""The DPO stage on a finished road: losses without a reference, and with one that is kept."""

import shutil

import pytest

from nplus.runs import RunRoot
from nplus.stages.context import Context

BATCH = {"batch_size": 4, "micro_batch_size": 2}


@pytest.fixture
def dpo_run(finished, road_config, drive, tmp_path):
    """`dpo_run(**dpo)`: the stage's directory, after the stages that were there already."""

    def run(**settings):
        path = tmp_path / "run"
        shutil.copytree(finished.path, path)
        root = drive(road_config(dpo={"batch": BATCH, **settings}), path, until="dpo")
        return RunRoot(root.path).stages()["dpo"]

    return run


def test_a_loss_without_a_reference_loads_none(dpo_run, monkeypatch):
    loaded = []
    policy = Context.policy
    monkeypatch.setattr(
        Context, "policy", lambda ctx, stage: loaded.append(stage) or policy(ctx, stage)
    )
    where = dpo_run(loss_type="simpo", beta=2.0)
    results = where.manifest().results
    assert loaded == ["sft"]
    assert "no reference" in results["implicit_reward"]
    assert results["validation"]["accuracy"]["n"] > 0
    assert "loss/nll" not in where.last_metrics()


def test_kept_log_probs_are_an_artefact_of_the_stage(dpo_run):
    where = dpo_run(loss_type="bco_pair", ref_logprobs="cached", rpo_alpha=0.5)
    names = [artefact["path"] for artefact in where.manifest().outputs]
    assert "ref_logprobs.safetensors" in names
    assert {"rewards/level", "loss/nll"} <= where.last_metrics().keys()
    assert "implicit_reward" not in where.manifest().results
