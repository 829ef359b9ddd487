"""The chaos suite: kills, damaged files and full disks; every run must come to the same end.

    python tests/chaos/suite.py [--seed 1] [--kills 100] [--online]

A run of all stages (about 0.15M parameters, a checkpoint after every step) is killed at random
moments and inside the writing of checkpoints, and goes on until it is done; files are truncated,
lose a bit or vanish; disks are full or may not be written to; two runs want one directory; the
clock goes backwards. Afterwards weights, journals and results are those of the run that nothing
happened to, to the bit, or one message says what is damaged and putting it right leads there.

With `--online` the run has three rounds of the online loop, and is killed in these alone: weights,
responses, scores and ledgers must come out the same.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from damage import KINDS, Damage, places
from victim import (
    LOOP,
    SETTINGS,
    TRAINED,
    Victim,
    at_half_a_file,
    at_sync,
    clock_backwards,
    essence,
    small_files,
)

from nplus.runs import RunRoot

ROAD = (*SETTINGS, "online_dpo.max_staleness=1")
"""One of the online stages has a rollout under way at every checkpoint."""
MOST_KILLS = 12
"""Of one run, before it is left to finish."""


@dataclass(slots=True)
class Suite:
    """Counts, and the run that nothing happened to."""

    work: Path
    dice: random.Random
    sets: Sequence[str] = ROAD
    begins_after: str | None = None
    """The last stage that kills leave alone; None spares none."""
    ends_with: str | None = None
    """The last stage of a run; None is the recipe's."""
    whole: Path = field(init=False)
    seconds: float = field(init=False)
    expected: dict[str, str] = field(init=False)
    kills: Counter[str] = field(default_factory=Counter)
    """By how, and by the stage that was at work."""
    corruptions: int = 0
    messages: int = 0
    """Corruptions that ended in a message; the others were got over."""
    resumes: int = 0
    mismatches: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.whole = self.work / "whole"
        if self.begins_after:
            self.start(self.head, until=self.begins_after).wait()
            shutil.copytree(self.head, self.whole)
        began = time.monotonic()
        ending = self.start(self.whole).wait()
        if ending.how != "done":
            raise SystemExit(f"the run that nothing happens to {ending.how}: {ending.what}")
        self.seconds = time.monotonic() - began
        self.expected = essence(self.whole)

    @property
    def head(self) -> Path:
        """What a run has done when kills begin."""
        return self.work / "head"

    def start(
        self, out: Path, before: Callable[[], None] = lambda: None, until: str | None = None
    ) -> Victim:
        return Victim.start(out, before, sets=self.sets, until=until or self.ends_with)

    def must_be_whole(self, out: Path, what: str) -> None:
        """Compare a finished run with the one that nothing happened to."""
        found = essence(out)
        wrong = [name for name in self.expected if found.get(name) != self.expected[name]]
        if wrong or found.keys() != self.expected.keys():
            self.mismatches.append(f"{what}: {wrong or found.keys() ^ self.expected.keys()}")

    def must_finish(self, out: Path, what: str) -> None:
        """Let the run go on; it must end well."""
        self.resumes += 1
        ending = self.start(out).wait()
        if ending.how != "done":
            self.mismatches.append(f"{what}: {ending.how} {ending.what}")
            return
        self.must_be_whole(out, what)

    def killed_runs(self, kills: int) -> None:
        """Runs, each killed a dozen times on its way."""
        number = 0
        while sum(self.kills.values()) < kills:
            number += 1
            out = self.work / f"killed-{number}"
            if self.begins_after:
                shutil.copytree(self.head, out)
            self._one_killed_run(out, min(MOST_KILLS, kills - sum(self.kills.values())))
            shutil.rmtree(out, ignore_errors=True)

    def _one_killed_run(self, out: Path, most: int) -> None:
        for _ in range(most):
            how = self.dice.choice(("at a moment", "at a sync", "in half a file"))
            mines = {
                "at a moment": lambda: None,
                "at a sync": at_sync(self.dice.randrange(60)),
                "in half a file": at_half_a_file(self.dice.randrange(8)),
            }
            pause = self.dice.uniform(0.05, 0.6) * self.seconds if how == "at a moment" else None
            self.resumes += out.exists()
            ending = self.start(out, mines[how]).wait(pause)
            if ending.how == "killed":
                self.kills[f"{how}, {_at_work(out)}"] += 1
            elif ending.how == "done":
                break
            else:
                self.mismatches.append(f"killed {how}: {ending.how} {ending.what}")
                return
        self.must_finish(out, "after kills")

    def others(self, began: float) -> None:
        """What can happen to a run beside being killed."""
        self.damaged_runs()
        print(f"damages done after {time.monotonic() - began:.0f} s", flush=True)
        self.disks()
        self.two_at_once()
        self.backwards()

    def broken_off(self, stage: str) -> Path:
        """A run that was killed in `stage` when two of its checkpoints stood."""
        out = self.work / f"broken-{stage}"

        def mine() -> None:
            from nplus.stages.keeping import Keeper

            original = Keeper.after

            def after(keeper: Keeper, step: int) -> None:
                original(keeper, step)
                if step == 3 and keeper.where.path.name.startswith(stage):
                    os.kill(os.getpid(), 9)

            Keeper.after = after  # type: ignore[method-assign]

        ending = self.start(out, mine).wait()
        if ending.how != "killed":
            raise SystemExit(f"was to be killed in {stage}: {ending.how} {ending.what}")
        return out

    def damaged_runs(self) -> None:
        """Every kind of damage in every place, in a run that broke off in PPO, and of the
        checkpoints of each other stage."""
        for stage in TRAINED[::-1]:
            broken = self.broken_off(stage)
            for path in places(broken, stage):
                if stage != "ppo" and "checkpoints" not in path.parts:
                    continue
                for kind in KINDS if stage == "ppo" else self.dice.sample(KINDS, 1):
                    self._one_damaged(broken, Damage(kind, path))
            self._every_checkpoint_damaged(broken, stage)
            shutil.rmtree(broken)

    def _one_damaged(self, broken: Path, damage: Damage) -> None:
        out, what = self.work / "damaged", f"{damage.path} {damage.kind}"
        shutil.copytree(broken, out)
        damage.do(out, self.dice)
        self.corruptions += 1
        self.resumes += 1
        ending = self.start(out).wait()
        if ending.how == "told":
            self.messages += 1
            named = {damage.path.name, damage.path.parent.name} - {""}
            clear = any(name in ending.what for name in named) and "\n" not in ending.what
            if not clear:
                self.mismatches.append(f"{what}: an unclear message: {ending.what}")
            damage.undo(out, broken)
            self.must_finish(out, f"{what}, put right")
        elif ending.how == "done":
            self.must_be_whole(out, what)
        else:
            self.mismatches.append(f"{what}: {ending.how} {ending.what}")
        shutil.rmtree(out)

    def _every_checkpoint_damaged(self, broken: Path, stage: str) -> None:
        out = self.work / "damaged"
        shutil.copytree(broken, out)
        where = RunRoot(out).stages()[stage]
        for checkpoint in where.checkpoints.iterdir():
            file = sorted(checkpoint.glob("*.safetensors"))[0].relative_to(out)
            Damage("bit-flipped", file).do(out, self.dice)
            self.corruptions += 1
        ending = self.start(out).wait()
        self.resumes += 1
        self.messages += 1
        if ending.how != "told" or "every checkpoint is damaged" not in ending.what:
            self.mismatches.append(f"all checkpoints of {stage}: {ending.how} {ending.what}")
        shutil.rmtree(where.checkpoints)  # as the message says
        self.must_finish(out, f"{stage} without checkpoints")
        shutil.rmtree(out)

    def disks(self) -> None:
        """Disks that are full at a file of some size, and one that may not be written to."""
        out = self.work / "full"
        for size in (2_000, 60_000, 400_000):
            ending = self.start(out, small_files(size)).wait()
            self._must_tell(ending.how, ending.what, f"no file above {size:,} bytes")
            self.must_finish(out, f"a disk that took no file above {size:,} bytes")
            shutil.rmtree(out)
        if os.geteuid() == 0 and shutil.which("mount"):
            self._small_disk(self.work / "small")

    def _small_disk(self, disk: Path) -> None:
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            print("no file system could be mounted: a full one and a read-only one were left out")
            return
        try:
            ending = self.start(disk / "run").wait()
            self._must_tell(ending.how, ending.what, "a full disk")
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            ending = self.start(disk / "run").wait()
            self._must_tell(ending.how, ending.what, "a read-only disk")
            subprocess.run(["mount", "-o", "remount,rw,size=200m", str(disk)], check=True)
            self.must_finish(disk / "run", "a disk that was full and read-only")
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def _must_tell(self, how: str, message: str, what: str) -> None:
        if how != "told" or "\n" in message:
            self.mismatches.append(f"{what}: {how} {message}")

    def two_at_once(self) -> None:
        """A second run in the same directory is refused, and the first goes on."""
        out = self.work / "shared"
        first = self.start(out)
        while not RunRoot(out).index_path.exists():
            time.sleep(0.01)
        second = self.start(out).wait()
        if "another nplus process" not in second.what:
            self.mismatches.append(f"two runs in one directory: {second}")
        if first.wait().how != "done":
            self.mismatches.append("the first of two runs in one directory did not finish")
        self.must_be_whole(out, "two runs in one directory")
        shutil.rmtree(out)

    def backwards(self) -> None:
        """A clock that goes backwards, through a kill."""
        out = self.work / "backwards"

        def mines() -> None:
            clock_backwards()
            at_sync(70)()

        self.start(out, mines).wait()
        self.resumes += 1
        if self.start(out, clock_backwards).wait().how != "done":
            self.mismatches.append("with a clock that goes backwards: not done")
        self.must_be_whole(out, "with a clock that goes backwards")
        shutil.rmtree(out)


def _at_work(out: Path) -> str:
    """The stage that a killed run was in."""
    if not RunRoot(out).index_path.exists():
        return "before the first stage"
    *_, last = RunRoot(out).stages()
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--online", action="store_true", help="kills in the online loop alone")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nplus-chaos-") as work:
        dice = random.Random(args.seed)
        online = (LOOP, "reward_2", "online") if args.online else ()
        suite = Suite(Path(work), dice, *online)
        print(f"a whole run takes {suite.seconds:.1f} s; seed {args.seed}", flush=True)
        suite.killed_runs(args.kills)
        print(f"kills done after {time.monotonic() - began:.0f} s", flush=True)
        if not args.online:
            suite.others(began)
    for name, count in sorted(suite.kills.items()):
        print(f"  {count:>4} kills {name}")
    print(f"kills        {sum(suite.kills.values())}")
    print(f"corruptions  {suite.corruptions}, of which {suite.messages} ended in a message")
    print(f"resumes      {suite.resumes}")
    print(f"mismatches   {len(suite.mismatches)}")
    for mismatch in suite.mismatches:
        print(f"  {mismatch}")
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(bool(suite.mismatches))


if __name__ == "__main__":
    main()
