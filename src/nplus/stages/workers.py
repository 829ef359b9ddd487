"""Where the cells of a grid run: in this process, or side by side in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nplus.config import RunConfig
from nplus.records import InputError
from nplus.runs import RunRoot

Runner = Callable[[RunConfig, Path], RunRoot]
"""Runs a config into a run directory, skipping what is complete there."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one cell went."""

    seconds: float
    error: str = ""
    """Empty when it came through."""
    traceback: str = ""
    bad_input: bool = False


def attempt(runner: Runner, config: RunConfig, where: Path) -> Attempt:
    """Run one cell; any exception but an interrupt becomes its outcome."""
    began = time.monotonic()
    try:
        runner(config, where)
    except Exception as raised:
        bad = isinstance(raised, InputError)
        return Attempt(
            time.monotonic() - began,
            str(raised) if bad else f"{type(raised).__name__}: {raised}",
            traceback.format_exc(),
            bad,
        )
    return Attempt(time.monotonic() - began)


def workers(jobs: int) -> Executor:
    """An executor of `jobs` processes that share the cores; one job needs no process.

    Each runs torch on its part of the cores, which a model of a few million parameters uses better
    than one process uses them all.
    """
    if jobs == 1:
        return _Here()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, spawn, initializer=_begin, initargs=(threads,))


class _Here(Executor):
    """Runs each task at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _begin(threads: int) -> None:
    """In a new worker: its threads, and an end when the grid's process ends."""
    import torch

    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
