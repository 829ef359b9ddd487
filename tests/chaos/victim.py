"""A small whole run in a process of its own, which can be killed; and what it must come to."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nplus.config import RunConfig
from nplus.config.load import load_config
from nplus.recipes import recipe
from nplus.records import InputError, StopError, StorageError
from nplus.runs import RunRoot
from nplus.stages.road import run_road

ONLINE = ("ppo", "reinforce", "online_dpo")
TRAINED = ("pretrain", "sft", "dpo", "preference", "reward", *ONLINE)
TOLD = (InputError, StopError, StorageError)
"""What a run may end with: one message."""
SETTINGS = (
    "data.max_query_tokens=320",
    "data.max_response_tokens=48",
    "data.world.pretrain=32",
    "data.world.train=32",
    "data.world.valid=8",
    "data.world.test=6",
    "data.world.heldout=4",
    "data.world.news=2",
    "tokenizer.vocab_size=800",
    "compute.threads=1",
    "pretrain.batch.batch_size=8",
    "pretrain.batch.micro_batch_size=8",
    "pretrain.epochs=1",
    "pretrain.save_steps=1",
    "sft.batch.batch_size=8",
    "sft.batch.micro_batch_size=8",
    "sft.save_steps=1",
    "sample.prompts=8",
    "sample.valid_prompts=4",
    "sample.temperatures=[0.7,1.0]",
    "sample.response_length=48",
    "label.pairs=16",
    "label.valid_pairs=12",
    "dpo.optim.learning_rate=1e-4",
    "dpo.batch.batch_size=4",
    "dpo.batch.micro_batch_size=4",
    "dpo.save_steps=1",
    "preference.optim.learning_rate=1e-4",
    "preference.batch.batch_size=4",
    "preference.batch.micro_batch_size=4",
    "preference.save_steps=1",
    "reward.batch.batch_size=4",
    "reward.batch.micro_batch_size=4",
    "reward.normalise_rows=16",
    "reward.save_steps=1",
    "ppo.total_episodes=16",
    "ppo.batch_size=4",
    "ppo.micro_batch_size=2",
    "ppo.rollout_micro_batch_size=4",
    "ppo.save_steps=1",
    "ppo.sampling.response_length=48",
    # What is not named here is as in PPO.
    "reinforce.algorithm=grpo",
    "reinforce.num_generations=2",
    "reinforce.missing_eos_penalty=null",
    "reinforce.kl_target=1",
    "reinforce.kl_horizon=16",
    "reinforce.save_steps=1",
    "online_dpo.num_generations=2",
    "online_dpo.missing_eos_penalty=null",
    "online_dpo.save_steps=1",
    "evaluate.max_rows=4",
    "evaluate.response_length=48",
    "evaluate.temperatures=[0.7]",
)
LOOP = (
    *SETTINGS,
    "online.rounds=3",
    "online.prompts=8",
    "online.samples=4",
    "online.response_length=48",
    "online.micro_batch_size=16",
    "online.piece=3",
    "online.scorer=ensemble",
    "online.pairing=thompson",
    "reward.members=2",
    "online.train.batch.batch_size=4",
    "online.train.batch.micro_batch_size=2",
    "online.train.optim.learning_rate=1e-4",
    "online.train.save_steps=1",
    "evaluate.temperatures=[0.01,0.7]",
)
"""The same with three rounds of the online loop, a few prompts a piece."""


def config(sets: Sequence[str]) -> RunConfig:
    """All stages at a tenth of a second a step, with a checkpoint after every step."""
    return load_config(recipe("toy:tiny"), sets=sets)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a victim ended: `done`, `told` (one message), `crashed` (a traceback) or `killed`."""

    how: str
    what: str = ""


@dataclass(slots=True)
class Victim:
    """A process that does the whole run in `out`."""

    pid: int
    pipe: Connection

    @classmethod
    def start(
        cls,
        out: Path,
        before: Callable[[], None] = lambda: None,
        *,
        sets: Sequence[str],
        until: str | None = None,
    ) -> Victim:
        """`before` is called there first: a place to lay mines."""
        ours, theirs = Pipe(duplex=False)
        pid = os.fork()
        if pid == 0:
            _be_one(theirs, lambda: _run(out, before, config(sets), until))
        theirs.close()
        return cls(pid, ours)

    def wait(self, seconds: float | None = None) -> Ending:
        """Its ending; after `seconds` it is killed."""
        there = self.pipe.poll(seconds) if seconds is not None else True
        if not there:
            os.kill(self.pid, signal.SIGKILL)
        try:
            found: Ending = pickle.loads(self.pipe.recv_bytes())
        except EOFError:
            found = Ending("killed")
        os.waitpid(self.pid, 0)
        self.pipe.close()
        return found


def _run(out: Path, before: Callable[[], None], cfg: RunConfig, until: str | None) -> None:
    torch.set_num_threads(1)
    before()
    run_road(cfg, out, until=until, console=Console(quiet=True))


def _be_one(pipe: Connection, work: Callable[[], None]) -> None:
    def go() -> None:
        try:
            work()
            ending = Ending("done")
        except TOLD as error:
            ending = Ending("told", str(error))
        except BaseException as error:
            import traceback

            ending = Ending("crashed", f"{error!r}\n{traceback.format_exc()}")
        pipe.send_bytes(pickle.dumps(ending))

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    # OpenMP's threads were not forked, and only a thread of our own knows that they are gone.
    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    os._exit(0)


def essence(out: Path) -> dict[str, str]:
    """What two runs must agree in, by name: hashes of every artefact, and of the journals' metrics
    with the steps they stand at, times left out."""
    found: dict[str, str] = {}
    for name, where in RunRoot(out).stages().items():
        manifest = where.manifest()
        assert manifest is not None
        assert manifest.status == "complete", name
        for one in manifest.outputs:
            if one["path"] not in ("journal.jsonl", "data_check.json"):
                found[f"{name}/{one['path']}"] = one["sha256"]
        found[f"{name}/results"] = _hash(untimed(manifest.results))
        rows = [(row["step"], untimed(row["metrics"])) for row in where.journal_rows()]
        found[f"{name}/journal"] = _hash(rows)
    return found


def untimed(tree: Any) -> Any:
    """Without seconds and what is divided by them."""
    if isinstance(tree, Mapping):
        times = ("seconds", "tokens_per_second")
        return {k: untimed(v) for k, v in tree.items() if k not in times}
    return [untimed(x) for x in tree] if isinstance(tree, list | tuple) else tree


def _hash(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def at_sync(number: int) -> Callable[[], None]:
    """A mine: the process dies before its file system call `number` of those that make a file
    last, which is inside a checkpoint or a manifest more often than not."""

    def lay() -> None:
        original, left = os.fsync, [number]

        def fsync(handle: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            original(handle)

        os.fsync = fsync

    return lay


def at_half_a_file(number: int) -> Callable[[], None]:
    """A mine: the process dies when half of a checkpoint's file `number` is written."""

    def lay() -> None:
        from nplus.training import checkpoint

        original, left = checkpoint.save_file, [number]

        def save_file(state: Mapping[str, torch.Tensor], path: Path) -> None:
            original(state, path)
            left[0] -= 1
            if left[0] < 0:
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.save_file = save_file

    return lay


def small_files(size: int) -> Callable[[], None]:
    """A disk that takes no file of more than `size` bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def clock_backwards() -> None:
    """Every look at the clock is an hour before the last."""
    now = [time.time()]

    def earlier() -> float:
        now[0] -= 3600.0
        return now[0]

    time.time = earlier
