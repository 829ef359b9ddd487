"""The precision of training forwards."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from nplus.stages.context import Context


def forward_precision(ctx: Context, autocast: str | None = None) -> AbstractContextManager[object]:
    """bf16 autocast where `autocast`, or else `compute.autocast`, asks for it.

    Log-softmax stays in float32 (Detail B4).
    """
    if (autocast or ctx.config.compute.autocast) == "none":
        return nullcontext()
    return torch.autocast(ctx.device.type, dtype=torch.bfloat16)
