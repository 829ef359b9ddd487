"""Ways to do the same work, timed in turns, so that a slow moment slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from nplus.config.tuning import Alternative

Times = dict[str, list[float]]
"""Seconds of each way, one a round."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often: `rounds`, or after `least` of them as many as `seconds` hold."""

    rounds: int = 5
    least: int = 3
    seconds: float = 1.5


def clocked(way: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """`way`, telling the seconds it takes, the device's included."""

    def run() -> float:
        _synchronise(device)
        began = time.perf_counter()
        way()
        _synchronise(device)
        return time.perf_counter() - began

    return run


def in_turns(ways: Mapping[str, Callable[[], float]], pace: Pace) -> Times:
    """Every way once a round, in one order and then in the other; a first round does not count.

    A way tells its own seconds.
    """
    for way in ways.values():
        way()
    times: Times = {name: [] for name in ways}
    began = time.perf_counter()
    for step in range(pace.rounds):
        if step >= pace.least and time.perf_counter() - began > pace.seconds:
            break
        for name in list(ways) if step % 2 == 0 else list(ways)[::-1]:
            times[name].append(ways[name]())
    return times


def compared(times: Mapping[str, Sequence[float]], default: str) -> tuple[Alternative, ...]:
    """Each way's median and range, and its ratio to the default, round by round."""
    found = []
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times[default], strict=True)]
        ratio = statistics.median(ratios)
        found.append(
            Alternative(
                name=name,
                seconds=statistics.median(seconds),
                low=min(seconds),
                high=max(seconds),
                ratio=ratio,
                spread=statistics.median(abs(r - ratio) for r in ratios),
            )
        )
    return tuple(found)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
