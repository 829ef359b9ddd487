import math

import pytest
import torch

from nplus.ops.logprobs import TEMPERATURE_EPS, entropy_from_logits, gather_logprobs

TEMPERATURES = [None, 0.7, 1.0, 0.01]


def probabilities(logits, temperature):
    """Definition in plain floats: exp of scaled logits over their sum."""
    scale = 1.0 if temperature is None else temperature + 1e-7
    scaled = [z / scale for z in logits]
    top = max(scaled)
    weights = [math.exp(z - top) for z in scaled]
    return [w / sum(weights) for w in weights]


@pytest.fixture
def logits_BRV():
    return torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gathered_logprobs_and_entropy_against_the_definition(logits_BRV, temperature):
    tokens_BR = torch.tensor([[0, 4, 2], [1, 1, 3]])
    logprobs_BR = gather_logprobs(logits_BRV, tokens_BR, temperature=temperature)
    entropy_BR = entropy_from_logits(logits_BRV, temperature=temperature)
    for b in range(2):
        for r in range(3):
            p = probabilities(logits_BRV[b, r].tolist(), temperature)
            token = int(tokens_BR[b, r])
            entropy = -sum(q * math.log(q) for q in p if q > 0)
            assert math.exp(logprobs_BR[b, r].item()) == pytest.approx(p[token], rel=1e-3, abs=1e-6)
            assert entropy_BR[b, r].item() == pytest.approx(entropy, rel=1e-3, abs=2e-5)


@pytest.mark.detail("E5")
def test_temperature_gets_the_small_addend():
    # Detail E5: at temperature 0 only the 1e-7 is left.
    assert TEMPERATURE_EPS == 1e-7
    logits = torch.tensor([[[0.0, 1e-7]]])
    logprob = gather_logprobs(logits, torch.tensor([[1]]), temperature=0.0)
    assert logprob.item() == pytest.approx(math.log(math.e / (1 + math.e)), rel=1e-5)


def test_bfloat16_logits_are_scored_in_float32(logits_BRV):
    half = logits_BRV.bfloat16()
    tokens_BR = torch.zeros(2, 3, dtype=torch.long)
    from_half = gather_logprobs(half, tokens_BR, temperature=0.7)
    assert from_half.dtype == torch.float32
    assert from_half.equal(gather_logprobs(half.float(), tokens_BR, temperature=0.7))


def test_excluded_ids_contribute_nothing():
    logits = torch.tensor([[[0.0, 0.0, -math.inf]]], requires_grad=True)
    entropy = entropy_from_logits(logits)
    assert entropy.item() == pytest.approx(math.log(2))
    entropy.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_inputs_are_left_alone(logits_BRV):
    before = logits_BRV.clone()
    gather_logprobs(logits_BRV, torch.zeros(2, 3, dtype=torch.long), temperature=0.7)
    entropy_from_logits(logits_BRV, temperature=0.7)
    assert logits_BRV.equal(before)


def test_gradient_is_one_hot_minus_softmax():
    logits = torch.tensor([[[0.3, -1.2, 0.8]]], dtype=torch.float32, requires_grad=True)
    gather_logprobs(logits, torch.tensor([[2]]), temperature=0.5).backward()
    p = probabilities([0.3, -1.2, 0.8], 0.5)
    expected = [((i == 2) - p[i]) / 0.5 for i in range(3)]
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx(expected, rel=1e-4)
