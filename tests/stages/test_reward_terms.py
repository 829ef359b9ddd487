"""Another reward model as one of several rewards, beside the run's own."""

import math
import shutil

import pytest

from nplus.config import TermConfig
from nplus.config.scoring import ScoringConfig
from nplus.data.tokens import train_bpe
from nplus.evaluation.verifiable import ScoringError
from nplus.records import InputError, Sample
from nplus.runs.ledger import read_ledger
from nplus.stages.grid import cell_key
from nplus.stages.road import stage_config
from nplus.stages.scorers import RewardScorer
from nplus.stages.scoring import LearnedReward, terms_of


@pytest.fixture
def other(finished, tmp_path):
    """A reward model of another run, with the same tokenizer: here the run's own, elsewhere."""
    return shutil.copytree(finished.stages()["reward"].model, tmp_path / "other")


def beside(other, **term):
    return {"reward_weight": 0.25, "terms": ({"reward_model": str(other), "weight": 0.75, **term},)}


def with_scoring(config, scoring):
    return config.model_copy(update={"scoring": ScoringConfig.model_validate(scoring)})


def test_its_weighted_value_joins_the_score(
    finished, road_config, loop_config, looped, again, drive, other, tmp_path
):
    """A quarter of a model's score and three quarters of its copy's are its score, so that PPO and
    a loop of rounds come to what they come to with it alone."""
    shutil.copytree(finished.path, tmp_path / "run")
    config = with_scoring(road_config(), beside(other))
    root = drive(config, tmp_path / "run", until="ppo")
    rows = root.stages()["ppo"].read_samples()[1]
    plain = finished.stages()["ppo"].read_samples()[1]
    assert [row["response"] for row in rows] == [row["response"] for row in plain]
    assert [row["score"] for row in rows] == pytest.approx(
        [row["score"] for row in plain], abs=1e-4
    )
    assert len({row["score"] for row in rows}) > 1

    root = again(with_scoring(loop_config(), beside(other)))
    for one, two in zip(root.ledgers(), looped.ledgers(), strict=True):
        for row, alone in zip(read_ledger(one), read_ledger(two), strict=True):
            assert row.responses == alone.responses
            assert row.scores == pytest.approx(alone.scores, abs=1e-4)
            assert row.scorer_hashes != alone.scorer_hashes


def test_a_constraint_on_it_costs_its_penalty(finished, road_config, drive, other, tmp_path):
    shutil.copytree(finished.path, tmp_path / "run")
    term = {"weight": 0.0, "at_least": 1e6, "penalty": 5.0}
    scoring = beside(other, **term) | {"reward_weight": 1.0}
    root = drive(with_scoring(road_config(), scoring), tmp_path / "run", until="ppo")
    rows, plain = (each.stages()["ppo"].read_samples()[1] for each in (root, finished))
    assert rows[0]["score"] == pytest.approx(plain[0]["score"] - 5.0, abs=1e-4)


def test_another_model_is_another_reward(road_config, other):
    config = with_scoring(road_config(), beside(other))
    keys = [stage_config("ppo", config), cell_key(config)]
    assert [stage_config("ppo", config), cell_key(config)] == keys
    weights = other / "model.safetensors"
    written = bytearray(weights.read_bytes())
    written[-1] ^= 1
    weights.write_bytes(written)
    changed = [stage_config("ppo", config), cell_key(config)]
    assert changed[0] != keys[0]
    assert changed[1] != keys[1]


def test_an_edited_function_is_another_cell(road_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = tmp_path / "edited_rewards.py"
    module.write_text("def f(query, response, id):\n    return 1\n")
    config = with_scoring(road_config(), {"terms": ({"function": "edited_rewards:f"},)})
    key = cell_key(config)
    module.write_text("def f(query, response, id):\n    return 2\n")
    assert cell_key(config) != key


def test_a_model_with_another_tokenizer_is_refused(finished, road_config, drive, other, tmp_path):
    shutil.copytree(finished.path, tmp_path / "run")
    train_bpe(["what others wrote"], 300).save(other)
    config = with_scoring(road_config(), beside(other))
    with pytest.raises(InputError, match="another tokenizer than the run"):
        drive(config, tmp_path / "run", until="ppo")


def test_a_model_without_a_head_is_refused_before_any_work(finished, road_config, drive, tmp_path):
    policy = finished.stages()["sft"].model
    config = with_scoring(road_config(), beside(policy))
    with pytest.raises(InputError, match=r"scoring\.terms: reward_model: .*no head of one number"):
        drive(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("failed", [None, -2.0])
def test_a_value_that_is_no_number(failed, monkeypatch):
    monkeypatch.setattr(RewardScorer, "score", lambda self, samples: [1.0, math.nan])
    (term,) = terms_of(
        ScoringConfig(terms=(TermConfig(reward_model="far"),), failed=failed),
        lambda folder: RewardScorer(None, None),
    )
    asked = [Sample("p", "q", "a"), Sample("q", "q", "b")]
    assert isinstance(term.scorer, LearnedReward)
    if failed is None:
        with pytest.raises(ScoringError, match=r"far: gave nan, .* prompt 'q'"):
            term.answers(asked)
    else:
        assert term.answers(asked) == ([1.0, -2.0], [False, True])
