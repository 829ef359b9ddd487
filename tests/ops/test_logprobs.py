import math

import pytest
import torch

from nplus.ops import logprobs
from nplus.ops.logprobs import (
    TEMPERATURE_EPS,
    entropy_from_logits,
    gather_logprobs,
    head_logprobs,
    head_nll,
    head_token_logprobs,
)

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


# --- the head, its logits a few rows at a time ------------------------------------------------


def head(rows=11, width=6, vocabulary=23, bias=True, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, width, generator=g, dtype=dtype)
    weight = torch.randn(vocabulary, width, generator=g, dtype=dtype)
    shift = torch.randn(vocabulary, generator=g, dtype=dtype) if bias else None
    tokens = torch.randint(vocabulary, (rows,), generator=g)
    return hidden, weight, shift, tokens


@pytest.mark.parametrize("size", [1, 4, 11, 64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_head_by_pieces_is_the_head_at_once(monkeypatch, size, bias, temperature):
    monkeypatch.setattr(logprobs, "_rows_at_a_time", lambda vocabulary, device: size)
    hidden, weight, shift, tokens = head(bias=bias)
    leaves = [x.requires_grad_() for x in (hidden, weight, shift) if x is not None]
    up = torch.linspace(-2, 3, len(hidden), dtype=torch.float64)

    found, entropy = head_logprobs(hidden, weight, shift, tokens, temperature=temperature)
    gradients = torch.autograd.grad(found @ up, leaves)

    logits = torch.nn.functional.linear(hidden, weight, shift)[None]
    expected = gather_logprobs(logits, tokens[None], temperature=temperature)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        entropy, entropy_from_logits(logits, temperature=temperature)[0], rtol=1e-9, atol=1e-9
    )
    assert not entropy.requires_grad
    for ours, theirs in zip(gradients, torch.autograd.grad(expected @ up, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def by_definition(hidden, weight, shift, tokens):
    """[N] `z[a] - log sum exp z`, row by row."""
    found = []
    for h, a in zip(hidden, tokens.tolist(), strict=True):
        z = weight @ h + (0.0 if shift is None else shift)
        found.append(z[a] - z.exp().sum().log())
    return torch.stack(found)


@pytest.mark.parametrize("size", [1, 4, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_a_summed_loss_by_pieces_is_its_definition(monkeypatch, size, bias):
    monkeypatch.setattr(logprobs, "_rows_at_a_time", lambda vocabulary, device: size)
    hidden, weight, shift, tokens = head(bias=bias)
    leaves = [x.requires_grad_() for x in (hidden, weight, shift) if x is not None]
    by = torch.linspace(0, 3, len(hidden), dtype=torch.float64)

    found = head_nll(hidden, weight, shift, tokens, by)
    gradients = torch.autograd.grad(found * 0.7, leaves)

    expected = -(by * by_definition(hidden, weight, shift, tokens)).sum()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected * 0.7, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_summed_loss_has_the_gradient_of_its_finite_differences():
    hidden, weight, shift, tokens = head(rows=5)
    by = torch.linspace(-1, 2, 5, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (hidden, weight, shift)]
    assert torch.autograd.gradcheck(lambda *x: head_nll(*x, tokens, by), leaves)


def test_a_summed_loss_without_gradient():
    hidden, weight, shift, tokens = head()
    weight.requires_grad_()
    by = torch.ones(len(hidden), dtype=torch.float64)
    with torch.no_grad():
        found = head_nll(hidden, weight, shift, tokens, by)
    assert not found.requires_grad
    expected = -by_definition(hidden, weight, shift, tokens).sum()
    torch.testing.assert_close(found, expected.detach())


def test_tokens_that_weigh_nothing_add_nothing():
    hidden, weight, shift, tokens = head()
    hidden.requires_grad_()
    by = torch.ones(len(hidden), dtype=torch.float64)
    by[3:] = 0.0
    head_nll(hidden, weight, shift, tokens, by).backward()
    assert not hidden.grad[3:].any()
    assert hidden.grad[:3].all()


def test_a_summed_loss_of_nothing():
    hidden, weight, shift, tokens = head(rows=0)
    hidden.requires_grad_()
    found = head_nll(hidden, weight, shift, tokens, torch.zeros(0))
    found.backward()
    assert (found.item(), hidden.grad.shape) == (0.0, (0, 6))


def test_a_summed_loss_under_autocast():
    hidden, weight, _, tokens = head(rows=200, width=16, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in (hidden, weight)]
    by = torch.ones(200)
    exact = torch.autograd.grad(head_nll(hidden, weight, None, tokens, by), leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head_nll(hidden, weight, None, tokens, by)
    assert found.dtype == torch.float32
    rough = torch.autograd.grad(found, leaves)
    for ours, theirs in zip(rough, exact, strict=True):
        assert 1e-4 < float((ours - theirs).norm() / theirs.norm()) < 0.02


def test_autocast_leaves_float64_alone():
    hidden, weight, shift, tokens = head()
    expected = by_definition(hidden, weight, shift, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head_token_logprobs(hidden, weight, shift, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_token_logprobs_are_those_with_the_entropy():
    hidden, weight, shift, tokens = head()
    leaves = [x.requires_grad_() for x in (hidden, weight, shift)]
    up = torch.linspace(-2, 3, len(hidden), dtype=torch.float64)
    alone = head_token_logprobs(hidden, weight, shift, tokens, temperature=0.7)
    both, _ = head_logprobs(hidden, weight, shift, tokens, temperature=0.7)
    assert alone.equal(both)
    for ours, theirs in zip(
        torch.autograd.grad(alone @ up, leaves), torch.autograd.grad(both @ up, leaves), strict=True
    ):
        assert ours.equal(theirs)


def test_a_head_without_rows():
    hidden, weight, shift, tokens = head(rows=0)
    hidden.requires_grad_()
    found, entropy = head_logprobs(hidden, weight, shift, tokens)
    found.sum().backward()
    assert (len(found), len(entropy), hidden.grad.shape) == (0, 0, (0, 6))


def test_under_autocast_only_products_are_in_bfloat16():
    hidden, weight, _, tokens = head(bias=False, dtype=torch.float32)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = head_logprobs(hidden, weight, None, tokens, temperature=0.7)
        logits = torch.nn.functional.linear(hidden, weight)
        expected = gather_logprobs(logits[None], tokens[None], temperature=0.7)[0]
    assert logits.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    ours = torch.autograd.grad(found.sum(), leaves)
    theirs = torch.autograd.grad(expected.sum(), leaves)
    assert [g.dtype for g in ours] == [torch.float32] * 2
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.05)


def test_what_autograd_keeps_does_not_grow_with_the_vocabulary():
    def kept(vocabulary):
        hidden, weight, _, tokens = head(rows=64, vocabulary=vocabulary, bias=False)
        sizes = []

        def pack(x):
            sizes.append(0 if x is weight else x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            head_logprobs(hidden.requires_grad_(), weight.requires_grad_(), None, tokens)
        return sum(sizes)

    assert kept(20) == kept(2_000)


def test_an_excluded_id_adds_no_entropy():
    hidden, weight, shift, tokens = head()
    shift[3] = -math.inf
    tokens[tokens == 3] = 0
    _, entropy = head_logprobs(hidden, weight, shift, tokens)
    expected = entropy_from_logits(torch.nn.functional.linear(hidden, weight, shift)[None])[0]
    torch.testing.assert_close(entropy, expected)


def test_bfloat16_weights_lose_nothing_to_the_number_of_pieces(monkeypatch):
    hidden, weight, _, tokens = (
        x.bfloat16() if x is not None and x.is_floating_point() else x for x in head(rows=300)
    )

    def gradient(size):
        monkeypatch.setattr(logprobs, "_rows_at_a_time", lambda vocabulary, device: size)
        leaf = weight.clone().requires_grad_()
        found, _ = head_logprobs(hidden, leaf, None, tokens)
        return torch.autograd.grad(found.sum(), leaf)[0].float()

    torch.testing.assert_close(gradient(2), gradient(300), rtol=0.02, atol=0.05)
