"""What to do with freed memory, measured in processes of their own: it is set once a process."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import partial

from nplus.config import ComputeConfig
from nplus.distributed.partner import CAN_FORK, Partner
from nplus.stages.compute import glibc_mallopt, resolve_device
from nplus.stages.tuning.choose import choose
from nplus.stages.tuning.probes import Bench
from nplus.stages.tuning.turns import Times, compared, in_turns
from nplus.stages.tuning.work import Loads, training

ALLOCATORS = ("one_arena", "keep", "system")
KEY = "compute.allocator"
MARGIN = 0.2
"""Two processes of one kind were up to 16% apart, however steady each is; and the default takes the
least memory."""
_steps: dict[str, Callable[[], object]] = {}
"""In a process that is measured: a training step of two networks, by what they are given."""


def measure_allocator(bench: Bench) -> None:
    """`compute.allocator`, by two networks that train side by side on short and on long rows."""
    default = ALLOCATORS[0]
    if glibc_mallopt() is None:
        bench.choice(KEY, default, default, "not glibc: nothing is set")
        return
    works = {f"two networks, {load.name}": load for load in (bench.loads.short, bench.loads.long)}
    bench.on_work("processes for two networks")
    found: dict[str, Times] = {}
    try:
        with ExitStack() as stack:
            pools = {name: stack.enter_context(_process(bench, name)) for name in ALLOCATORS}
            begun = [
                pool.submit(_train, load.name) for pool in pools.values() for load in works.values()
            ]
            for future in begun:  # all get ready at the same time
                future.result()
            for work, load in works.items():
                bench.on_work(work)
                ways = {name: partial(_asked, pool, load.name) for name, pool in pools.items()}
                found[work] = in_turns(ways, bench.pace)
    except BrokenProcessPool:
        bench.choice(KEY, default, default, "not measured: a process that was measured ended")
        return
    for work, times in found.items():
        bench.keep(KEY, work, times, default)
    cells = [compared(times, default) for times in found.values()]
    taken, why = choose(cells, default, margin=MARGIN)
    bench.choice(KEY, taken, default, why)


def _process(bench: Bench, allocator: str) -> ProcessPoolExecutor:
    settings = ComputeConfig(
        device="cpu",
        threads=bench.threads,
        matmul_precision=bench.precision,  # type: ignore[arg-type]
        allocator=allocator,  # type: ignore[arg-type]
    )
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=_begin, initargs=(settings, bench.loads))


def _begin(settings: ComputeConfig, loads: Loads) -> None:
    """In a new process: its allocator, and the networks."""
    device = resolve_device(settings)
    pair = [loads.short.net.build("batched", device) for _ in range(2)]
    for load in (loads.short, loads.long):
        one, other = (training(model, load) for model in pair)
        if CAN_FORK:
            _steps[load.name] = partial(Partner({"other": other}).beside, one, "other")
        else:
            _steps[load.name] = one


def _asked(pool: ProcessPoolExecutor, name: str) -> float:
    """Seconds of a step in the process of `pool`."""
    return pool.submit(_train, name).result()


def _train(name: str) -> float:
    """Seconds of a step of both networks."""
    began = time.perf_counter()
    _steps[name]()
    return time.perf_counter() - began
