"""Named semantics: what a profile sets, what beats it, what cannot be meant."""

from typing import get_args

import pytest

from nplus.config import PPOConfig
from nplus.config.load import load_config
from nplus.config.profiles import PROFILES, ProfileName, departures, profile_tree, profile_values
from nplus.recipes import recipe
from nplus.records import InputError


def ppo(*sets):
    return load_config(recipe("toy"), sets=sets).ppo


def test_every_profile_sets_the_same_keys_and_is_a_valid_config():
    assert set(PROFILES) == set(get_args(ProfileName))
    assert len({frozenset(values) for values in PROFILES.values()}) == 1
    for name in PROFILES:
        cfg = PPOConfig.model_validate(profile_tree(name))
        assert departures(cfg) == {}
        assert dict(profile_values(cfg)) == PROFILES[name]


def test_no_two_profiles_mean_the_same():
    values = [tuple(values.items()) for values in PROFILES.values()]
    assert len(set(values)) == len(values)


def test_the_default_profile_is_what_the_defaults_say():
    assert departures(PPOConfig()) == {}


# Rows of the comparison of systems, as far as they name a value.
@pytest.mark.parametrize(
    ("profile", "key", "value"),
    [
        ("paper", "whitening_variance", "biased"),
        ("trl", "whitening_variance", "unbiased"),
        ("openrlhf", "whitening_eps", "clamp"),
        ("verl", "whitening_variance", "unbiased"),
        ("torchtune", "whitening_keeps_mean", True),
        ("paper", "whitening_scope", "rank"),
        ("trl", "whitening_scope", "rank"),
        ("openrlhf", "whitening_scope", "global"),
        ("openai-2019", "whitening_scope", "minibatch"),
        ("paper", "missing_eos", "replace"),
        ("trl", "missing_eos", "subtract"),
        ("paper", "score_step", "after_eos"),
        ("trl", "score_step", "after_eos"),
        ("openrlhf", "score_step", "eos"),
        ("verl", "score_step", "eos"),
        ("paper", "kl_clamp", None),
        ("openrlhf", "kl_clamp", 10.0),
        ("paper", "dual_clip", None),
        ("verl", "dual_clip", 3.0),
        ("verl", "log_ratio_clamp", 20.0),
        ("paper", "normalise", "micro"),
        ("trl", "normalise", "micro"),
        ("openrlhf", "normalise", "global"),
        ("verl", "normalise", "global"),
        ("paper", "optim.max_grad_norm", None),
        ("trl", "optim.max_grad_norm", None),
        ("trl", "old_logprobs", "sampler"),
        ("openrlhf", "optim.max_grad_norm", 1.0),
        ("openai-2019", "value", "shared"),
        ("openai-2019", "value_init", "zero"),
        ("openai-2019", "kl_target", 6.0),
    ],
)
def test_rows_of_the_comparison(profile, key, value):
    assert PROFILES[profile][key] == value


def test_a_profile_sets_its_keys_and_leaves_the_recipes_others():
    chosen, before = ppo("ppo.profile=verl"), recipe("toy").ppo
    assert (chosen.dual_clip, chosen.log_ratio_clamp, chosen.optim.max_grad_norm) == (
        3.0,
        20.0,
        1.0,
    )
    assert chosen.kl_coef == before.kl_coef
    assert chosen.optim.learning_rate == before.optim.learning_rate


def test_a_key_beside_the_profile_wins_in_either_order():
    for sets in (
        ("ppo.profile=openrlhf", "ppo.kl_clamp=3"),
        ("ppo.kl_clamp=3", "ppo.profile=openrlhf"),
    ):
        assert departures(ppo(*sets)) == {"kl_clamp": (10.0, 3.0)}


def test_a_profile_in_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("ppo:\n  profile: trl\n  kl_coef: 0.2\n", encoding="utf-8")
    cfg = load_config(recipe("toy"), config_file=file)
    assert (cfg.ppo.whitening_variance, cfg.ppo.kl_coef) == ("unbiased", 0.2)


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(InputError, match=r"ppo.profile='mine': must be 'nplus', 'paper'"):
        ppo("ppo.profile=mine")


@pytest.mark.parametrize(
    ("sets", "mend"),
    [
        (("ppo.value=shared",), "value_init=zero"),
        (("ppo.score_step=eos",), "value_mask=response"),
        (("ppo.stop_token=none",), "sampling.stop=length"),
        (("ppo.tempered=[reference, new]", "ppo.old_logprobs=sampler"), "old_logprobs=trainer"),
        (
            ("ppo.whitening_keeps_mean=true", "ppo.whiten_advantages=false"),
            "whiten_advantages=true",
        ),
    ],
)
def test_switches_that_contradict_each_other(sets, mend):
    with pytest.raises(InputError, match=mend):
        ppo(*sets)
