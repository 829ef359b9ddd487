"""How this process computes: device, threads, precision, and where freed memory goes."""

from __future__ import annotations

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext

import torch

from nplus.config import ComputeConfig, ModelConfig
from nplus.seeding import stream

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_GIB = 1 << 30


def resolve_device(cfg: ComputeConfig) -> torch.device:
    """The device of `compute.device`, with threads, precision and allocator set for the process."""
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    torch.set_float32_matmul_precision(cfg.matmul_precision)
    name = cfg.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        _keep_freed_memory()
        # Read once, before the first matrix product: the cache of compiled kernels holds one for
        # every shape seen (1,024 of them by default), and generation sees a new shape every step.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    return torch.device(name)


def forward_precision(device: torch.device, autocast: str) -> AbstractContextManager[object]:
    """bf16 autocast when `autocast` says so; log-softmax stays in float32 (Detail B4)."""
    if autocast == "none":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def two_at_a_time(cfg: ComputeConfig, device: torch.device, model: ModelConfig) -> bool:
    """Whether work that can be parted goes to two threads: on a CPU's, and drawing no dropout."""
    on_cpu = device.type == "cpu" and torch.get_num_threads() > 1
    return cfg.side_by_side and on_cpu and not model.dropout


def seed_dropout(cfg: ModelConfig, seed: int, name: str, step: int) -> None:
    """Name what a step's dropout draws (Detail B1), so that a resumed run draws the same."""
    if cfg.dropout:
        torch.manual_seed(int(stream(seed, "dropout", name, step).integers(1 << 62)))


def _keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks instead of giving each back and faulting it in again.

    A training step frees and asks for the same tensors over and over; elsewhere a no-op.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _GIB)
    mallopt(_M_TRIM_THRESHOLD, _GIB)
    mallopt(_M_ARENA_MAX, 1)  # other threads' own memory would be given back all the same
