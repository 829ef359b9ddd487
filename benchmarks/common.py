"""Two programs side by side: the same work, in turns, in one run.

A program is a file of `programs/`. It reads a JSON file, gets ready, checks that it computes what
the others compute, and then does the work once for every line it is sent, saying how long it took.
Programs run in environments of their own, one at a time, in turns, so that a noisy machine is noisy
to all of them alike.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PEERS = ROOT / ".venv-peers"
GIB = 1 << 30
TUNED_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(GIB),
    "MALLOC_TRIM_THRESHOLD_": str(GIB),
}
"""glibc keeps what was freed: what nplus does for itself, done for everyone."""


@dataclass
class Program:
    """A process that repeats one piece of work on demand."""

    name: str
    file: str
    spec: dict[str, Any]
    environment: str = ""
    """Directory under `.venv-peers`; empty for nplus's own."""
    variables: dict[str, str] = field(default_factory=dict)
    """What its process finds in the environment beside what all find."""
    times: list[dict[str, float]] = field(default_factory=list)
    ready: dict[str, Any] = field(default_factory=dict)
    ended: dict[str, Any] = field(default_factory=dict)

    def start(self, scratch: Path) -> None:
        python = PEERS / self.environment / "bin" / "python" if self.environment else None
        if python is not None and not python.exists():
            raise SystemExit(f"{python} is missing: `make bench` makes it")
        spec = scratch / f"{self.name.replace(' ', '-')}.json"
        spec.write_text(json.dumps(self.spec))
        quiet = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [str(python or sys.executable), str(ROOT / "benchmarks/programs" / self.file), spec],
            env=os.environ | TUNED_MALLOC | quiet | self.variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self._hear()

    def go(self) -> dict[str, float]:
        """Do the work once; `seconds` in all, and by phase."""
        self._say("go")
        return self._hear()

    def end(self) -> None:
        self._say("end")
        self.ended = self._hear()
        self.process.wait()

    def _say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # all else is what libraries print
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit(f"{self.name} ended early (exit code {self.process.wait()})")


def run(
    programs: list[Program],
    repeats: int,
    check: Callable[[], Any] = lambda: None,
    warmup: int = 1,
) -> None:
    """All programs ready, `check` of what they computed, then in turns; the first `warmup` rounds
    do not count."""
    with tempfile.TemporaryDirectory() as scratch:
        for program in programs:
            program.start(Path(scratch))
        check()
        for step in range(warmup + repeats):
            for program in programs:
                found = program.go()
                if step >= warmup:
                    program.times.append(found)
        for program in programs:
            program.end()


def summary(program: Program) -> dict[str, Any]:
    """Median and spread of each phase, in seconds."""
    names = list(program.times[0])
    return {
        "name": program.name,
        **{
            name: {
                "median": statistics.median(row[name] for row in program.times),
                "low": min(row[name] for row in program.times),
                "high": max(row[name] for row in program.times),
            }
            for name in names
        },
        **{k: v for k, v in program.ended.items() if k != "ended"},
    }


def trl_step(precision: str) -> dict[str, Any]:
    """The part of a TRL config that says how a step moves the weights: as nplus's."""
    return {
        "gradient_checkpointing": False,
        "bf16": precision == "bfloat16",
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "adam_epsilon": 1e-5,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }


def require_parity(programs: list[Program], bounds: Sequence[float]) -> dict[str, float]:
    """Relative differences of what the programs computed before they are timed, to the first.

    Ends the benchmark where one is above its program's bound: it would compare different work.
    """
    ours = programs[0].ready["parity"]
    found = {}
    for other, bound in zip(programs[1:], bounds[1:], strict=True):
        theirs = other.ready["parity"]
        for name, value in ours.items():
            scale = max(abs(value), abs(theirs[name]), 1e-6)
            difference = abs(value - theirs[name]) / scale
            found[f"{other.name}: {name}"] = difference
            if not difference <= bound:
                raise SystemExit(
                    f"{name}: {value:.6g} by {programs[0].name}, {theirs[name]:.6g} by "
                    f"{other.name}: not the same work"
                )
    return found


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch
    import transformers

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def keep(name: str, result: dict[str, Any]) -> Path:
    """Write a benchmark's result beside the others."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    return path
