"""Start a command as several processes on this machine, as torchrun does, and see it through."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

GRACE = 10.0
"""Seconds that the first process has for its own last words once another one is gone."""


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `python -m nplus ARGUMENTS` in so many processes; the exit code of the first, or of the
    one that failed. Each has its share of the cores, unless OMP_NUM_THREADS says otherwise."""
    port = _free_port()
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "nplus", *arguments],
            env={
                "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(processes)
    ]
    with _passing_on(children):
        return _seen_through(children)


def _seen_through(children: Sequence[subprocess.Popen[bytes]]) -> int:
    first = children[0]
    try:
        while any(child.poll() is None for child in children):
            if any(child.poll() for child in children):
                deadline = time.monotonic() + GRACE
                while first.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.05)
                break
            time.sleep(0.05)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
    codes = [child.returncode for child in children]
    found = next((code for code in codes if code), 0)
    return found if found >= 0 else 128 - found


@contextmanager
def _passing_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Give the children SIGTERM and SIGINT; each ends cleanly, and then so does this process.

    A terminal's Ctrl-C reaches them by itself.
    """

    def on(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and os.isatty(0):
            return
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
