"""`batched` attention: transformers' eager attention, number for number, forward and back."""

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import eager_attention_forward

from nplus.models.attention import batched_attention

FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
"""Eager's softmax is in float32, whatever the inputs."""


class Layer(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups


def inputs(heads, keys, length, seen, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    shapes = ((heads, length), (keys, seen), (keys, seen))
    made = [torch.randn(2, n, t, 8, generator=g, dtype=dtype).requires_grad_() for n, t in shapes]
    mask = torch.zeros(2, 1, length, seen, dtype=dtype)
    hidden = torch.ones(length, seen).triu(1 + seen - length).bool()
    mask = mask.masked_fill(hidden, torch.finfo(torch.float32).min)
    mask[1, :, :, :2] = torch.finfo(torch.float32).min  # two padded slots
    return made, mask


@pytest.mark.parametrize(("heads", "keys"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize(("length", "seen"), [(5, 5), (1, 7), (3, 9)])
def test_it_is_eager_attention(heads, keys, length, seen):
    made, mask = inputs(heads, keys, length, seen)
    layer = Layer(heads // keys)
    expected, _ = eager_attention_forward(layer, *made, mask, scaling=0.3)
    found, weights = batched_attention(layer, *made, mask, scaling=0.3)
    assert weights is None
    torch.testing.assert_close(found, expected, **FLOAT32)
    up = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    ours = torch.autograd.grad((found * up).sum(), made)
    theirs = torch.autograd.grad((expected * up).sum(), made)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **FLOAT32)


def test_a_mask_wider_than_the_keys_is_cut_and_none_is_none():
    made, mask = inputs(4, 4, 5, 5)
    wide = torch.cat([mask, torch.full((2, 1, 5, 3), -1e9, dtype=mask.dtype)], dim=-1)
    torch.testing.assert_close(
        batched_attention(Layer(1), *made, wide, scaling=1.0)[0],
        batched_attention(Layer(1), *made, mask, scaling=1.0)[0],
    )
    free = batched_attention(Layer(1), *made, None)[0]
    plain = nn.functional.scaled_dot_product_attention(*made).transpose(1, 2)
    torch.testing.assert_close(free, plain)


def test_dropout_falls_on_the_weights_in_training_alone():
    made, mask = inputs(4, 4, 5, 5)
    layer = Layer(1)
    torch.manual_seed(3)
    trained, _ = batched_attention(layer.train(), *made, mask, scaling=1.0, dropout=0.5)
    torch.manual_seed(3)
    expected, _ = eager_attention_forward(layer, *made, mask, scaling=1.0, dropout=0.5)
    torch.testing.assert_close(trained, expected, **FLOAT32)
    tried, _ = batched_attention(layer.eval(), *made, mask, scaling=1.0, dropout=0.5)
    torch.testing.assert_close(tried, batched_attention(layer, *made, mask, scaling=1.0)[0])


def test_what_it_does_not_know_is_refused():
    made, mask = inputs(4, 4, 5, 5)
    with pytest.raises(ValueError, match=r"softcap.*attn_implementation=eager"):
        batched_attention(Layer(1), *made, mask, softcap=50.0)


def test_under_autocast_a_row_without_any_key_is_finite():
    """A padded query sees nothing; float32's lowest number is minus infinity in bfloat16."""
    made, mask = inputs(4, 4, 5, 5, dtype=torch.float32)
    mask[1, :, :2] = torch.finfo(torch.float32).min
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = batched_attention(Layer(1), *made, mask, scaling=1.0)
    assert found.isfinite().all()
    exact, _ = batched_attention(Layer(1), *made, mask, scaling=1.0)
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.05)
