"""Attention as two batched matrix products around a softmax: `attn_implementation="batched"`.

The same arithmetic as transformers' `eager`, with fewer passes over the scores: the scale is on the
queries, the mask is added in place, and heads that share keys are one product. On a CPU it is about
twice as fast as `eager` and, at short lengths, several times as fast as `sdpa`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "batched"
_UNKNOWN = ("softcap", "s_aux", "sinks", "position_bias", "head_mask")
"""What some architectures add to attention, and this does not do."""


def batched_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """[B, T, H, D] from queries [B, H, T, D] and keys and values [B, K, S, D], K dividing H.

    `attention_mask` [B, 1, T, S] is added to the scores. Raises ValueError for an architecture
    whose attention does more; `eager` is for those.
    """
    if extra := [name for name in _UNKNOWN if options.get(name) is not None]:
        raise ValueError(
            f"{type(module).__name__} attends with {', '.join(extra)}, which {NAME!r} does not "
            "know; set model.attn_implementation=eager"
        )
    batch, heads, length, width = query.shape
    groups, seen = key.shape[1], key.shape[2]
    scale = width**-0.5 if scaling is None else scaling
    scaled_NTD = (query * scale).reshape(batch * groups, -1, width)
    keys_NSD, values_NSD = (x.reshape(batch * groups, seen, width) for x in (key, value))
    scores_NTS = torch.bmm(scaled_NTD, keys_NSD.transpose(1, 2))
    if attention_mask is not None:
        mask_B11TS = attention_mask[:, :, None, :, :seen]
        if mask_B11TS.dtype != scores_NTS.dtype:  # autocast: float32's lowest would be -inf
            lowest = torch.finfo(scores_NTS.dtype).min
            mask_B11TS = mask_B11TS.clamp(min=lowest).to(scores_NTS.dtype)
        scores_NTS.view(batch, groups, heads // groups, length, seen).add_(mask_B11TS)
    weights_NTS = scores_NTS.softmax(-1)
    if dropout:
        weights_NTS = torch.nn.functional.dropout(weights_NTS, dropout, training=module.training)
    mixed_NTD = torch.bmm(weights_NTS, values_NSD)
    return mixed_NTD.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(NAME, batched_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, eager_mask)
