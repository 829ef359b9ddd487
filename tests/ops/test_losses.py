import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nplus.ops.losses import (
    bradley_terry,
    cross_entropy,
    ppo_policy_loss,
    ppo_value_loss,
    target_mask,
)

ONE = torch.ones(1, 1, dtype=torch.bool)


def cell(x):
    return torch.tensor([[x]], dtype=torch.float64)


numbers = st.floats(-3, 3)


@settings(max_examples=80, deadline=None)
@given(st.floats(-1, 1), numbers)
@pytest.mark.detail("G2")
def test_policy_loss_against_its_case_table(log_ratio, advantage):
    # A > 0 gains nothing from a ratio above 1.2, A < 0 nothing from a ratio below 0.8.
    ratio = math.exp(log_ratio)
    result = ppo_policy_loss(cell(log_ratio - 1), cell(-1.0), cell(advantage), ONE, clip=0.2)
    effective = min(ratio, 1.2) if advantage > 0 else max(ratio, 0.8)
    assert result.loss_BR.item() == pytest.approx(-advantage * effective, abs=1e-9)
    assert result.ratio_BR.item() == pytest.approx(ratio)
    assert result.approxkl_BR.item() == pytest.approx(log_ratio**2 / 2, abs=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "clipped"),
    [(1.3, 1, True), (0.7, 1, False), (1.3, -1, False), (0.7, -1, True), (1.1, 1, False)],
)
def test_which_tokens_count_as_clipped(ratio, advantage, clipped):
    result = ppo_policy_loss(cell(math.log(ratio)), cell(0.0), cell(advantage), ONE, clip=0.2)
    assert result.clipped_BR.item() is clipped


def test_wider_upper_clip_and_dual_clip():
    far = cell(math.log(5.0))
    high = ppo_policy_loss(far, cell(0.0), cell(1.0), ONE, clip=0.2, clip_high=0.5)
    assert high.loss_BR.item() == pytest.approx(-1.5)
    dual = ppo_policy_loss(far, cell(0.0), cell(-1.0), ONE, clip=0.2, dual_clip=3.0)
    assert dual.loss_BR.item() == pytest.approx(3.0)
    positive = ppo_policy_loss(far, cell(0.0), cell(1.0), ONE, clip=0.2, dual_clip=3.0)
    assert positive.loss_BR.item() == pytest.approx(-1.2)


@pytest.mark.detail("G2")
def test_gradient_at_ratio_one_is_the_policy_gradient():
    logprobs = torch.tensor([[-1.0, -2.0, -0.5]], requires_grad=True)
    advantages = torch.tensor([[0.7, -1.3, 2.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    result = ppo_policy_loss(logprobs, logprobs.detach(), advantages, mask, clip=0.2)
    result.loss_BR.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == (-advantages).tolist()
    assert not result.clipped_BR.any()


def test_junk_outside_the_masks_reaches_neither_loss_nor_gradient():
    mask = torch.tensor([[True, False]])
    new = torch.tensor([[-1.0, math.nan]], requires_grad=True)
    other = torch.tensor([[-1.1, math.inf]])
    policy = ppo_policy_loss(new, other, other, mask, clip=0.2)
    value = ppo_value_loss(new, other, other, mask, clip=0.2)
    (policy.loss_BR.sum() + value.loss_BR.sum()).backward()
    assert new.grad is not None
    assert new.grad.isfinite().all()
    assert new.grad[0, 1] == 0
    outside = [x[0, 1].item() for x in (*policy, *value)]
    assert outside == [0.0, False, 1.0, 0.0, 0.0, False]


@settings(max_examples=80, deadline=None)
@given(numbers, numbers, numbers)
@pytest.mark.detail("G3")
def test_value_loss_against_its_definition(value, old, target):
    result = ppo_value_loss(cell(value), cell(old), cell(target), ONE, clip=0.2)
    near_old = min(max(value, old - 0.2), old + 0.2)
    errors = (value - target) ** 2, (near_old - target) ** 2
    assert result.loss_BR.item() == pytest.approx(0.5 * max(errors), abs=1e-9)
    if abs(errors[0] - errors[1]) > 1e-9:
        assert result.clipped_BR.item() is (errors[1] > errors[0])
    unclipped = ppo_value_loss(cell(value), cell(old), cell(target), ONE, clip=None)
    assert unclipped.loss_BR.item() == pytest.approx(0.5 * errors[0], abs=1e-9)


@pytest.mark.detail("D3")
def test_bradley_terry():
    # Detail D3: a tie costs ln 2 and is not correct.
    chosen, rejected = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 0.0, 2.0])
    result = bradley_terry(chosen, rejected)
    expected = [math.log(1 + math.exp(-d)) for d in (0.0, 2.0, -2.0)]
    assert result.loss_N.tolist() == pytest.approx(expected)
    assert result.correct_N.tolist() == [False, True, False]
    with_margin = bradley_terry(chosen, rejected, torch.tensor([0.0, 3.0, 0.0]))
    assert with_margin.loss_N[1].item() == pytest.approx(math.log(1 + math.e))
    assert with_margin.correct_N.tolist() == [False, True, False]


@pytest.mark.detail("C2")
def test_target_mask_needs_a_real_predecessor():
    # Detail C2 right-padded, Q8 left-padded.
    real = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]).bool()
    assert target_mask(real, real).int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    response = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1]]).bool()
    assert target_mask(real, response).int().tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.detail("C2")
def test_cross_entropy_by_hand():
    # Detail C2: two rows, prompt tokens and the EOS (id 0) are targets, the pad is not.
    uniform, sure = [0.0, 0.0, 0.0], [math.log(8.0), 0.0, 0.0]
    logits = torch.tensor([[uniform, sure, sure], [sure, uniform, uniform]])
    tokens = torch.tensor([[1, 2, 0], [2, 0, 0]])
    real = torch.tensor([[True, True, True], [True, True, False]])
    nll = cross_entropy(logits, tokens, target_mask(real, real))
    expected = [[0.0, math.log(3), math.log(10 / 8)], [0.0, math.log(10 / 8), 0.0]]
    for row, wanted in zip(nll.tolist(), expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-6)


def test_cross_entropy_against_torch_with_ignored_labels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 11, generator=generator, requires_grad=True)
    tokens = torch.randint(0, 11, (3, 6), generator=generator)
    real = torch.arange(6) < torch.tensor([[6], [4], [2]])
    mask = target_mask(real, real)
    (cross_entropy(logits, tokens, mask).sum() / mask.sum()).backward()
    mine, logits.grad = logits.grad, None
    labels = tokens.masked_fill(~real, -100)[:, 1:]
    F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten()).backward()
    torch.testing.assert_close(mine, logits.grad)
