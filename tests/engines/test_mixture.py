"""The geometric mixture: its distribution by definition, its ends, and that it is an engine."""

import pytest
import torch

from nplus.batches import PromptBatch
from nplus.config import SamplingConfig
from nplus.engines.kv import KVEngine
from nplus.engines.mixture import mixture_engine

EOS, PAD, R = 0, 1, 9


@pytest.fixture(scope="module")
def models(tiny_causal):
    return tiny_causal(0).double(), tiny_causal(1).double()


def engine(models, share):
    return mixture_engine(*models, share, eos_id=EOS, pad_id=PAD)


def drawn(engine, prompts, uniforms_for, temperature=0.7):
    sampling = SamplingConfig(temperature=temperature, response_length=R)
    return engine.generate(prompts, sampling, uniforms_for(prompts, R))


def tempered(model, tokens_BT, temperature):
    """[B, T, V] probabilities of the next token, by the model alone."""
    return (model(tokens_BT).logits / (temperature + 1e-7)).softmax(-1)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_log_probs_are_of_the_normalised_geometric_mean(
    share, models, prompts_of_lengths, uniforms_for
):
    prompts = prompts_of_lengths([6])
    found = drawn(engine(models, share), prompts, uniforms_for)
    length = int(found.response_mask_BR.sum())
    tokens_BT = torch.cat([prompts.tokens_BP, found.tokens_BR[:, :length]], dim=1)
    own, other = (tempered(model, tokens_BT, 0.7) for model in models)
    product = own ** (1.0 - share) * other**share
    mixture = product / product.sum(-1, keepdim=True)
    expected = mixture[0, 5:-1].log().gather(-1, found.tokens_BR[0, :length, None])[:, 0]
    torch.testing.assert_close(found.logprobs_BR[0, :length], expected.float(), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_are_the_models_themselves(share, models, prompts_of_lengths, uniforms_for):
    prompts = prompts_of_lengths([3, 8, 5, 2])
    alone = KVEngine(models[int(share)], eos_id=EOS, pad_id=PAD, path="plain")
    found, expected = (drawn(e, prompts, uniforms_for) for e in (engine(models, share), alone))
    assert torch.equal(found.tokens_BR, expected.tokens_BR)
    torch.testing.assert_close(found.logprobs_BR, expected.logprobs_BR, rtol=0.0, atol=1e-6)


def test_rows_do_not_know_each_other(models, prompts_of_lengths, uniforms_for):
    prompts = prompts_of_lengths([3, 8, 5, 2])
    mixed = engine(models, 0.5)
    whole = drawn(mixed, prompts, uniforms_for)
    order = torch.tensor([2, 0])
    part = drawn(mixed, prompts.rows(order), uniforms_for)
    assert torch.equal(part.tokens_BR, whole.tokens_BR[order])


def test_samples_of_a_prompt_read_it_once_and_differ(models, prompts_of_lengths):
    prompts = prompts_of_lengths([5, 4])
    repeated = prompts.rows(torch.tensor([0, 0, 0, 1]))
    noise_BR = torch.rand(4, R, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sampling = SamplingConfig(temperature=1.0, response_length=R)
    found = engine(models, 0.5).generate(repeated, sampling, noise_BR)
    assert len({tuple(row) for row in found.tokens_BR[:3].tolist()}) == 3
    for b in range(4):
        row = PromptBatch(repeated.tokens_BP[b : b + 1], repeated.mask_BP[b : b + 1], ("x",))
        alone = engine(models, 0.5).generate(row, sampling, noise_BR[b : b + 1])
        assert torch.equal(alone.tokens_BR[0], found.tokens_BR[b])
