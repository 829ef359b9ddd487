"""Recipe, file and --set: merged, validated again, with errors that name key and mend."""

from pathlib import Path

import pytest
import yaml

from nplus.config import DPOConfig, OnlineConfig, ReinforceConfig, RunConfig
from nplus.config.load import config_hash, dump_yaml, known_keys, load_config
from nplus.recipes import RECIPES, recipe
from nplus.records import InputError


def message(*sets: str, base: str = "toy", file: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_config(recipe(base), config_file=file, sets=sets)
    return str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_a_dumped_recipe_reads_back_to_itself(name, tmp_path):
    cfg = recipe(name)
    file = tmp_path / "dumped.yaml"
    file.write_text(dump_yaml(cfg), encoding="utf-8")
    again = load_config(cfg, config_file=file)
    assert again == cfg
    assert config_hash(again) == config_hash(cfg)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid_and_carries_its_own_name(name):
    cfg = recipe(name)
    assert cfg.recipe == name
    assert RunConfig.model_validate(cfg.model_dump()) == cfg


def test_nothing_changed_is_the_recipe():
    assert load_config(recipe("toy")) == recipe("toy")


def test_sets_win_over_the_file_which_wins_over_the_recipe(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("ppo:\n  kl_coef: 0.3\n  gamma: 0.9\nseed: 7\n", encoding="utf-8")
    cfg = load_config(recipe("toy"), config_file=file, sets=["ppo.kl_coef=0.4"])
    assert (cfg.ppo.kl_coef, cfg.ppo.gamma, cfg.seed) == (0.4, 0.9, 7)
    assert cfg.ppo.optim == recipe("toy").ppo.optim


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("2E+1", 20.0), (".5e-3", 5e-4), ("0.25", 0.25)]
)
def test_numbers_with_an_exponent_are_numbers(text, value):
    cfg = load_config(recipe("toy"), sets=[f"ppo.optim.learning_rate={text}"])
    assert cfg.ppo.optim.learning_rate == value


def test_null_tuples_and_mappings():
    cfg = load_config(
        recipe("toy:dpo"),
        sets=["dpo=null", "evaluate.temperatures=[0.1, 1]", "sft.optim={weight_decay: 0}"],
    )
    assert cfg.dpo is None
    assert cfg.evaluate.temperatures == (0.1, 1.0)
    assert cfg.sft.optim.weight_decay == 0
    assert cfg.sft.optim.learning_rate == recipe("toy").sft.optim.learning_rate


def test_a_stage_that_is_left_out_comes_back_with_its_defaults():
    again = load_config(recipe("toy"), sets=["dpo.epochs=2"])
    assert recipe("toy").dpo is None
    assert again.dpo == DPOConfig(epochs=2)


def test_a_part_of_a_stage_that_is_left_out_leaves_its_other_defaults():
    """The loop's training begins with the paper's settings, not with those of `dpo`."""
    loop = load_config(recipe("toy"), sets=["online.train.loss_type=ipo"]).online
    paper = OnlineConfig().train
    assert loop.train == paper.model_copy(update={"loss_type": "ipo"})
    assert (loop.train.epochs, loop.train.beta, loop.train.optim.learning_rate) == (2, 0.1, 5e-7)
    assert recipe("toy:online").ppo is None
    rloo = load_config(recipe("toy:online"), sets=["reinforce.optim.learning_rate=1e-5"]).reinforce
    linear = ReinforceConfig().optim
    assert rloo.optim == linear.model_copy(update={"learning_rate": 1e-5})
    assert linear.lr_scheduler_type == "linear"
    alike = load_config(recipe("toy"), sets=["reinforce.optim.learning_rate=1e-5"]).reinforce
    assert alike.batch_size == recipe("toy").ppo.batch_size


def test_data_is_short_for_a_file():
    cfg = load_config(recipe("real"), sets=["data=mine.jsonl", "data.max_rows=5"])
    assert (cfg.data.source, cfg.data.data, cfg.data.max_rows) == ("files", "mine.jsonl", 5)


def test_the_world_needs_its_labellers_and_the_message_says_what_to_set():
    text = message("data=mine.jsonl")
    assert "label.kind=contrast and evaluate.judge=reward" in text
    load_config(
        recipe("toy"), sets=["data=m.jsonl", "label.kind=contrast", "evaluate.judge=reward"]
    )


@pytest.mark.parametrize(
    ("given", "unknown", "nearest"),
    [
        ("ppo.kl_coeff=1", "ppo.kl_coeff", "ppo.kl_coef"),
        ("kl_coef=1", "kl_coef", "ppo.kl_coef"),
        ("ppo.cliprang_value=1", "ppo.cliprang_value", "ppo.cliprange_value"),
        ("rewards.epochs=1", "rewards", "reward"),
        ("sft.learning_rate=1", "sft.learning_rate", "sft.optim.learning_rate"),
    ],
)
def test_an_unknown_key_is_named_in_full_with_the_nearest(given, unknown, nearest):
    text = message(given)
    assert f"unknown key {unknown};" in text
    assert f"did you mean {nearest}" in text


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("ppo.kl_estimator=k4", ("ppo.kl_estimator='k4'", "'k1', 'k2' or 'k3'")),
        ("ppo.gamma=2", ("ppo.gamma=2", "less than or equal to 1")),
        ("seed=abc", ("seed='abc'", "integer")),
        ("evaluate.temperatures=[0.1, x]", ("evaluate.temperatures[1]='x'", "number")),
        ("ppo.batch_size=100", ("ppo:", "50 rows", "micro_batch_size=32", "choose one")),
        ("ppo.total_episodes=3", ("total_episodes=3", "raise total_episodes")),
        ("ppo=3", ("ppo=3", "set its keys", "ppo.total_episodes")),
        ("seed.x=1", ("seed.x", "one value")),
        ("sft=null", ("sft=None",)),
        ("ppo.kl_coef", ("needs KEY=VALUE",)),
        ("=3", ("needs KEY=VALUE",)),
        ("ppo..gamma=1", ("needs KEY=VALUE",)),
        ("evaluate.temperatures=[0.1", ("not valid YAML",)),
        ("recipe=real", ("another recipe",)),
    ],
)
def test_a_wrong_value_names_key_value_and_mend(given, parts):
    text = message(given)
    assert all(part in text for part in parts), text
    assert "pydantic" not in text
    assert "http" not in text


def test_all_problems_come_at_once():
    text = message("ppo.kl_coeff=1", "ppo.gamma=2", "sft.epochs=0")
    assert text.startswith("3 problems")
    assert all(part in text for part in ("ppo.kl_coeff", "ppo.gamma=2", "sft.epochs=0"))


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("- a\n", ("expected keys and values",)),
        ("ppo:\n  gamma: 1\n  gamma: 0.5\n", ("line 3", "'gamma' is given twice")),
        ("ppo: [1\n", ("not valid YAML", "line 2")),
        ("ppo:\n  gama: 1\n", ("unknown key ppo.gama", "ppo.gamma")),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, parts):
    file = tmp_path / "broken.yaml"
    file.write_text(content, encoding="utf-8")
    text = message(file=file)
    assert str(file) in text
    assert all(part in text for part in parts), text


def test_a_missing_file_is_named(tmp_path):
    assert "no.yaml" in message(file=tmp_path / "no.yaml")


def test_an_empty_file_changes_nothing(tmp_path):
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing yet\n", encoding="utf-8")
    assert load_config(recipe("toy"), config_file=file) == recipe("toy")


def test_the_hash_follows_the_settings():
    one, two = recipe("toy"), load_config(recipe("toy"), sets=["ppo.gamma=0.99"])
    assert config_hash(one) == config_hash(recipe("toy"))
    assert config_hash(one) != config_hash(two)


def test_every_known_key_can_be_read_from_a_dump():
    components = ["dpo.beta=0.1", "reinforce.algorithm=rloo", "online_dpo.beta=0.1"]
    components += ["online.rounds=2", "preference.epochs=1", "curve.max_rows=9"]
    components += ["budget.mfu=0.4"]
    config = load_config(recipe("toy"), sets=components)
    dumped = yaml.safe_load(dump_yaml(config))
    for key in known_keys():
        node = dumped
        for name in key.split("."):
            node = node[name]


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        recipe("toy").seed = 2


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(InputError, match=r"did you mean 'toy'\?.*toy:tiny.*real"):
        recipe("tooy")


@pytest.mark.parametrize(
    ("base", "stage"), [("toy:grpo", "reinforce"), ("toy:online_dpo", "online_dpo")]
)
def test_shared_prompts_are_not_for_models_that_count_padding(base, stage):
    found = message("model.positions=slots", base=base)
    assert f"{stage}.layout=shared with model.positions=slots" in found
    assert f"set {stage}.layout=separate" in found
