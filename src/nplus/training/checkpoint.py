"""Checkpoints: safetensors and JSON, built aside, synced, renamed: no torn one is ever seen."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from nplus.runs import StageDir
from nplus.training.optim import Optimizer


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    modules: Mapping[str, torch.nn.Module],
    optimizers: Mapping[str, Optimizer],
    cursor: Mapping[str, Any],
) -> Path:
    """Write `folder/step_N`; what came before it is removed only after it stands."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{step:06d}"
    aside = folder / f".step_{step:06d}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name, module in modules.items():
        state = {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}
        save_file(state, aside / f"{name}.safetensors")
    for name, optimizer in optimizers.items():
        state = {key: value.detach().cpu().clone() for key, value in optimizer.tensors().items()}
        save_file(state, aside / f"{name}.optimizer.safetensors")
    (aside / "cursor.json").write_text(json.dumps({"step": step, **cursor}), encoding="utf-8")
    for file in aside.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())
    if target.exists():
        shutil.rmtree(target)
    aside.rename(target)
    # Unfinished folders are what killed processes left.
    for old in [*folder.glob("step_*"), *folder.glob(".step_*.tmp")]:
        if old != target:
            shutil.rmtree(old)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    found = sorted(p for p in folder.glob("step_*") if (p / "cursor.json").is_file())
    return found[-1] if found else None


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


def resume(
    where: StageDir, *, modules: Mapping[str, torch.nn.Module], optimizers: Mapping[str, Optimizer]
) -> int:
    """Load a stage's newest checkpoint, if any, and return how many steps are done.

    Journal lines after that step belong to the attempt that broke off, and go.
    """
    step = 0
    if found := latest_checkpoint(where.checkpoints):
        step = int(load_checkpoint(found, modules=modules, optimizers=optimizers)["step"])
        where.event("resumed", step=step)
    where.rewind_journal(step)
    return step
