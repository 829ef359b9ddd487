"""The precision of training forwards."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def forward_precision(device: torch.device, autocast: str) -> AbstractContextManager[object]:
    """bf16 autocast when `autocast` says so; log-softmax stays in float32 (Detail B4)."""
    if autocast == "none":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
