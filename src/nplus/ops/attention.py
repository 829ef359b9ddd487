"""Causal attention over rotated queries and keys, forward and backward, in few passes.

Everything between the two projections around it is one autograd function. Its tensors are laid out
with the channel before the token (`[H * D, B * T]`, what `weight @ states.T` gives): rotations,
transpositions to heads and back, and the bias then run along tokens, in long stretches of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SPLIT = 64
"""Columns from which on the first half of the queries is attended apart from the second, so that
early queries do not look at keys that come after them only to have them masked."""

Turn = tuple[Tensor, Tensor]


def rotary_attention(
    query_CN: Tensor,
    keys_values_CS: Tensor,
    biases: tuple[Tensor, Tensor] | None,
    turns: tuple[Turn, Turn],
    mask_BtT: Tensor,
    *,
    heads: int,
    groups: int,
) -> Tensor:
    """`[H * D, B * t]`: t columns look at T; where t is T, at none that comes later.

    `query_CN` is `[H * D, B * t]`, `keys_values_CS` is `[2 * K * D, B * T]` (all keys, then all
    values; K divides H), both without their `biases` `[H * D]` and `[2 * K * D]`. `turns` are the
    cosine and sine of the queries, `[B, r, t]`, and of the keys, `[B, r, T]`: of each head's D
    numbers the i-th of the first r is turned with the (r + i)-th. `mask_BtT` is added to the
    scores, which are scaled by `D ** -0.5`.

    The softmax runs in float32 at least; products run in the type of `query_CN`.
    """
    bias_q, bias_kv = biases or (None, None)
    turn_q, turn_k = turns
    found: Tensor = _RotaryAttention.apply(  # type: ignore[no-untyped-call]
        query_CN, keys_values_CS, bias_q, bias_kv, *turn_q, *turn_k, mask_BtT, heads, groups
    )
    return found


class _RotaryAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_CN: Tensor,
        keys_values_CS: Tensor,
        bias_q: Tensor | None,
        bias_kv: Tensor | None,
        cos_Brt: Tensor,
        sin_Brt: Tensor,
        cos_BrT: Tensor,
        sin_BrT: Tensor,
        mask_BtT: Tensor,
        heads: int,
        groups: int,
    ) -> Tensor:
        rows, length, seen = mask_BtT.shape
        width = query_CN.shape[0] // heads
        ctx.sizes = rows, length, seen, groups, width
        query = _heads(query_CN, rows, groups, width)
        both = _heads(keys_values_CS, rows, 2 * groups, width)
        biases_q = _split(bias_q, 1, groups, width)[0]
        bias_k, bias_v = _split(bias_kv, 2, groups, width)
        key = _turned(_plus(both[:, :groups], bias_k), cos_BrT, sin_BrT).flatten(0, 1).flatten(2)
        value = _plus(both[:, groups:], bias_v).flatten(0, 1).flatten(2)
        mixed_CN = torch.empty_like(query_CN)
        mixed = _heads(mixed_CN, rows, groups, width)
        kept = []
        with torch.autocast(query.device.type, enabled=False):
            for start, stop, reach in _parts(length, seen):
                some = _turned(
                    _plus(query[..., start:stop], biases_q, width**-0.5),
                    cos_Brt[..., start:stop],
                    sin_Brt[..., start:stop],
                )
                scores = torch.bmm(some.flatten(0, 1).flatten(2).mT, key[..., :reach])
                added = mask_BtT[:, None, None, start:stop, :reach]
                weights = _softmax(scores.view(rows, groups, -1, stop - start, reach), added)
                weights = weights.view(scores.shape)
                part = torch.bmm(value[..., :reach], weights.mT)
                mixed[..., start:stop] = part.view(some.shape)
                kept += [some, weights]
        ctx.save_for_backward(key, value, cos_Brt, sin_Brt, cos_BrT, sin_BrT, *kept)
        ctx.biased = bias_q is not None
        return mixed_CN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_CN: Tensor) -> tuple[Tensor | None, ...]:
        rows, length, seen, groups, width = ctx.sizes
        key, value, cos_Brt, sin_Brt, cos_BrT, sin_BrT, *kept = ctx.saved_tensors
        grad = _heads(grad_CN, rows, groups, width)
        query_CN = grad_CN.new_empty(grad_CN.shape)
        grad_query = _heads(query_CN, rows, groups, width)
        grad_key = grad_value = key.new_empty(0)
        parts = list(zip(_parts(length, seen), kept[::2], kept[1::2], strict=True))
        for (start, stop, reach), some, weights in reversed(parts):  # the first sees all keys
            by_query = grad[..., start:stop].contiguous().flatten(0, 1).flatten(2)
            by_score = _softmax_backward(torch.bmm(by_query.mT, value[..., :reach]), weights)
            part = torch.bmm(key[..., :reach], by_score.mT).view(some.shape)
            _turned(part, cos_Brt[..., start:stop], -sin_Brt[..., start:stop])
            torch.mul(part, width**-0.5, out=grad_query[..., start:stop])
            by_key = torch.bmm(some.flatten(0, 1).flatten(2), by_score)
            by_value = torch.bmm(by_query, weights)
            if reach == seen:
                grad_key, grad_value = by_key, by_value
            else:
                grad_key[..., :reach] += by_key
                grad_value[..., :reach] += by_value
        keys_values_CS = grad_CN.new_empty(2 * groups * width, rows * seen)
        both = _heads(keys_values_CS, rows, 2 * groups, width)
        shape = rows, groups, width, 1, seen
        both[:, :groups] = _turned(grad_key.view(shape), cos_BrT, -sin_BrT)
        both[:, groups:] = grad_value.view(shape)
        biases = (query_CN.sum(1), keys_values_CS.sum(1)) if ctx.biased else (None, None)
        return query_CN, keys_values_CS, *biases, *(None,) * 7


def _parts(length: int, seen: int) -> Iterator[tuple[int, int, int]]:
    """`start, stop` of some queries, and how many keys they look at."""
    middle = length // 2 if length == seen and length >= SPLIT else 0
    if middle:
        yield 0, middle, middle
    yield middle, length, seen


def _heads(x_CN: Tensor, rows: int, groups: int, width: int) -> Tensor:
    """`[B, K, D, H/K, T]`, a view of `[H * D, B * T]`."""
    return x_CN.view(groups, -1, width, rows, x_CN.shape[1] // rows).permute(3, 0, 2, 1, 4)


def _split(bias: Tensor | None, parts: int, groups: int, width: int) -> list[Tensor | None]:
    """`[K, D, H/K, 1]` of each part, as `_heads` lays them out."""
    if bias is None:
        return [None] * parts
    return [x.view(groups, -1, width, 1).transpose(1, 2) for x in bias.chunk(parts)]


def _plus(x: Tensor, bias: Tensor | None, scale: float = 1.0) -> Tensor:
    """`(x + bias) * scale`, contiguous."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if bias is not None:
        return torch.add(bias.to(x.dtype) * scale, x, alpha=scale, out=out)
    return torch.mul(x, scale, out=out)


def _turned(x: Tensor, cos_Brt: Tensor, sin_Brt: Tensor) -> Tensor:
    """`x` [B, K, D, H/K, t], whose turned pairs change in place."""
    cos, sin = cos_Brt[:, None, :, None], sin_Brt[:, None, :, None]
    half = cos.shape[2]
    first, second = x[:, :, :half], x[:, :, half : 2 * half]
    turned = torch.addcmul(first * cos, second, sin, value=-1.0)
    second.mul_(cos).addcmul_(first, sin)
    first.copy_(turned)
    return x


def _softmax(scores: Tensor, mask: Tensor) -> Tensor:
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return wide.add_(mask).softmax(-1).to(scores.dtype)


def _softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    # The kernel computes in float32 at least and rounds once: narrow numbers need no copies.
    found: Tensor = torch._softmax_backward_data(grad, weights, -1, weights.dtype)
    return found
