"""Damaged files, each in every place of a run where there is one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nplus.runs import RunRoot

KINDS = ("truncated", "bit-flipped", "missing")


@dataclass(frozen=True, slots=True)
class Damage:
    """What happens to one file of a run."""

    kind: str
    path: Path

    def do(self, root: Path, dice: random.Random) -> None:
        """Damage the copy of the run in `root`."""
        file = root / self.path
        if self.kind == "missing":
            file.unlink()
            return
        data = bytearray(file.read_bytes())
        if self.kind == "truncated":
            file.write_bytes(data[: dice.randrange(len(data))])
        else:
            at = dice.randrange(len(data))
            data[at] ^= 1 << dice.randrange(8)
            file.write_bytes(data)

    def undo(self, root: Path, intact: Path) -> None:
        """Put the file back as it was, as a message asks for."""
        shutil.copy2(intact / self.path, root / self.path)


def places(root: Path, stage: str) -> Iterator[Path]:
    """Files of a run that broke off in `stage`, relative to `root`: those of the stages before it
    and its own checkpoints, journal and manifest."""
    stages = RunRoot(root).stages()
    own = stages[stage]
    checkpoints = sorted(own.checkpoints.glob("step_*"))
    for file in sorted(checkpoints[-1].iterdir()):
        yield file.relative_to(root)
    yield (checkpoints[0] / "contents.json").relative_to(root)
    yield own.journal_path.relative_to(root)
    yield own.manifest_path.relative_to(root)
    for name, files in {
        "data": ("data/*.jsonl", "manifest.json"),
        "sft": ("model/model.safetensors", "model/config.json", "journal.jsonl"),
        "label": ("comparisons.jsonl",),
        "reward": ("model/model.safetensors", "manifest.json"),
    }.items():
        where = stages.get(name)
        if where is None or name == stage:
            continue
        for pattern in files:
            for file in sorted(where.path.glob(pattern))[:1]:
                yield file.relative_to(root)
    yield RunRoot(root).index_path.relative_to(root)
