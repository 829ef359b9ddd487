"""How this process computes: device, threads, precision, and where freed memory goes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel

from nplus.config import ComputeConfig, ModelConfig, RunConfig
from nplus.distributed.partner import CAN_FORK
from nplus.seeding import stream

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_GIB = 1 << 30
WORTH_SHARING = 2e9
"""Tokens times parameters of a step from which on a second process gains more than it costs."""


def device_name(cfg: ComputeConfig) -> str:
    """`cpu` or `cuda`: what `compute.device` comes to here."""
    if cfg.device != "auto":
        return cfg.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_device(cfg: ComputeConfig) -> torch.device:
    """The device of `compute.device`, with threads, precision and allocator set for the process.

    Raises ValueError where a setting is still `auto`: `stages/tuning/settle.py` is for these.
    """
    if "auto" in (cfg.threads, cfg.matmul_precision, cfg.allocator, cfg.side_by_side):
        raise ValueError(f"not settled: {cfg}")
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    torch.set_float32_matmul_precision(cfg.matmul_precision)
    name = device_name(cfg)
    if name == "cpu":
        set_allocator(cfg.allocator)
        # Read once, before the first matrix product: the cache of compiled kernels holds one for
        # every shape seen (1,024 of them by default), and generation sees a new shape every step.
        # With 64 of them steps of a few widths compile each other's anew, a fifth of the time.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    return torch.device(name)


def forward_precision(device: torch.device, autocast: str) -> AbstractContextManager[object]:
    """bf16 autocast when `autocast` says so; log-softmax stays in float32 (Detail B4)."""
    if autocast == "none":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def side_by_side(cfg: ComputeConfig, device: torch.device) -> bool:
    """Whether a second process may compute beside this one: on a CPU with threads for both."""
    on_cpu = device.type == "cpu" and torch.get_num_threads() > 1 and CAN_FORK
    return bool(cfg.side_by_side) and on_cpu


def in_halves(cfg: ComputeConfig, device: torch.device, model: ModelConfig, work: float) -> bool:
    """Whether two processes share `work`, tokens of a step times parameters: where there may be
    two, enough of it, and a forward draws nothing."""
    return side_by_side(cfg, device) and not model.dropout and work >= WORTH_SHARING


def for_training(network: PreTrainedModel, cfg: RunConfig) -> None:
    """Set the mode that dropout and activation checkpointing hang on, and the latter's."""
    checkpoints = cfg.compute.activation_checkpointing
    network.train(bool(cfg.model.dropout) or checkpoints)
    if checkpoints:
        newer = getattr(network, "activation_checkpointing_enable", None)
        (newer or network.gradient_checkpointing_enable)({"use_reentrant": False})


def seed_dropout(cfg: ModelConfig, seed: int, name: str, step: int, rank: int = 0) -> None:
    """Name what a step's dropout draws (Detail B1), so that a resumed run draws the same; each
    process draws its own."""
    if cfg.dropout:
        path = (name, step, rank) if rank else (name, step)
        torch.manual_seed(int(stream(seed, "dropout", *path).integers(1 << 62)))


def set_allocator(kind: str) -> None:
    """Tell glibc what to do with freed memory, for the rest of the process; elsewhere a no-op.

    A training step frees and asks for the same tensors over and over. `keep`: large blocks are
    reused instead of each being given back and faulted in again; `one_arena`: so are those of other
    threads, whose own memory would be given back all the same; `system`: nothing is changed.
    """
    if kind == "system":
        return
    mallopt = glibc_mallopt()
    if mallopt is None:
        return
    mallopt(_M_MMAP_THRESHOLD, _GIB)
    mallopt(_M_TRIM_THRESHOLD, _GIB)
    if kind == "one_arena":
        mallopt(_M_ARENA_MAX, 1)


def glibc_mallopt() -> Callable[[int, int], int] | None:
    """glibc's `mallopt`; None where the C library is another."""
    try:
        found: Callable[[int, int], int] = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return None
    return found
