"""Memory over a thousand PPO updates: it has to stay where it was.

    python benchmarks/memory.py

The stages before PPO run as the recipe `toy:tiny` has them, in a process of their own; then its
trainer does one update after the other, with the shapes that the world's posts and the ends of
responses give. Every ten updates it looks at the resident memory (RSS), at the bytes that the
allocator has handed out and not had back, and at the tensors alive. RSS alone would not do: what
was freed stays with the process, so that a leak can hide in it for long. Linux, by glibc 2.33.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import keep
from programs.serve import of_children
from rich.console import Console
from scipy import stats
from transformers.utils.logging import disable_progress_bar

from nplus.config.load import load_config
from nplus.recipes import recipe
from nplus.runs import RunRoot
from nplus.stages import ppo as stage
from nplus.stages.compute import resolve_device
from nplus.stages.context import Context

RECIPE = "toy:tiny"
MIB = 1 << 20
EVERY = 10
LIMITS = {"rss": 0.02, "allocated": 0.02, "tensors": 0.0}
"""How much more there may be at the end than half-way, as a share. Before that there is growth:
oneDNN keeps, for good, a kernel of every matrix product whose shape is new to it, 256 KiB each."""


class _Mallinfo2(ctypes.Structure):
    """What glibc tells of its heap; bytes in use are `uordblks` and, mapped apart, `hblkhd`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def handed_out() -> int:
    """Bytes that malloc has given and not got back."""
    mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return int(found.uordblks) + int(found.hblkhd)


def resident() -> int:
    """Bytes of this process and of those it has begun in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() + int(of_children("VmRSS") * (1 << 30))


def look(step: int) -> dict[str, float]:
    rss = resident()  # before the collector runs: as it is
    gc.collect()
    tensors = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
    return {"update": step, "rss": rss / MIB, "allocated": handed_out() / MIB, "tensors": tensors}


def prepare(out: Path, sets: list[str]) -> None:
    """Every stage before PPO, in another process, which takes its memory with it."""
    flags = [flag for each in sets for flag in ("--set", each)]
    command = [sys.executable, "-m", "nplus", "run", RECIPE, "--out", str(out), "--until", "reward"]
    subprocess.run([*command, *flags], check=True, stdout=subprocess.DEVNULL)


def train(out: Path, sets: list[str], updates: int) -> tuple[list[dict[str, float]], set[Any]]:
    """Looks at the memory of `updates` updates, and the shapes that were trained on."""
    config = load_config(recipe(RECIPE), sets=sets)
    ctx = Context(
        config=config,
        device=resolve_device(config.compute),
        console=Console(quiet=True),
        dirs=RunRoot(out).stages(),
    )
    disable_progress_bar()
    trainer = stage.Trainer.start(ctx, ctx.data.demonstrations("train"), ctx.gold())
    looks, shapes = [], set()
    for step in range(updates):
        found = trainer.update(step).rollout.generation
        shapes.add((found.prompts.tokens_BP.shape[1], found.tokens_BR.shape[1]))
        if (step + 1) % EVERY == 0:
            looks.append({**look(step + 1), "shapes": len(shapes)})
        if (step + 1) % (10 * EVERY) == 0:
            now = looks[-1]
            print(
                f"{step + 1} updates, {len(shapes)} shapes: {now['rss']:.0f} MiB resident, "
                f"{now['allocated']:.0f} MiB allocated",
                flush=True,
            )
    return looks, shapes


def growth(looks: list[dict[str, float]], name: str) -> dict[str, float]:
    """The second half: its end against its beginning, and MiB a thousand updates.

    The interval of the slope is the regression's at 95%. Looks resemble the ones before, so it is
    too narrow.
    """
    half = looks[len(looks) // 2 :]
    x, y = (np.array([row[key] for row in half]) for key in ("update", name))
    fit = stats.linregress(x, y)
    margin = float(np.nan_to_num(stats.t.ppf(0.975, len(x) - 2) * fit.stderr))
    begin, end = (float(np.median(part)) for part in (y[:5], y[-5:]))
    return {
        "at_half": begin,
        "at_end": end,
        "growth": end / begin - 1,
        "per_thousand": 1000 * float(fit.slope),
        "per_thousand_margin": 1000 * margin,
        "largest": float(max(row[name] for row in looks)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--set", nargs="*", default=[], help="settings of nplus, as after --set")
    args = parser.parse_args()
    if args.updates < 20 * EVERY:
        raise SystemExit(f"--updates {args.updates}: at least {20 * EVERY}, or halves say nothing")
    episodes = args.updates * recipe(RECIPE).ppo.batch_size
    sets = [f"ppo.total_episodes={episodes}", "ppo.num_ppo_epochs=1", *args.set]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        prepare(out, sets)
        began = time.perf_counter()
        looks, shapes = train(out, sets, args.updates)
        seconds = time.perf_counter() - began
    found = {name: growth(looks, name) for name in LIMITS}
    print(f"{args.updates} updates in {seconds:.0f} s, {len(shapes)} shapes of prompts, responses")
    for name, row in found.items():
        print(
            f"{name:<10} {row['at_half']:.1f} half-way, {row['at_end']:.1f} at the end "
            f"({100 * row['growth']:+.2f}%), {row['per_thousand']:+.2f} ± "
            f"{row['per_thousand_margin']:.2f} a thousand updates"
        )
    keep(
        "memory",
        {"updates": args.updates, "seconds": seconds, "shapes": len(shapes), "growth": found}
        | {"looks": looks},
    )
    grown = [name for name, limit in LIMITS.items() if found[name]["growth"] > limit]
    if grown:
        raise SystemExit(f"grew by more than its limit: {', '.join(grown)}")


if __name__ == "__main__":
    main()
