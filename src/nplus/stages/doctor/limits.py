"""What this process may use: memory and cores, as the machine and its control groups have it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: what there is at all, and what is free now."""

    total: int
    free: int


def memory(proc: Path = PROC, cgroup: Path = CGROUP) -> Memory | None:
    """The least that machine and control groups allow; None where the system does not say."""
    whole = _meminfo(proc / "meminfo")
    if whole is None:
        return None
    total, free = whole.total, whole.free
    for folder in _groups(proc, cgroup, "memory"):
        group = _group_memory(folder)
        if group is not None and group.total < total:
            total, free = group.total, min(free, group.free)
    return Memory(total, free)


def cores(proc: Path = PROC, cgroup: Path = CGROUP) -> float:
    """Cores that this process may use, a quota's share of one included."""
    if hasattr(os, "sched_getaffinity"):
        least = float(len(os.sched_getaffinity(0)))
    else:
        least = float(os.cpu_count() or 1)
    for folder in _groups(proc, cgroup, "cpu"):
        least = min(least, _quota(folder))
    return least


def _meminfo(file: Path) -> Memory | None:
    fields: dict[str, int] = {}
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            name, _, rest = line.partition(":")
            fields[name] = int(rest.split()[0]) << 10
        return Memory(fields["MemTotal"], fields["MemAvailable"])
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _groups(proc: Path, cgroup: Path, controller: str) -> Iterator[Path]:
    """This process's folder of a controller, and all above it: each may set a limit."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = cgroup / controller if names else cgroup
        # Inside a container the path may be the host's, and only the root is there.
        folder = root / path.lstrip("/")
        while True:
            if folder.is_dir():
                yield folder
            if folder == root or root not in folder.parents:
                break
            folder = folder.parent


def _number(file: Path) -> int | None:
    """The number in a file; None where it is missing or says `max`."""
    try:
        return int(file.read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _group_memory(folder: Path) -> Memory | None:
    """Version 2, else version 1; the page cache that can go counts as free."""
    for limit_name, used_name, cache_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is None or used is None:
            continue
        cache = 0
        try:
            for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines():
                name, _, value = line.partition(" ")
                cache = int(value) if name == cache_name else cache
        except (OSError, ValueError):
            cache = 0
        return Memory(limit, max(0, limit - max(0, used - cache)))
    return None


def _quota(folder: Path) -> float:
    """Cores of a CPU quota, infinite where there is none."""
    try:
        words = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return math.inf if words[0] == "max" else int(words[0]) / int(words[1])
    except (OSError, ValueError, IndexError):
        pass
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else math.inf
