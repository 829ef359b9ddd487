"""The policies along the way: which are kept, and what the stage `curve` says of them."""

import math
import shutil

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from nplus.config import CurveConfig, OnlineConfig, ReinforceConfig
from nplus.runs import RunRoot, StageDir
from nplus.stages import on_policy
from nplus.stages.curve import spent_by
from nplus.stages.scorers import RewardScorer

GROUPS = {
    "total_episodes": 12,
    "batch_size": 4,
    "num_generations": 2,
    "micro_batch_size": 2,
    "rollout_micro_batch_size": 4,
    "keep_policy_steps": 2,
    "save_steps": 1,
    "optim": {"learning_rate": 1e-2},
    "sampling": {"response_length": 48},
}
LOOP = {
    "rounds": 2,
    "prompts": 4,
    "samples": 2,
    "draw": ("current@1.0",),
    "response_length": 48,
    "valid_prompts": 3,
    "train": {"batch": {"batch_size": 4, "micro_batch_size": 2}},
}


@pytest.fixture(scope="session")
def way_config(road_config):
    """A road with RLOO, whose policy is kept after every second of three updates, and two rounds of
    the loop."""

    def build(**curve):
        settings = {"best_of": (1, 2, 4), "max_rows": 3} | curve
        return road_config().model_copy(
            update={
                "ppo": None,
                "reinforce": ReinforceConfig.model_validate(GROUPS),
                "online": OnlineConfig.model_validate(LOOP),
                "curve": CurveConfig.model_validate(settings),
            }
        )

    return build


@pytest.fixture(scope="session")
def walked(way_config, drive, finished, tmp_path_factory):
    """A finished run, which shares its first stages with `finished`."""
    out = tmp_path_factory.mktemp("curve") / "run"
    shutil.copytree(finished.path, out)
    return drive(way_config(), out)


def weights(path):
    return load_file(path / "model.safetensors")


def same(one, other):
    return all(bool((one[name] == other[name]).all()) for name in one)


def test_policies_are_kept_as_they_were_at_that_update(
    walked, way_config, drive, tmp_path, monkeypatch
):
    where = walked.stages()["reinforce"]
    assert list(where.policies()) == [2]
    seen = {}
    update = on_policy.Trainer.update

    def watched(self, step):
        found = update(self, step)
        seen[step + 1] = {name: p.detach().clone() for name, p in self.policy.named_parameters()}
        return found

    monkeypatch.setattr(on_policy.Trainer, "update", watched)
    root = RunRoot(shutil.copytree(walked.path, tmp_path / "run"))
    shutil.rmtree(root.stages()["reinforce"].path)
    drive(way_config(), root.path, until="reinforce")
    kept = weights(where.policies()[2])
    assert same(kept, seen[2])
    assert not same(kept, seen[3])
    assert same(weights(where.model), seen[3])


def test_a_stopped_run_keeps_the_same_policies(walked, way_config, drive, tmp_path, monkeypatch):
    root = RunRoot(shutil.copytree(walked.path, tmp_path / "run"))
    where = root.stages()["reinforce"]
    shutil.rmtree(where.path)
    update = on_policy.Trainer.update

    def dies(self, step):
        if step == 2:
            raise KeyboardInterrupt
        return update(self, step)

    monkeypatch.setattr(on_policy.Trainer, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        drive(way_config(), root.path, until="reinforce")
    monkeypatch.setattr(on_policy.Trainer, "update", update)
    drive(way_config(), root.path, until="reinforce")
    theirs = walked.stages()["reinforce"]
    assert same(weights(where.policies()[2]), weights(theirs.policies()[2]))
    named = {one["path"]: one["sha256"] for one in theirs.manifest().outputs}
    assert named == {one["path"]: one["sha256"] for one in where.manifest().outputs} | {
        name: sha for name, sha in named.items() if not name.startswith(("model/", "policies/"))
    }


def test_points_are_the_policies_with_the_rollouts_they_took(walked):
    results = walked.stages()["curve"].manifest().results
    points = [(row["policy"], row["step"], row["rollouts"]) for row in results["points"]]
    assert points == [
        ("sft", 0, 0),
        ("reinforce", 2, 8),
        ("reinforce", 3, 12),
        ("online", 1, 8),  # four prompts of two samples
        ("online", 2, 16),
    ]
    for row in results["points"]:
        assert row["against_reference"]["n"] == 3
        assert row["against_reference"]["rate"] in [n / 6 for n in range(7)]
    first, *others = results["points"]
    assert first["kl"]["value"] == 0
    assert all(row["kl"]["value"] != 0 for row in others)


def test_further_draws_and_rivals_are_rollouts_too(tmp_path):
    def spent(**changed):
        cfg = ReinforceConfig.model_validate(GROUPS | changed)
        return spent_by(cfg, StageDir(tmp_path))

    assert spent(algorithm="rloo") == [4, 4, 4]
    assert spent(algorithm="remax", num_generations=1) == [8, 8, 8]  # a greedy one to a prompt
    assert spent(algorithm="nash_md", num_generations=1) == [8, 8, 8]
    for step, drawn in enumerate((2.0, 5.0, 3.0)):
        StageDir(tmp_path).journal(step + 1, {"groups/drawn": drawn})
    assert spent(algorithm="dapo", dynamic_sampling_max=5) == [4, 10, 6]


def test_best_of_one_is_sft_itself(walked):
    results = walked.stages()["curve"].manifest().results
    one, *_ = results["best_of"]
    for name in ("score", "proxy", "tokens", "eos_rate"):
        assert one[name] == results["points"][0][name]


def test_best_of_n_is_the_reward_models_favourite(walked):
    rows = walked.stages()["curve"].manifest().results["best_of"]
    assert [row["n"] for row in rows] == [1, 2, 4]
    proxies = [row["proxy"] for row in rows]
    assert proxies == sorted(proxies)
    assert proxies[0] < proxies[-1]
    assert [row["kl"]["value"] for row in rows] == pytest.approx(
        [0.0, math.log(2) - 1 / 2, math.log(4) - 3 / 4]
    )


def test_the_favourite_is_the_scorers(walked, way_config, drive, tmp_path, monkeypatch):
    """With a scorer that likes long texts, best-of-n takes the longest."""

    def by_length(self, samples):
        return [float(len(sample.response)) for sample in samples]

    monkeypatch.setattr(RewardScorer, "score", by_length)
    root = RunRoot(shutil.copytree(walked.path, tmp_path / "run"))
    shutil.rmtree(root.stages()["curve"].path)
    drive(way_config(), root.path, until="curve")
    rows = root.stages()["curve"].manifest().results["best_of"]
    assert rows[0]["proxy"] <= rows[1]["proxy"] <= rows[-1]["proxy"]
    assert rows[0]["proxy"] < rows[-1]["proxy"]


def test_another_curve_trains_nothing_again(walked, way_config, drive, tmp_path):
    root = RunRoot(shutil.copytree(walked.path, tmp_path / "run"))
    before = {name: where.path.name for name, where in root.stages().items()}
    drive(way_config(best_of=()), root.path)
    after = {name: where.path.name for name, where in root.stages().items()}
    assert {name for name in before if before[name] != after[name]} == {"curve"}
    assert root.stages()["curve"].manifest().results["best_of"] == []


@pytest.mark.parametrize("best_of", [(4, 2), (2, 2), (0,)])
def test_numbers_have_to_rise(best_of):
    with pytest.raises(ValidationError):
        CurveConfig(best_of=best_of)
