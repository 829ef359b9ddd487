"""Independent work side by side: a thread of Python for each, with its share of torch's threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def side_by_side(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """What `tasks` return, in order; the first exception is raised when all have ended. One task
    alone runs where it is called.

    Two small networks on one thread each are done sooner than one after the other on two: a matrix
    product is too small to be worth sharing, and what stands between products is not shared at all.
    The tasks must have no tensor in common that either writes, and draw no random numbers.
    """
    if len(tasks) == 1:
        return [tasks[0]()]
    threads = torch.get_num_threads()
    share = max(1, threads // len(tasks))

    def run(task: Callable[[], Result]) -> Result:
        torch.set_num_threads(share)  # of this thread
        return task()

    try:
        with ThreadPoolExecutor(len(tasks)) as pool:
            futures = [pool.submit(run, task) for task in tasks]
    finally:
        torch.set_num_threads(threads)
    return [future.result() for future in futures]
