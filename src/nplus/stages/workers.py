"""Where the cells of a grid run: in this process, or side by side in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
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
    stages: Mapping[str, str] = field(default_factory=dict)
    """Stage name to directory name, of the stages that the cell reached."""
    error: str = ""
    """Empty when it came through."""
    traceback: str = ""
    bad_input: bool = False


def attempt(runner: Runner, config: RunConfig, where: Path) -> Attempt:
    """Run one cell; any exception but an interrupt becomes its outcome."""
    began = time.monotonic()
    try:
        root = runner(config, where)
    except Exception as raised:
        bad = isinstance(raised, InputError)
        return Attempt(
            time.monotonic() - began,
            _reached(RunRoot(where), config),
            str(raised) if bad else f"{type(raised).__name__}: {raised}",
            traceback.format_exc(),
            bad,
        )
    return Attempt(time.monotonic() - began, dict(root.index()["stages"]))


def _reached(root: RunRoot, config: RunConfig) -> dict[str, str]:
    """The stages that a failed run of `config` got to, if it got so far as to say so."""
    if not root.index_path.is_file():
        return {}
    index = root.index()  # of another cell of the seed, where this one failed at once
    return dict(index["stages"]) if index["config"] == config.model_dump(mode="json") else {}


@contextlib.contextmanager
def workers(jobs: int) -> Iterator[Executor]:
    """An executor of `jobs` processes that share the cores; one job needs no process.

    Each runs torch on its part of the cores, which a model of a few million parameters uses better
    than one process uses them all. An exception in the block ends what is running.
    """
    if jobs == 1:
        yield _Here()
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    before = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(threads,)
    )
    try:
        yield executor
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


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
