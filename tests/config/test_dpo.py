"""The settings of preference losses: what contradicts is refused, and the tables agree."""

from typing import get_args

import pytest

from nplus.config import DPOConfig
from nplus.config.dpo import READERS, REFERENCE_FREE, SOFT, LossType
from nplus.ops.preference import DIVERGENCES, PAIR_LOSSES

KINDS = get_args(LossType)


def test_the_config_and_the_table_of_losses_agree():
    assert set(KINDS) == set(PAIR_LOSSES)
    without = {kind for kind, entry in PAIR_LOSSES.items() if not entry.reference}
    assert set(REFERENCE_FREE) == without
    smoothed = {kind for kind, entry in PAIR_LOSSES.items() if "label_smoothing" in entry.takes}
    assert set(READERS["label_smoothing"]) == smoothed
    assert set(SOFT) == {kind for kind, entry in PAIR_LOSSES.items() if "margin" in entry.reads}
    of_h = {kind for kind, entry in PAIR_LOSSES.items() if "log_ratio" in entry.reads}
    assert all(set(READERS[key]) == of_h for key in ("f_divergence", "rdpo_alpha", "dpop_lambda"))
    assert set(get_args(DPOConfig.model_fields["f_divergence"].annotation)) == set(DIVERGENCES)


def test_the_default_is_dpo_as_before():
    cfg = DPOConfig()
    assert (cfg.loss_type, cfg.beta, cfg.label_smoothing) == ("sigmoid", 0.05, 0.0)
    assert (cfg.f_divergence, cfg.rdpo_alpha, cfg.dpop_lambda) == ("reverse_kl", 0.0, 0.0)
    assert (cfg.rpo_alpha, cfg.xpo_alpha, cfg.ref_logprobs) == (None, 0.0, "online")


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_can_be_chosen(kind):
    smoothing = 0.1 if kind == "robust" else 0.0
    cfg = DPOConfig(loss_type=kind, label_smoothing=smoothing)
    assert cfg.has_reference == (kind not in REFERENCE_FREE)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (
            {"loss_type": "ipo", "label_smoothing": 0.1},
            ("label_smoothing=0.1", "loss_type=ipo", "robust", "set label_smoothing=0.0"),
        ),
        ({"loss_type": "robust"}, ("loss_type=robust", "as in label_smoothing=0.1")),
        ({"ipo_length": "mean"}, ("ipo_length=mean", "loss_type=sigmoid", "only ipo")),
        ({"loss_type": "kto", "f_divergence": "js"}, ("f_divergence=js", "set f_divergence=")),
        ({"loss_type": "bco_pair", "rdpo_alpha": 0.1}, ("rdpo_alpha=0.1", "set rdpo_alpha=0.0")),
        ({"loss_type": "simpo", "dpop_lambda": 5.0}, ("dpop_lambda=5.0", "set dpop_lambda=0.0")),
        ({"simpo_gamma_ratio": 1.0}, ("simpo_gamma_ratio=1.0", "only simpo")),
        ({"margin_scale": 2.0}, ("margin_scale=2.0", "soft_tv")),
        ({"undesirable_weight": 2.0}, ("undesirable_weight=2.0", "only kto")),
        ({"f_alpha": 0.5}, ("f_alpha=0.5", "f_divergence=reverse_kl", "set f_divergence=alpha,")),
        ({"rpo_nll": "sum"}, ("rpo_nll=sum", "rpo_alpha=None", "set rpo_alpha=1.0,")),
        ({"xpo_policy": "sft"}, ("xpo_policy=sft", "xpo_alpha=0.0", "set xpo_alpha=1e-05,")),
        (
            {"loss_type": "ipo", "ipo_length": "mean", "rdpo_alpha": 0.1},
            ("rdpo_alpha=0.1", "ipo_length=mean", "set ipo_length=sum"),
        ),
        ({"loss_type": "raft", "rpo_alpha": 1.0}, ("rpo_alpha=1.0", "raft", "rpo_alpha=null")),
        (
            {"loss_type": "simpo", "ref_logprobs": "cached"},
            ("ref_logprobs=cached", "simpo", "set ref_logprobs=online"),
        ),
        (
            {"loss_type": "kto", "batch": {"batch_size": 1, "micro_batch_size": 1}},
            ("batch.batch_size=1", "kto", "2 or more"),
        ),
    ],
)
def test_settings_that_contradict_each_other(settings, parts):
    with pytest.raises(ValueError, match=r"loss_type|with") as error:
        DPOConfig(**settings)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"f_divergence": "alpha", "f_alpha": 0.5, "rdpo_alpha": 0.01, "dpop_lambda": 5.0},
        {"rpo_alpha": 1.0, "rpo_nll": "token", "xpo_alpha": 1e-5, "xpo_policy": "sft"},
        {"loss_type": "orpo", "rpo_nll": "token"},
        {"loss_type": "cpo", "rpo_alpha": 0.0, "label_smoothing": 0.1},
        {"loss_type": "soft_kl", "margin_scale": 3.0, "f_divergence": "js"},
        {"loss_type": "kto", "desirable_weight": 1.3, "undesirable_weight": 0.5},
        {"loss_type": "exo_pair", "label_smoothing": 0.2, "ref_logprobs": "cached"},
    ],
)
def test_settings_that_go_together(settings):
    assert DPOConfig(**settings).model_dump(include=set(settings)) == settings
