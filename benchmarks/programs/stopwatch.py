"""A clock that stops for what is not part of the work, and the file that ends a piece."""

import json
import resource
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from serve import peak_rss_gib

TICK, GAP, IDLE = 0.1, 0.5, 0.1
"""Seconds between looks; a gap this long in which the process used less than this share of one
core's time is a stop from outside (a signal, a suspended machine), not work."""


class Stopwatch:
    """Runs from when it is made, but for what happens inside `stopped` and for stops from outside,
    whose sum is `interrupted`."""

    def __init__(self):
        self.lock = threading.Lock()
        self.seconds = self.cpu = self.interrupted = 0.0
        self.running = True
        self.last = now()
        threading.Thread(target=self._tick_on, daemon=True).start()

    def _tick_on(self):
        while True:
            time.sleep(TICK)
            self.tick()

    def tick(self):
        """Count what has passed since the last tick; returns the seconds so far."""
        with self.lock:
            at = now()
            wall, cpu = (a - b for a, b in zip(at, self.last, strict=True))
            self.last = at
            if self.running:
                if wall > GAP and cpu < IDLE * wall:
                    self.interrupted += wall
                else:
                    self.seconds += wall
                    self.cpu += cpu
            return self.seconds

    @contextmanager
    def stopped(self):
        self.tick()
        self.running = False
        try:
            yield
        finally:
            self.tick()
            self.running = True

    def told(self):
        """All of it; `cpu_seconds` over `seconds` is the threads that were busy."""
        seconds = self.tick()
        return {"clock": seconds, "cpu_seconds": self.cpu, "interrupted": self.interrupted}


def now():
    """Wall time, and processor time of all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), used.ru_utime + used.ru_stime


def finish(out, spec, watch, **found):
    """Write what a piece found, and from what; the file's presence says that the piece is whole."""
    path = Path(out) / "done.json"
    aside = path.with_suffix(".tmp")
    told = {**found, **watch.told(), "peak_rss_gib": peak_rss_gib()}
    aside.write_text(json.dumps({"spec": spec, **told}, indent=1))
    aside.replace(path)
