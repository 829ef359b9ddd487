"""Two responses that share a query: refused where the network lets them see each other."""

import pytest
import torch

from nplus.data.collate import PairRow
from nplus.models.lm import set_dropout
from nplus.models.scalar import ScalarModel
from nplus.models.toy import build_toy
from nplus.records import InputError
from nplus.stages.forwards import require_apart

PAD = 1
ROW = PairRow(list(range(10, 40)), [50, 51, 52, 0], [60, 61, 62, 63, 0])
SMALL = PairRow(list(range(10, 40)), [50, 51, 52, 0], [54, 55, 56, 57, 0])


@pytest.fixture
def model():
    network = build_toy("0.3M", vocab_size=80, eos_id=0, pad_id=PAD, seed=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)  # so that what is seen shows in the score
    network.config._attn_implementation = "eager"
    return ScalarModel.from_causal(network, pad_id=PAD, seed=0)


@pytest.mark.detail("B1")
def test_dropout_does_not_pass_for_a_network_that_ignores_the_mask(model):
    set_dropout(model, 0.5)
    model.train()
    require_apart(model, ROW, PAD, "reward.layout")


def test_a_policy_that_ignores_the_mask_is_refused_too(monkeypatch, tiny_causal):
    policy = tiny_causal()
    policy.set_attn_implementation("eager")
    require_apart(policy, SMALL, PAD, "dpo.layout")
    trunk, plain = policy.base_model, policy.base_model.forward
    monkeypatch.setattr(
        trunk, "forward", lambda *a, **k: plain(*a, **{**k, "attention_mask": None})
    )
    with pytest.raises(InputError, match=r"set dpo\.layout=separate"):
        require_apart(policy, SMALL, PAD, "dpo.layout")


def test_a_network_that_ignores_the_mask_is_refused(model, monkeypatch):
    trunk = model.network.base_model
    plain = trunk.forward
    monkeypatch.setattr(
        trunk, "forward", lambda *a, **k: plain(*a, **{**k, "attention_mask": None})
    )
    with pytest.raises(InputError, match=r"set reward\.layout=separate"):
        require_apart(model, ROW, PAD, "reward.layout")
