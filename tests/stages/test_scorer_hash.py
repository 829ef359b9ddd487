"""What the ledger calls a scorer: another score, another hash."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nplus.models.scalar import ScalarModel
from nplus.records import InputError
from nplus.runs import Manifest, StageDir
from nplus.stages.context import Context
from nplus.stages.online import score
from nplus.stages.online.common import scorer_hash, weights_hash

MODULE = "def length(query, response, id):\n    return len(response)\n"
TERM = {"function": "hash_rewards:length", "weight": 0.5}


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "hash_rewards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stage(tmp_path):
    """`stage(name, seed, shift)`: a finished reward stage whose final norm has no bias."""

    def build(name, seed=0, shift=0.0):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
        causal = LlamaForCausalLM(LlamaConfig(**sizes, **heads, vocab_size=31, pad_token_id=1))
        model = ScalarModel.from_causal(causal, pad_id=1, seed=seed).eval()
        model.set_shift(shift)
        where = StageDir(tmp_path / name)
        where.path.mkdir()
        model.save(where.model)
        manifest = Manifest(name, "key", "complete", {}, 0, outputs=where.artefacts())
        manifest.write(where.manifest_path)
        return where

    return build


def test_the_same_scorer_has_the_same_hash_wherever_it_lies(stage, road_config):
    config = road_config(scoring={"terms": (TERM,)})
    assert scorer_hash(stage("one"), config) == scorer_hash(stage("two"), config)
    assert scorer_hash(stage("three", seed=1), config) != scorer_hash(stage("four"), config)


def test_another_shift_is_another_scorer_of_the_same_weights(stage, road_config):
    one, two = stage("one", shift=0.5), stage("two", shift=1.5)
    assert weights_hash(one) == weights_hash(two)
    assert scorer_hash(one, road_config()) != scorer_hash(two, road_config())


def test_what_scores_beside_the_model_is_in_the_hash(stage, road_config, tmp_path):
    where = stage("one")

    def found(**changed):
        return scorer_hash(where, road_config(scoring={"terms": (TERM | changed,)}))

    hashes = [
        scorer_hash(where, road_config()),
        found(),
        found(weight=0.25),
        found(at_least=3, penalty=1.0),
        found(at_least=3, penalty=2.0),
    ]
    (tmp_path / "hash_rewards.py").write_text(MODULE.replace("len(response)", "-len(response)"))
    assert len({*hashes, found()}) == len(hashes) + 1
    (tmp_path / "hash_rewards.py").write_text(MODULE)
    assert found() == hashes[1]


def test_how_the_model_is_read_is_in_the_hash(stage, road_config):
    where = stage("one")
    reward = {**road_config().reward.model_dump(), "read_at": "before_eos"}
    assert scorer_hash(where, road_config()) != scorer_hash(where, road_config(reward=reward))


def test_a_stage_without_a_config_is_told(stage, road_config):
    where = stage("one")
    (where.model / "config.json").unlink()
    manifest = Manifest("one", "key", "complete", {}, 0, outputs=where.artefacts())
    manifest.write(where.manifest_path)
    with pytest.raises(InputError, match=r"names no config\.json in model/"):
        scorer_hash(where, road_config())


def test_two_members_of_the_same_weights_are_no_ensemble(stage, road_config):
    """Even where their shifts differ."""
    reward = {**road_config().reward.model_dump(), "members": 2}
    loop = {"response_length": 48, "scorer": "ensemble"}
    config = road_config(online=loop, reward=reward)
    dirs = {"reward": stage("reward", shift=0.5), "reward_2": stage("reward_2", shift=1.5)}
    with pytest.raises(InputError, match="reward, reward_2 have the same weights"):
        score.scorers_of(Context(config, torch.device("cpu"), None, dirs))
