"""Algorithms as presets: what one sets, what beats it, what cannot be meant."""

from typing import get_args

import pytest
import yaml

from nplus.config import ReinforceConfig
from nplus.config.load import dump_yaml, load_config
from nplus.config.presets import TAKEN_FROM_PPO
from nplus.config.relatives import ALGORITHMS, AlgorithmName, algorithm_tree, departures, told
from nplus.recipes import recipe
from nplus.records import InputError


def reinforce(*sets):
    return load_config(recipe("toy"), sets=sets).reinforce


def test_every_algorithm_sets_the_same_keys_and_is_a_valid_config():
    assert set(ALGORITHMS) == set(get_args(AlgorithmName))
    assert len({frozenset(values) for values in ALGORITHMS.values()}) == 1
    assert set(ALGORITHMS["rloo"]) <= set(ReinforceConfig.model_fields)
    for name in ALGORITHMS:
        assert departures(ReinforceConfig(algorithm=name)) == {}
        assert ReinforceConfig(algorithm=name) == ReinforceConfig(**algorithm_tree(name))


def test_no_two_algorithms_mean_the_same():
    values = [tuple(values.items()) for values in ALGORITHMS.values()]
    assert len(set(values)) == len(values)


def test_the_default_algorithm_is_what_the_defaults_say():
    assert departures(ReinforceConfig()) == {}
    assert ReinforceConfig() == ReinforceConfig(algorithm="rloo")


# Figures of the papers.
@pytest.mark.parametrize(
    ("algorithm", "key", "value"),
    [
        ("rloo", "baseline", "leave_one_out"),
        ("rloo", "ratio", "sequence"),
        ("grpo", "kl_coef", 0.04),
        ("grpo", "kl_estimator", "k3"),
        ("grpo", "aggregation", "sequence"),
        ("dr_grpo", "scale", "none"),
        ("dr_grpo", "aggregation", "constant"),
        ("dapo", "cliprange", 0.2),
        ("dapo", "cliprange_high", 0.28),
        ("dapo", "aggregation", "token"),
        ("dapo", "kl_coef", 0.0),
        ("gspo", "cliprange", 3e-4),
        ("reinforce++", "num_generations", 1),
        ("reinforce++", "whitening", "token"),
        ("reinforce++_baseline", "baseline", "group_mean"),
        ("remax", "baseline", "greedy"),
        ("nash_md", "signal", "preference"),
    ],
)
def test_figures_of_the_papers(algorithm, key, value):
    assert ALGORITHMS[algorithm][key] == value


def test_a_key_switches_the_stage_on_with_the_budget_of_ppo():
    cfg = load_config(recipe("toy"), sets=["reinforce.algorithm=grpo"])
    assert "reinforce" in cfg.stage_names()
    for key in TAKEN_FROM_PPO:
        assert getattr(cfg.reinforce, key) == getattr(cfg.ppo, key), key
    assert departures(cfg.reinforce) == {}
    assert reinforce("reinforce.kl_coef=0.2").algorithm == "rloo"
    # What is set of PPO in the same breath counts, and nothing of PPO where it is switched off.
    assert reinforce("ppo.batch_size=128", "reinforce.algorithm=rloo").batch_size == 128
    assert reinforce("ppo=null", "reinforce.algorithm=rloo").optim.learning_rate == 5e-4


def test_keys_given_beside_an_algorithm_win():
    cfg = reinforce("reinforce.num_generations=2", "reinforce.algorithm=dapo")
    assert (cfg.num_generations, cfg.cliprange_high) == (2, 0.28)
    assert told(cfg) == "reinforce.algorithm=dapo, but num_generations=2 (not 8)"
    assert ReinforceConfig(algorithm="grpo", baseline="leave_one_out").scale == "group_std"


def test_a_run_with_the_stage_reads_back_to_itself(tmp_path):
    cfg = load_config(recipe("toy"), sets=["reinforce.algorithm=remax", "ppo=null"])
    file = tmp_path / "dumped.yaml"
    file.write_text(dump_yaml(cfg), encoding="utf-8")
    assert yaml.safe_load(file.read_text())["ppo"] is None
    assert load_config(recipe("toy"), config_file=file) == cfg


def test_online_dpo_begins_like_ppo_and_reads_plain_log_probs():
    cfg = load_config(recipe("toy"), sets=["online_dpo.beta=0.2"]).online_dpo
    assert (cfg.batch_size, cfg.num_generations, cfg.tempered) == (64, 4, ())
    assert cfg.pair_loss().beta == 0.2
    for text, what in (
        ("tempered=[new]", "tempered holds new"),
        ("num_generations=1", "online_dpo.num_generations=1"),
        ("loss_type=robust", "name the share of flipped labels"),
        ("importance=mask", "unknown key online_dpo.importance; did you mean reinforce.import"),
        ("max_staleness=24", "max_staleness=24 with 24 updates"),
    ):
        with pytest.raises(InputError) as caught:
            load_config(recipe("toy"), sets=[f"online_dpo.{text}"])
        assert what in str(caught.value)


def test_ppo_may_be_left_out():
    cfg = load_config(recipe("toy"), sets=["ppo=null"])
    assert "ppo" not in cfg.stage_names()
    assert cfg.reinforce is None


@pytest.mark.parametrize(
    ("sets", "what"),
    [
        (["algorithm=ppo"], "reinforce.algorithm='ppo': must be 'rloo'"),
        (["algorithm=rloo", "num_generations=1"], "num_generations=1 with baseline=leave_one_out"),
        (["dynamic_sampling_max=2"], "dynamic_sampling_max=2 with dynamic_sampling=false"),
        (
            ["dynamic_sampling=true", "dynamic_sampling_max=2", "max_staleness=1"],
            "dynamic_sampling_max=2 with max_staleness=1",
        ),
        (["algorithm=grpo", "num_generations=7"], "batch_size=64 is not a multiple of num_gen"),
        (["algorithm=grpo", "baseline=none", "num_generations=1"], "with scale=group_std"),
        (["algorithm=grpo", "ratio=sequence", "aggregation=token"], "set aggregation=sequence"),
        (["algorithm=grpo", "kl_estimator=k1"], "its gradient is 0 in expectation"),
        (["mixture_coef=0.3"], "mixture_coef=0.3 with signal=score: nothing reads it"),
        (["algorithm=grpo", "overlong_penalty=2"], "set overlong_share=0.2, or overlong_penalty=1"),
        (
            ["algorithm=reinforce++", "kl_in=loss", "kl_estimator=k2"],
            "kl_credit=to_go with kl_in=loss: nothing reads it; set kl_in=reward, or kl_credit=seq",
        ),
        (["use_bias_correction_kl=true"], "with kl_in=reward: nothing reads it; set kl_in=loss"),
        (["algorithm=nash_md", "use_bias_correction_kl=true"], "set kl_estimator=k1 or k3"),
        (
            ["algorithm=grpo", "kl_estimator=k2", "use_bias_correction_kl=true"],
            "use_bias_correction_kl=true with kl_estimator=k2",
        ),
        (["algorithm=rloo", "kl_credit=to_go"], "set kl_credit=sequence, or ratio=token"),
        (["algorithm=nash_md", "overlong_share=0.2"], "would pay for its length"),
        (
            [
                "layout=shared",
                "num_generations=4",
                "batch_size=32",
                "num_mini_batches=16",
                "micro_batch_size=2",
            ],
            "num_mini_batches=16 with 8 prompts",
        ),
        (["algorithm=nash_md", "baseline=greedy"], "the rival is drawn from a mixture"),
        (["algorithm=rloo", "micro_batch_size=7"], "not a multiple of micro_batch_size=7"),
        (["algorithm=rloo", "sampling.response_length=5"], "reinforce.sampling.response_length=5"),
        (["K=3"], "unknown key reinforce.K"),
        (["kl_coef=0", "kl_target=1"], "kl_target=1.0 with kl_coef=0.0: steering multiplies"),
        (["algorithm=dr_grpo", "kl_target=1"], "set kl_coef above 0"),
        (["max_staleness=24"], "max_staleness=24 with 24 updates"),
        (["max_staleness=-1"], "reinforce.max_staleness=-1"),
        (["max_staleness=1", "tempered=[new]"], "set importance=none"),
        (["importance=clip"], "reinforce.importance='clip': must be 'none', 'truncate' or 'mask'"),
        (["importance_cap=4"], "importance_cap=4.0 with max_staleness=0: nothing reads it"),
        (["kl_horizon=64"], "kl_horizon=64 with kl_target=null: nothing reads it; set kl_target="),
        (["importance_cap=1"], "reinforce.importance_cap=1: must be greater than 1"),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_mend(sets, what):
    with pytest.raises(InputError) as caught:
        reinforce(*(f"reinforce.{text}" for text in sets))
    assert what in str(caught.value)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_a_corrected_kl_in_the_loss_may_be_k1_or_k3(estimator):
    sets = ("algorithm=nash_md", f"kl_estimator={estimator}", "use_bias_correction_kl=true")
    cfg = reinforce(*(f"reinforce.{text}" for text in sets))
    assert (cfg.kl_in, cfg.kl_estimator, cfg.use_bias_correction_kl) == ("loss", estimator, True)


@pytest.mark.parametrize(
    "sets",
    [
        ["algorithm=nash_md", "mixture_coef=0.3"],
        ["algorithm=dapo", "overlong_penalty=2"],
        ["algorithm=remax", "kl_credit=to_go"],
        ["mixture_coef=0.5", "overlong_penalty=1", "kl_credit=sequence"],
    ],
)
def test_keys_may_be_given_where_they_are_read_or_at_their_defaults(sets):
    assert reinforce(*(f"reinforce.{text}" for text in sets)) is not None
