"""Several processes on one road: the first runs the pipeline, the others do its stages with it.

Only the first decides, prints and writes. The others are told which stage begins, do those that
are shared in a directory of their own that is thrown away, and wait through the rest.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from nplus.config.online import step_of
from nplus.config.run import member_of
from nplus.distributed.topology import Topology
from nplus.runs import RunRoot, StageDir
from nplus.stages.tuning.settle import Settled

TOGETHER = (
    "pretrain",
    "sft",
    "sample",
    "dpo",
    "preference",
    "reward",
    "ppo",
    "reinforce",
    "online_dpo",
)
"""Stages whose work all processes share; the others are the first one's alone."""
STEPS_TOGETHER = ("sample", "train")
"""The same of the steps of the online loop."""
OnStage = Callable[[str, StageDir, str], None]


def shared(stage: str) -> bool:
    """Whether all processes share a stage's work."""
    step = step_of(stage)
    if step is not None:
        return step.kind in STEPS_TOGETHER
    return stage in TOGETHER or member_of(stage) is not None


def lead(topology: Topology, settled: Settled, out: Path) -> None:
    """Tell the others what is to be run and where they may write what they print."""
    if topology.world > 1:
        topology.collectives.broadcast((settled, RunRoot(out).new_logs()))


def telling(topology: Topology, on_stage: OnStage) -> OnStage:
    """`on_stage`, with the other processes told too."""
    if topology.world == 1:
        return on_stage

    def tell(name: str, where: StageDir, state: str) -> None:
        on_stage(name, where, state)
        topology.collectives.broadcast((name, where.path.absolute(), state))

    return tell


def dismiss(topology: Topology) -> None:
    """Let the others end: the road is done."""
    topology.collectives.broadcast(None)


@dataclass(slots=True)
class Follower:
    """A process that is not the first."""

    topology: Topology
    settled: Settled
    dirs: dict[str, StageDir] = field(default_factory=dict)

    @classmethod
    def of(cls, topology: Topology) -> Self:
        """Told by `lead`; what it prints from now on goes to a log of its own."""
        settled, logs = topology.collectives.broadcast(None)
        _print_to(logs / f"rank_{topology.rank}.log")
        return cls(topology, settled)

    def run(self, stages: Mapping[str, Callable[[StageDir], Any]]) -> None:
        """Do what the first process tells until it lets this one go."""
        while told := self.topology.collectives.broadcast(None):
            name, path, state = told
            self.dirs[name] = StageDir(path)
            if state == "run" and shared(name):
                with tempfile.TemporaryDirectory(prefix="nplus-") as scratch:
                    own = StageDir(Path(scratch), lead=path)
                    if self.dirs[name].journal_path.is_file():
                        shutil.copy(self.dirs[name].journal_path, own.journal_path)
                    stages[name](own)


def _print_to(log: Path) -> None:
    """Send standard output and error to a file, those of libraries too."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
