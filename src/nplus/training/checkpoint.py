"""Checkpoints: safetensors and JSON, built aside, synced, renamed: no torn one is ever seen.

`contents.json` holds every file's size and hash, so that a damaged one is seen too, and the one
before serves.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nplus.config import CheckpointConfig
from nplus.distributed.topology import Topology
from nplus.records import InputError, StorageError
from nplus.runs import StageDir
from nplus.runs.storage import damage, sync, write_contents, write_json
from nplus.training.optim import Optimizer

CONTENTS = "contents.json"


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    modules: Mapping[str, torch.nn.Module],
    optimizers: Mapping[str, Optimizer],
    cursor: Mapping[str, Any],
    keep: int = 1,
) -> Path:
    """Write `folder/step_N`; of those before it `keep - 1` stay, and all until it stands.

    Raises StorageError where the disk does not take it; nothing that stood is touched then.
    """
    target = folder / f"step_{step:06d}"
    aside = folder / f".step_{step:06d}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for name, module in modules.items():
            _save(module.state_dict(), aside / f"{name}.safetensors")
        for name, optimizer in optimizers.items():
            _save(optimizer.tensors(), aside / f"{name}.optimizer.safetensors")
        write_json(aside / "cursor.json", {"step": step, **cursor})
        for file in aside.iterdir():
            sync(file)
        write_contents(aside, CONTENTS)
        sync(aside)
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        last = latest_checkpoint(folder)
        stands = f"{last.name} stands" if last else "there is none before it"
        raise StorageError(
            f"{target}: the checkpoint could not be written ({error}); {stands}. Make room, then "
            "the same command goes on"
        ) from error
    # Unfinished folders are what killed processes left.
    spare = [old for old in sorted(folder.glob("step_*")) if old != target]
    for old in [*spare[: max(0, len(spare) - keep + 1)], *folder.glob(".step_*.tmp")]:
        shutil.rmtree(old)
    return target


def _save(state: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file({key: value.detach().cpu().clone() for key, value in state.items()}, path)


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that were finished, newest first, damaged ones among them."""
    found = [p for p in folder.glob("step_*") if p.name.removeprefix("step_").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step_")), reverse=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint, or None."""
    return next((path for path in all_checkpoints(folder) if not damage(path, CONTENTS)), None)


def load_checkpoint(
    path: Path, *, modules: Mapping[str, torch.nn.Module], optimizers: Mapping[str, Optimizer]
) -> dict[str, Any]:
    """Load everything `save_checkpoint` wrote in place; returns the cursor."""
    for name, module in modules.items():
        module.load_state_dict(load_file(path / f"{name}.safetensors"))
    for name, optimizer in optimizers.items():
        optimizer.load_tensors(load_file(path / f"{name}.optimizer.safetensors"))
    cursor: dict[str, Any] = json.loads((path / "cursor.json").read_text(encoding="utf-8"))
    return cursor


@dataclass(slots=True)
class Checkpoints:
    """A stage's checkpoints: when one is due, and which one an attempt begins with.

    All processes load; the first one writes.
    """

    where: StageDir
    modules: Mapping[str, torch.nn.Module]
    optimizers: Mapping[str, Optimizer]
    cfg: CheckpointConfig
    topology: Topology = field(default_factory=Topology)
    save_steps: int = 0
    """One after every so many steps too; 0: by time alone."""
    tell: Callable[[str], None] = lambda note: None
    """Told what a user should know of: a damaged checkpoint."""
    clock: Callable[[], float] = time.monotonic
    next: float = field(init=False)
    """When the next one is due by time."""

    def __post_init__(self) -> None:
        self.next = self.clock() + (self.cfg.seconds or 0.0)

    def resume(self) -> dict[str, Any]:
        """The cursor of the newest intact checkpoint, whose state is loaded; `{"step": 0}` where
        there is none at all.

        Journal lines after that step belong to the attempt that broke off, and go. Raises
        InputError where checkpoints are there and none is intact, and for a damaged journal.
        """
        found = self.topology.collectives.broadcast(self._intact() if self.topology.leads else None)
        cursor: dict[str, Any] = {"step": 0}
        if found is not None:
            cursor = load_checkpoint(found, modules=self.modules, optimizers=self.optimizers)
            if self.topology.leads:
                self.where.log.require(cursor.pop("journal", None))
            self.where.event("resumed", after=cursor["step"])
        self.where.log.rewind(cursor["step"])
        return cursor

    def _intact(self) -> Path | None:
        there = all_checkpoints(self.where.checkpoints)
        for path in there:
            if not (why := damage(path, CONTENTS)):
                return path
            self.where.event("damaged", checkpoint=path.name, why=why)
            self.tell(f"{path}: damaged ({why}); going back to the one before")
        if there:
            raise InputError(
                f"{self.where.checkpoints}: every checkpoint is damaged "
                f"({there[0].name}: {damage(there[0], CONTENTS)}); put back an intact one, or "
                "remove the folder, and the stage begins anew"
            )
        return None

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be made after `step` steps."""
        by_step = bool(self.save_steps) and step % self.save_steps == 0
        return by_step or (self.cfg.seconds is not None and self.clock() >= self.next)

    def save(self, step: int, **cursor: Any) -> None:
        """Make one after `step` steps, in the first process."""
        if self.topology.leads:
            began = self.clock()
            save_checkpoint(
                self.where.checkpoints,
                step,
                modules=self.modules,
                optimizers=self.optimizers,
                cursor={"journal": self.where.log.mark(), **cursor},
                keep=self.cfg.keep,
            )
            spent = self.clock() - began
            pause = max(self.cfg.seconds or 0.0, spent / self.cfg.share)
            self.next = self.clock() + pause
