"""Rotary attention against the definition, one query and one key at a time."""

import math

import pytest
import torch

from nplus.ops.attention import SPLIT, rotary_attention

SIZES = {
    # name: rows, columns, wanted columns, heads, groups, head size, turned pairs
    "all columns": (2, 7, 7, 2, 2, 6, 2),
    "last columns": (2, 7, 3, 2, 2, 6, 3),
    "shared keys": (2, 5, 4, 6, 2, 4, 1),
    "in two halves": (1, SPLIT + 3, SPLIT + 3, 2, 1, 4, 2),
}


def inputs(name, dtype=torch.float64):
    rows, seen, length, heads, groups, width, half = SIZES[name]
    g = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    angles = draw(rows, half, seen)
    mask_BTT = torch.zeros(rows, seen, seen, dtype=torch.float64)
    mask_BTT.masked_fill_(torch.ones(seen, seen, dtype=torch.bool).triu(1), float("-inf"))
    mask_BTT[0, 2:, :2] = float("-inf")  # two columns of padding
    tensors = [
        draw(heads * width, rows * length),
        draw(2 * groups * width, rows * seen),
        draw(heads * width),
        draw(2 * groups * width),
    ]
    return tensors, (angles.cos(), angles.sin()), mask_BTT, {"heads": heads, "groups": groups}


def ours_of(tensors, turn, mask_BTT, sizes):
    """The last columns look at all."""
    length = tensors[0].shape[1] // len(mask_BTT)
    turn_q = tuple(x[..., -length:] for x in turn)
    biases = tuple(tensors[2:]) or None
    return rotary_attention(*tensors[:2], biases, (turn_q, turn), mask_BTT[:, -length:], **sizes)


def by_definition(query, keys_values, bias_q, bias_kv, turn, mask_BTT, sizes):
    rows, seen = mask_BTT.shape[:2]
    heads, groups = sizes["heads"], sizes["groups"]
    width, length = len(query) // heads, query.shape[1] // rows
    query = (query + bias_q[:, None]).view(heads, width, rows, length)
    both = (keys_values + bias_kv[:, None]).view(2, groups, width, rows, seen)

    def turned(vector, row, column):
        cos, sin = (x[row, :, column] for x in turn)
        r = len(cos)
        a, b = vector[:r], vector[r : 2 * r]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, vector[2 * r :]])

    out = torch.zeros(heads, width, rows, length, dtype=query.dtype)
    for row in range(rows):
        for head in range(heads):
            group = head // (heads // groups)
            keys = [turned(both[0, group, :, row, u], row, u) for u in range(seen)]
            for t in range(length):
                column = seen - length + t
                looks = turned(query[head, :, row, t], row, column)
                seen_by = [u for u in range(seen) if mask_BTT[row, column, u] == 0]
                scores = torch.stack([looks @ keys[u] for u in seen_by]) / math.sqrt(width)
                weights = scores.softmax(0)
                out[head, :, row, t] = sum(
                    w * both[1, group, :, row, u] for w, u in zip(weights, seen_by, strict=True)
                )
    return out.reshape(heads * width, rows * length)


@pytest.mark.parametrize("name", SIZES)
def test_attention_and_its_gradients_are_the_definitions(name):
    tensors, turn, mask_BTT, sizes = inputs(name)
    tensors = [x.requires_grad_() for x in tensors]
    ours = ours_of(tensors, turn, mask_BTT, sizes)
    theirs = by_definition(*tensors, turn, mask_BTT, sizes)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    up = torch.randn(ours.shape, generator=torch.Generator().manual_seed(4), dtype=ours.dtype)
    for mine, its in zip(
        torch.autograd.grad(ours, tensors, up),
        torch.autograd.grad(theirs, tensors, up),
        strict=True,
    ):
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-10)


def test_without_biases_it_is_as_with_zeros():
    tensors, turn, mask_BTT, sizes = inputs("shared keys")
    zeros = [torch.zeros_like(x) for x in tensors[2:]]
    with_zeros = ours_of([*tensors[:2], *zeros], turn, mask_BTT, sizes)
    without = ours_of(tensors[:2], turn, mask_BTT, sizes)
    assert torch.equal(without, with_zeros)


def test_bfloat16_is_near_the_definition():
    tensors, turn, mask_BTT, sizes = inputs("in two halves")
    theirs = by_definition(*tensors, turn, mask_BTT, sizes)
    narrow = [x.bfloat16() for x in tensors]
    narrow_turn = tuple(x.bfloat16() for x in turn)
    ours = ours_of(narrow, narrow_turn, mask_BTT.float(), sizes)
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - theirs).abs().max() < 0.03 * theirs.abs().max()


def test_a_row_that_sees_nothing_stays_finite():
    tensors, turn, mask_BTT, sizes = inputs("all columns")
    lowest = torch.finfo(torch.float64).min
    mask_BTT = mask_BTT.clamp(min=lowest)
    mask_BTT[0, :2] = lowest
    tensors = [x.requires_grad_() for x in tensors]
    found = ours_of(tensors, turn, mask_BTT, sizes)
    assert found.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), tensors))
