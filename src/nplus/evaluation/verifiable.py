"""Verifiable rewards: a user's Python function as a Scorer, in a process of its own.

Time and memory are limited, and what the function does to its process cannot reach the run. It is
no sandbox: the function may read and write files as the user may.
"""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from nplus.records import InputError, Sample, StopError

WORKER = Path(__file__).with_name("worker.py")
START = 60.0
"""Seconds that importing the function's module may take."""


class ScoringError(StopError):
    """A verifiable reward gave no number."""


def source_of(function: str) -> Path | None:
    """The file of the module in MODULE:FUNCTION, found as the worker finds it but not imported."""
    where: Sequence[str] | None = [os.getcwd(), *sys.path[1:]]
    spec, name = None, ""
    for part in function.partition(":")[0].split("."):
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name, where)
        if spec is None:
            return None
        where = spec.submodule_search_locations
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


class Answers(NamedTuple):
    """One value a sample, and whether the function failed to give it."""

    values: list[float]
    failed: list[bool]


@dataclass(slots=True)
class FunctionScorer:
    """Scores by `MODULE:FUNCTION`, one response after the other.

    Of a process that forks, each has a worker of its own.
    """

    function: str
    timeout: float = 5.0
    """Seconds for one response."""
    memory_mib: int = 1024
    failed: float | None = None
    """The value where there is none; None raises ScoringError."""
    _workers: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One value a sample. Raises InputError for a function that cannot be imported."""
        return self.answers(samples).values

    def answers(self, samples: Sequence[Sample]) -> Answers:
        """The same, and which of them are `failed`."""
        found = [self._one(sample) for sample in samples]
        lacking = 0.0 if self.failed is None else self.failed
        values = [lacking if value is None else value for value in found]
        return Answers(values, [value is None for value in found])

    def close(self) -> None:
        """End this process's worker."""
        worker = self._workers.pop(os.getpid(), None)
        if worker is not None:
            _end(worker)

    def _one(self, sample: Sample) -> float | None:
        """Its value; None where there is none and `failed` takes its place."""
        worker = self._worker()
        row = {"query": sample.query, "response": sample.response, "id": sample.id}
        assert worker.stdin is not None
        try:
            worker.stdin.write(json.dumps(row).encode() + b"\n")
            worker.stdin.flush()
            answer = self._answer(worker, self.timeout)
        except BrokenPipeError:
            answer = None
        except TimeoutError:
            answer = {"error": f"took longer than {self.timeout:g} s"}
            self.close()
        why = ""
        if answer is None:
            why = "its process died"
            self.close()  # the next response gets a new one
        elif "error" in answer:
            why = answer["error"]
        elif not math.isfinite(answer["score"]):
            why = f"gave {answer['score']}, no finite number"
        else:
            return float(answer["score"])
        if self.failed is None:
            raise ScoringError(
                f"{self.function}: {why}, for a response to prompt {sample.id!r}; mend the "
                "function, raise scoring.timeout or scoring.memory_mib, or give such responses a "
                "value with scoring.failed=0"
            )
        return None

    def _worker(self) -> subprocess.Popen[bytes]:
        found = self._workers.get(os.getpid())
        if found is not None and found.poll() is None:
            return found
        worker = subprocess.Popen(
            [sys.executable, "-u", str(WORKER), self.function, str(self.memory_mib)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the run; the worker ends when the run does
        )
        try:
            answer = self._answer(worker, START) or {"error": "ends before it begins"}
        except TimeoutError:
            answer = {"error": f"does not start within {START:g} s"}
        if "error" in answer:
            _end(worker)
            why = answer["error"]
            raise InputError(
                f"scoring.terms: {self.function} {why}; name MODULE:FUNCTION of a module in the "
                "working directory or on PYTHONPATH"
            )
        self._workers[os.getpid()] = worker
        return worker

    @staticmethod
    def _answer(worker: subprocess.Popen[bytes], seconds: float) -> dict[str, Any] | None:
        """The worker's next line; None where it died. TimeoutError where it does not answer."""
        assert worker.stdout is not None
        ready, _, _ = select.select([worker.stdout], [], [], seconds)
        if not ready:
            raise TimeoutError
        line = worker.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End a worker, which kills what its function has started too."""
    worker.terminate()
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            pipe.close()
    worker.wait()


class Answering(Protocol):
    """Scores samples, and says where it has no value."""

    def answers(self, samples: Sequence[Sample]) -> Answers: ...


@dataclass(frozen=True, slots=True)
class Term:
    """A scorer in a sum: its weight, and the least value that costs nothing."""

    scorer: Answering
    weight: float = 1.0
    at_least: float | None = None
    penalty: float = 1.0

    def answers(self, samples: Sequence[Sample]) -> Answers:
        """What the scorer gives each sample."""
        return self.scorer.answers(samples)

    def add_to(self, totals: Sequence[float], values: Sequence[float]) -> list[float]:
        """`totals` with `values` of this term weighted, and less its penalties."""
        least = -math.inf if self.at_least is None else self.at_least
        return [
            total + self.weight * value - (self.penalty if value < least else 0.0)
            for total, value in zip(totals, values, strict=True)
        ]
