"""The same training however it is run: a table of final weights.

    python tests/chaos/trajectories.py [--write docs/trajectories.md]

One run of all stages in one process; then each of SFT, reward model, DPO, PPO, GRPO and online DPO
again from the same inputs: broken off after every step and resumed, on two and on four processes,
resumed on another number of them, and with other micro-batch sizes. The weights are the same to the
bit, or the table tells how far apart they end, and at which step a journalled number first differs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from victim import ONLINE, SETTINGS, Victim, untimed

from nplus.runs import RunRoot, StageDir

STAGES = ("sft", "reward", "dpo", *ONLINE)
STEPS = 8
FILES = {"ppo": ("model", "critic")}
BOUNDS = {"float64": (1e-12, 1e-12), "float32": (5e-5, 5e-5)}
"""Of weights and of journalled numbers, each relative to its size or to 1."""
EIGHT = {"batch_size": 8, "micro_batch_size": 8}
LONG = (
    "data.world.train=64",
    "sample.prompts=32",
    "label.pairs=64",
    *(f"{stage}.batch.{key}={value}" for stage in STAGES[:3] for key, value in EIGHT.items()),
    "ppo.total_episodes=64",
    "ppo.batch_size=8",
    "ppo.micro_batch_size=8",
    "ppo.num_mini_batches=1",
    "checkpoint.keep=100",
)


def settings(dtype: str) -> tuple[str, ...]:
    """The victim's, with eight steps a stage, in one precision throughout."""
    plain = (
        "compute.autocast=none",
        "compute.matmul_precision=highest",
        "model.attn_implementation=sdpa",
        f"model.dtype={dtype}",
    )
    return (*SETTINGS, *LONG, *plain)


@dataclass(frozen=True, slots=True)
class Came:
    """What a stage came to."""

    weights: dict[str, torch.Tensor]
    journal: list[dict[str, float]]

    @classmethod
    def of(cls, stage: str, where: StageDir) -> Came:
        weights = {}
        for part in FILES.get(stage, ("model",)):
            loaded = load_file(where.path / part / "model.safetensors")
            weights |= {f"{part}.{name}": tensor for name, tensor in loaded.items()}
        return cls(weights, [untimed(row["metrics"]) for row in where.journal_rows()])

    @property
    def hash(self) -> str:
        found = hashlib.sha256()
        for name in sorted(self.weights):
            found.update(name.encode() + self.weights[name].numpy().tobytes())
        return found.hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Line:
    """One way to run a stage, beside the plain one."""

    dtype: str
    stage: str
    how: str
    same: bool
    hash: str
    weights: float
    """Largest difference of a weight, relative to the weight or to 1."""
    first: int | None
    """The first step whose journalled numbers differ."""
    numbers: float
    """Largest difference of a journalled number, relative to it or to 1."""

    @property
    def holds(self) -> bool:
        weights, numbers = BOUNDS[self.dtype]
        return self.same or (self.weights <= weights and self.numbers <= numbers)


def compared(dtype: str, stage: str, how: str, came: Came, plain: Came) -> Line:
    def apart(a: float, b: float) -> float:
        return abs(a - b) / max(1.0, abs(b))

    if len(came.journal) != len(plain.journal):
        raise SystemExit(f"{stage} {how}: {len(came.journal)} journal lines")
    numbers, first = 0.0, None
    for step, (ours, theirs) in enumerate(zip(came.journal, plain.journal, strict=True), 1):
        worst = max(apart(ours[name], theirs[name]) for name in theirs)
        numbers = max(numbers, worst)
        first = step if worst and first is None else first
    weights = max(
        float(((came.weights[n] - w).abs() / w.abs().clamp(min=1.0)).max())
        for n, w in plain.weights.items()
    )
    same = came.hash == plain.hash
    return Line(dtype, stage, how, same, came.hash, weights, first, numbers)


def break_off(stage: str, at: int) -> Callable[[], None]:
    """A mine: the process dies when checkpoint `at` of `stage` stands."""

    def lay() -> None:
        from nplus.stages.keeping import Keeper

        original = Keeper.after

        def after(keeper: Keeper, step: int) -> None:
            original(keeper, step)
            if step == at and keeper.where.path.name.startswith(stage):
                os.kill(os.getpid(), 9)

        Keeper.after = after  # type: ignore[method-assign]

    return lay


class Ways:
    """Runs a stage again, each way in a copy of the plain run."""

    def __init__(self, work: Path, dtype: str) -> None:
        self.work, self.dtype, self.settings = work, dtype, settings(dtype)
        self.plain = work / f"plain-{dtype}"
        ending = Victim.start(self.plain, sets=self.settings).wait()
        if ending.how != "done":
            raise SystemExit(f"the plain run {ending.how}: {ending.what}")

    def came(self, stage: str, root: Path) -> Came:
        return Came.of(stage, RunRoot(root).stages()[stage])

    def again(self, stage: str, *sets: str, processes: int = 1) -> Came:
        """The stage once more from the same inputs."""
        out = self._copy(stage)
        self._finish(out, stage, sets, processes)
        return self._taken(stage, out)

    def resumed(self, stage: str, at: int, before: int = 1, after: int = 1) -> Came:
        """Broken off after step `at` on `before` processes, and resumed on `after`."""
        out = self._copy(stage)
        if before == 1:
            mine = break_off(stage, at)
            ending = Victim.start(out, mine, sets=self.settings, until=stage).wait()
            if ending.how != "killed":
                raise SystemExit(f"{stage} was to be killed at {at}: {ending}")
        else:
            self._finish(out, stage, (), before)
            where = RunRoot(out).stages()[stage]
            where.manifest_path.unlink()
            for later in range(at + 1, STEPS + 1):
                shutil.rmtree(where.checkpoints / f"step_{later:06d}")
        self._finish(out, stage, (), after)
        return self._taken(stage, out)

    def _copy(self, stage: str) -> Path:
        out = self.work / "again"
        shutil.copytree(self.plain, out)
        shutil.rmtree(RunRoot(out).stages()[stage].path)
        return out

    def _finish(self, out: Path, stage: str, sets: tuple[str, ...], processes: int) -> None:
        if processes == 1:
            ending = Victim.start(out, sets=(*self.settings, *sets), until=stage).wait()
            if ending.how != "done":
                raise SystemExit(f"{stage}: {ending.how} {ending.what}")
            return
        flags = [flag for each in (*self.settings, *sets) for flag in ("--set", each)]
        command = ["run", "toy:tiny", "--out", str(out), "--until", stage, *flags]
        found = subprocess.run(
            [sys.executable, "-m", "nplus", *command, "--processes", str(processes)],
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode:
            raise SystemExit(f"{stage} on {processes} processes:\n{found.stdout}{found.stderr}")

    def _taken(self, stage: str, out: Path) -> Came:
        came = self.came(stage, out)
        shutil.rmtree(out)
        return came

    def lines(self, stage: str) -> Iterator[Line]:
        plain = self.came(stage, self.plain)

        def line(how: str, came: Came) -> Line:
            return compared(self.dtype, stage, how, came, plain)

        yield line("one process, micro-batches of 8", plain)
        for at in range(1, STEPS + 1):
            yield line(f"resumed after step {at}", self.resumed(stage, at))
        key = f"{stage}.{'' if stage in ONLINE else 'batch.'}micro_batch_size"
        for size in (1, 2, 4):
            yield line(f"micro-batches of {size}", self.again(stage, f"{key}={size}"))
        for processes in (2, 4):
            yield line(f"{processes} processes", self.again(stage, processes=processes))
        yield line("step 4 on 1 process, then on 2", self.resumed(stage, 4, 1, 2))
        yield line("step 4 on 2 processes, then on 1", self.resumed(stage, 4, 2, 1))


def table(lines: list[Line]) -> str:
    """As Markdown."""
    rows = ["| | stage | how | weights | apart | first step | numbers apart |"]
    rows.append("|---|---|---|---|--:|--:|--:|")
    for line in lines:
        apart = "0" if line.same else f"{line.weights:.1e}"
        numbers = f"{line.numbers:.1e}" if line.numbers else "0"
        first = "" if line.first is None else str(line.first)
        head = f"| {line.dtype} | {line.stage} | {line.how} | `{line.hash}` |"
        rows.append(f"{head} {apart} | {first} | {numbers} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--dtypes", nargs="+", default=list(BOUNDS))
    args = parser.parse_args()
    began, lines = time.monotonic(), []
    for dtype in args.dtypes:
        with tempfile.TemporaryDirectory(prefix="nplus-trajectories-") as work:
            ways = Ways(Path(work), dtype)
            for stage in STAGES:
                for line in ways.lines(stage):
                    lines.append(line)
                    print(table([line]).splitlines()[-1], flush=True)
    broken = [line for line in lines if not line.holds]
    same = sum(line.same for line in lines)
    print(f"{len(lines)} ways, {same} the same to the bit, {len(broken)} beyond their bound")
    print(f"{time.monotonic() - began:.0f} s")
    if args.write:
        text = args.write.read_text(encoding="utf-8")
        head = text[: text.index("<!-- table -->")]
        args.write.write_text(f"{head}<!-- table -->\n\n{table(lines)}\n", encoding="utf-8")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
