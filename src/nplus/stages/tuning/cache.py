"""The tunings of a user's machines: `tune/KEY.json` each, in the user's cache directory."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from nplus.config.tuning import Machine, Tuning, read_tuning
from nplus.models.files import cache_dir
from nplus.records import InputError
from nplus.runs import key_of
from nplus.runs.storage import write_json

MEND = "run `nplus tune`"


def this_machine(device: str) -> Machine:
    """The machine with `device`, `cpu` or `cuda`."""
    gpu = device != "cpu"
    return Machine(
        cpu=_cpu(),
        capability=torch.backends.cpu.get_cpu_capability(),
        cores=cores(),
        torch=torch.__version__,
        device=torch.cuda.get_device_name() if gpu else device,
    )


def cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def path_of(machine: Machine) -> Path:
    """Where the tuning of a machine lies."""
    return _folder() / f"{key_of(machine.model_dump(mode='json'))[:16]}.json"


def write(tuning: Tuning) -> Path:
    """Keep a tuning, whole or not at all; where it lies.

    Raises InputError where the cache directory cannot be written.
    """
    require_writable()
    path = path_of(tuning.machine)
    write_json(path, tuning.model_dump(mode="json"))
    return path


def require_writable() -> None:
    """Make the directory of tunings; InputError where it cannot be written."""
    folder, problem = _folder(), "no permission"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return
    except OSError as error:
        problem = error.strerror or str(error)
    raise InputError(
        f"{folder}: cannot write there ({problem}); set XDG_CACHE_HOME to a directory of yours"
    )


def read(machine: Machine) -> tuple[Tuning | None, str]:
    """The tuning of a machine, or None and why there is none that can be used."""
    path = path_of(machine)
    try:
        found = read_tuning(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, _missing(machine)
    except (InputError, UnicodeDecodeError) as error:
        return None, f"{path}: ignored, it is damaged or old: {error}; {MEND}"
    except OSError as error:
        return None, f"{path}: ignored, cannot read it ({error.strerror}); {MEND}"
    if found.machine != machine:
        other = found.machine.differences(machine)
        return None, f"{path}: ignored, it is of another machine ({other}); {MEND}"
    return found, ""


def _missing(machine: Machine) -> str:
    """That there is no file, with what differs from the nearest machine that has one."""
    others = []
    for path in sorted(_folder().glob("*.json")):
        try:
            other = read_tuning(path.read_text(encoding="utf-8")).machine
        except (InputError, OSError, UnicodeDecodeError):
            continue
        others.append(other.differences(machine))
    if others:
        nearest = min(others, key=lambda text: text.count(" there, "))
        return f"this machine is not tuned, but another is ({nearest}); {MEND}"
    return f"this machine is not tuned; {MEND}"


def _folder() -> Path:
    return cache_dir() / "tune"


def _cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
