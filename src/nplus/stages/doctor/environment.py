"""The machine against what a run is estimated to need: versions, threads, memory, disk."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from nplus.config import RunConfig
from nplus.config.memory import BYTES, memory_plan
from nplus.config.shapes import Shape, shape_of
from nplus.findings import Finding, found
from nplus.stages.doctor.limits import Memory, cores, memory

GIB = 1 << 30
PROCESS = 1 * GIB
"""Python, torch and transformers themselves; on CUDA its context."""
DATA = 1 << 28
"""Records, journals, samples and the report, generously."""
SUPPORTED = {
    "python": ((3, 11), None),
    "torch": ((2, 9), None),
    "transformers": ((5, 0), (6,)),
}
"""The first version that nplus runs with, and the first that it does not know."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run meets. `memory` is the device's; None where it is not known."""

    versions: dict[str, str]
    device: str
    threads: int
    cores: float
    precision: str
    memory: Memory | None
    disk_free: int
    disk: Path


def this_machine(device: str, where: Path) -> Machine:
    """This one, for a run whose directory is `where`."""
    packages = ("torch", "transformers", "tokenizers", "nplus")
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in packages}
    there = where.absolute()
    while not there.exists():
        there = there.parent
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        room: Memory | None = Memory(total, free)
    else:
        room = memory()
    return Machine(
        versions=versions,
        device=device,
        threads=torch.get_num_threads(),
        cores=cores(),
        precision=torch.get_float32_matmul_precision(),
        memory=room,
        disk_free=shutil.disk_usage(there).free,
        disk=there,
    )


def facts(machine: Machine) -> Iterator[tuple[str, str]]:
    """`(name, value)` of what there is."""
    yield "versions", ", ".join(f"{name} {text}" for name, text in machine.versions.items())
    yield "device", machine.device
    yield "threads", f"{machine.threads} of torch on {machine.cores:g} cores"
    yield "products", f"float32 at precision {machine.precision!r}, {_hardware(machine.device)}"
    if machine.memory is not None:
        yield (
            "memory",
            f"{machine.memory.free / GIB:.1f} GiB free of {machine.memory.total / GIB:.1f}",
        )
    yield "disk", f"{machine.disk_free / GIB:.1f} GiB free at {machine.disk}"


def _hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 {'' if native else 'not '}native"


def machine_findings(machine: Machine) -> Iterator[Finding]:
    """Of the machine alone."""
    for name, (first, unknown) in SUPPORTED.items():
        text = machine.versions.get(name, "")
        version = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
        if version < first or (unknown is not None and version >= unknown):
            wanted = f"at least {'.'.join(map(str, first))}"
            if unknown is not None:
                wanted += f" and below {'.'.join(map(str, unknown))}"
            yield found("version_unsupported", f"{name} is {text or 'not there'}, wanted {wanted}")
    if machine.device == "cpu" and machine.threads > max(1.0, machine.cores):
        yield found(
            "threads_over_quota",
            f"{machine.threads} threads on {machine.cores:g} cores",
            threads=machine.threads,
            cores=machine.cores,
        )


def need_findings(machine: Machine, config: RunConfig, stages: Sequence[str]) -> Iterator[Finding]:
    """What `stages` of a run are estimated to need, against what there is."""
    shape = shape_of(config)
    if shape is None:
        return
    plan = {name: need for name, need in memory_plan(config, shape).items() if name in stages}
    if plan and machine.memory is not None:
        name = max(plan, key=lambda stage: plan[stage].total)
        need, room = plan[name].total + PROCESS, machine.memory
        if need > room.free:
            yield found(
                "memory_lacking" if need > room.total else "memory_short",
                f"{name} needs about {need / GIB:.1f} GiB; {room.free / GIB:.1f} GiB of "
                f"{room.total / GIB:.1f} are free on {machine.device}",
                need_gib=need / GIB,
                free_gib=room.free / GIB,
                total_gib=room.total / GIB,
            )
    disk = disk_need(config, shape, stages)
    if disk > machine.disk_free:
        yield found(
            "disk_short",
            f"models and checkpoints need about {disk / GIB:.1f} GiB; "
            f"{machine.disk_free / GIB:.1f} GiB are free at {machine.disk}",
            need_gib=disk / GIB,
            free_gib=machine.disk_free / GIB,
        )


def disk_need(config: RunConfig, shape: Shape, stages: Sequence[str]) -> float:
    """Bytes that `stages` leave on disk: what they save, and the last checkpoint of each.

    A checkpoint holds weights and Adam's two moments; the former one stays until it stands.
    """
    size = BYTES[config.model.dtype]
    models = {
        "pretrain": shape.parameters,
        "sft": shape.parameters,
        "dpo": shape.parameters,
        "reward": shape.scalar_parameters,
        "ppo": shape.parameters + shape.scalar_parameters,
        "reinforce": shape.parameters,
        "online_dpo": shape.parameters,
    }
    kept, largest = float(DATA), 0.0
    for name, parameters in models.items():
        part = getattr(config, name)
        if name not in stages or part is None:
            continue
        checkpoint = 3.0 * parameters * size if part.save_steps else 0.0
        kept += parameters * size + checkpoint
        largest = max(largest, checkpoint)
    return kept + largest
