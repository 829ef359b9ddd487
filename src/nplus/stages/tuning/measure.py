"""Measure this machine: every probe once, in an order in which each builds on those before."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import torch

from nplus.config import ComputeConfig
from nplus.config.tuning import Tuning
from nplus.records import InputError
from nplus.stages.compute import resolve_device
from nplus.stages.tuning.allocator import measure_allocator
from nplus.stages.tuning.cache import cores, this_machine
from nplus.stages.tuning.probes import (
    Bench,
    measure_attention,
    measure_autocast,
    measure_precision,
    measure_rows,
    measure_threads,
)
from nplus.stages.tuning.turns import Pace
from nplus.stages.tuning.work import LOADS, Loads

PROBES: dict[str, tuple[Callable[[Bench], None], ...]] = {
    "cpu": (
        measure_precision,
        measure_threads,
        measure_attention,
        measure_autocast,
        measure_rows,
        measure_allocator,
    ),
    # Threads and the allocator are a CPU's.
    "cuda": (measure_precision, measure_attention, measure_autocast, measure_rows),
}


def require_device(asked: str) -> str:
    """`cpu` or `cuda`, of these and `auto`. Raises InputError where there is no CUDA device."""
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise InputError("--device cuda: torch finds no CUDA device here; take --device cpu")
    return asked if asked != "auto" else ("cuda" if there else "cpu")


def measure(
    device: str,
    *,
    loads: Loads | None = None,
    pace: Pace | None = None,
    on_work: Callable[[str], None] = lambda work: None,
) -> Tuning:
    """Measure `cpu` or `cuda`; `on_work` is told of each piece of work before it is timed.

    Threads and precision of the process are as before when it ends.
    """
    began = time.monotonic()
    # Ways take turns: each would evict the others' kernels from the small cache that runs have.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1024")
    with _restored():
        own = torch.get_num_threads()
        bench = Bench(
            resolve_device(ComputeConfig(device=device)),  # type: ignore[arg-type]
            loads or LOADS[device],
            pace=pace or Pace(),
            on_work=on_work,
            own_threads=own,
            threads=own,
            cores=cores(),
        )
        for probe in PROBES[device]:
            probe(bench)
    return Tuning(
        machine=this_machine(device),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 1),
        measurements=tuple(bench.measurements),
        errors=bench.errors,
        choices=tuple(bench.choices),
    )


@contextmanager
def _restored() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
