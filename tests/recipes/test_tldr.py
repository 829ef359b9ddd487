"""The paper's recipes against its printed hyper-parameters (section 3 of the details)."""

import pytest

from nplus.config.load import load_config
from nplus.config.profiles import departures
from nplus.recipes import RECIPES, recipe, summary
from nplus.records import InputError

SIZES = ("1b", "2.8b", "6.9b")
STAGES = ("sft", "reward", "ppo", "dpo")
NAMES = [f"tldr:{stage}-{size}" for stage in STAGES for size in SIZES]


def test_there_are_twelve_with_a_line_each():
    assert [name for name in RECIPES if name.startswith("tldr:")] == NAMES
    lines = [summary(name) for name in NAMES]
    assert len(set(lines)) == 12
    assert all(name.rpartition("-")[2].upper() in summary(name) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_all_runs_share(name):
    cfg = recipe(name)
    size = name.rpartition("-")[2]
    assert cfg.model.model_name_or_path == f"EleutherAI/pythia-{size}-deduped"
    assert cfg.model.size is None
    assert cfg.pretrain is None
    assert cfg.seed == 44413
    supervised = [stage for stage in (cfg.sft, cfg.reward, cfg.dpo) if stage is not None]
    for optim in [stage.optim for stage in supervised] + [cfg.ppo.optim]:
        assert optim.name == "adamw"
        assert optim.learning_rate == 3e-6
        assert (optim.adam_beta1, optim.adam_beta2) == (0.9, 0.999)
        assert optim.adam_epsilon == 1e-5
        assert optim.weight_decay == 0.01
        assert optim.warmup_steps == 0
        assert optim.max_grad_norm is None
    assert {stage.optim.lr_scheduler_type for stage in supervised} == {"cosine"}
    assert {stage.epochs for stage in supervised} == {1}
    assert cfg.ppo.optim.lr_scheduler_type == "linear"
    assert (cfg.compute.autocast, cfg.ppo.autocast) == ("bfloat16", "bfloat16")
    assert cfg.model.dropout == 0.0
    assert (cfg.sft.batch.batch_size, cfg.sft.batch.micro_batch_size) == (128, 1)
    assert cfg.sft.loss_on == "all"
    assert (cfg.reward.batch.batch_size, cfg.reward.batch.micro_batch_size) == (64, 1)
    assert cfg.reward.layout == "separate"
    assert (cfg.reward.normalise, cfg.reward.normalise_rows) == ("mean", 116_722)
    assert (cfg.label.kind, cfg.label.pairs, cfg.label.valid_pairs) == ("data", 92_832, 83_802)
    assert cfg.evaluate.temperatures == (0.01,)
    data, pairs = cfg.data, cfg.data.comparisons
    assert (data.max_query_tokens, data.max_response_tokens, data.max_length) == (512, 53, 562)
    assert (pairs.max_response_tokens, pairs.max_length) == (169, 638)
    news = (pairs.max_news_query_tokens, pairs.max_news_response_tokens, pairs.max_news_length)
    assert news == (1919, 155, 2021)
    assert data.data == "vwxyzjn/summarize_from_feedback_tldr_3_filtered"
    assert pairs.data == "vwxyzjn/summarize_from_feedback_oai_preprocessing_1706381144"


@pytest.mark.parametrize(
    ("size", "micro", "forward"), [("1b", 16, 64), ("2.8b", 4, 32), ("6.9b", 1, 4)]
)
def test_ppo(size, micro, forward):
    ppo = recipe(f"tldr:ppo-{size}").ppo
    assert (ppo.total_episodes, ppo.batch_size) == (1_000_000, 512)
    assert (ppo.num_ppo_epochs, ppo.num_mini_batches) == (4, 1)
    assert (ppo.micro_batch_size, ppo.rollout_micro_batch_size) == (micro, forward)
    assert (ppo.kl_coef, ppo.kl_estimator, ppo.kl_target) == (0.05, "k1", None)
    assert (ppo.gamma, ppo.lam) == (1.0, 0.95)
    assert (ppo.cliprange, ppo.cliprange_value, ppo.vf_coef) == (0.2, 0.2, 0.1)
    assert (ppo.sampling.temperature, ppo.sampling.response_length) == (0.7, 53)
    assert ppo.sampling.stop == "length"
    assert (ppo.missing_eos_penalty, ppo.missing_eos) == (1.0, "replace")
    assert (ppo.score_step, ppo.value_mask) == ("after_eos", "extra_slot")
    assert (ppo.whiten_rewards, ppo.whiten_advantages) == (False, True)
    assert (ppo.value, ppo.value_init) == ("separate", "reward")
    assert ppo.reshuffle
    assert ppo.profile == "paper"
    assert departures(ppo) == {}


@pytest.mark.parametrize("size", SIZES)
def test_dpo(size):
    cfg = recipe(f"tldr:dpo-{size}")
    assert cfg.dpo is not None
    assert (cfg.dpo.beta, cfg.dpo.loss_type, cfg.dpo.label_smoothing) == (0.05, "sigmoid", 0.0)
    assert (cfg.dpo.batch.batch_size, cfg.dpo.batch.micro_batch_size) == (64, 1)
    assert cfg.evaluate.response_length == 128
    assert recipe(f"tldr:ppo-{size}").evaluate.response_length == 53
    assert recipe(f"tldr:ppo-{size}").dpo is None


@pytest.mark.parametrize(
    ("stage", "stages"),
    [
        ("sft", ("data", "sft")),
        ("reward", ("data", "sft", "label", "reward")),
        ("ppo", ("data", "sft", "label", "reward", "ppo", "evaluate")),
        ("dpo", ("data", "sft", "label", "dpo")),
    ],
)
def test_a_recipe_ends_at_its_stage(stage, stages):
    assert recipe(f"tldr:{stage}-1b").stage_names() == stages


def test_recipes_of_one_size_share_every_setting_but_their_own():
    whole = recipe("tldr:ppo-1b").model_dump()
    for stage in ("sft", "reward"):
        other = recipe(f"tldr:{stage}-1b").model_dump()
        changed = {key for key in whole if whole[key] != other[key]}
        assert changed == {"recipe", "until"}


def test_a_run_may_end_elsewhere():
    cfg = load_config(recipe("tldr:sft-1b"), sets=["until=reward"])
    assert cfg.stage_names()[-1] == "reward"
    assert load_config(cfg, sets=["until=null"]).stage_names()[-1] == "evaluate"
    with pytest.raises(InputError, match=r"until=pretrain: not a stage.*data, sft, label"):
        load_config(cfg, sets=["until=pretrain"])


@pytest.mark.parametrize("sets", [["label.kind=contrast"], ["data.comparisons.data=null"]])
def test_comparisons_and_the_kind_of_labels_go_together(sets):
    with pytest.raises(InputError, match=r"name the comparisons in data\.comparisons\.data and"):
        load_config(recipe("tldr:ppo-1b"), sets=sets)


def test_a_run_on_real_data_has_no_gold_judge():
    with pytest.raises(InputError, match=r"evaluate\.judge=gold: only the embedded world"):
        load_config(recipe("tldr:ppo-1b"), sets=["evaluate.judge=gold"])
