"""Signals: a training stage ends after its step, with a checkpoint; anything else ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class StoppedBySignal(KeyboardInterrupt):
    """A signal ended the run; `number` is which."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class Stop:
    """What a signal asked for, for whoever can end cleanly."""

    def __init__(self, tell: Callable[[str], None] = lambda note: None) -> None:
        self.wish: int = 0
        """The signal's number; 0 before one came."""
        self._deferring = False
        self._tell = tell

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear SIGINT and SIGTERM; only Python's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._heard) for number in NUMBERS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal waits in `wish`; a second one does not."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.wish or not self._deferring:
            raise StoppedBySignal(number)
        self.wish = number
        self._tell("stopping after this step, with a checkpoint; once more stops at once")
