"""The journal of a stage: a line of metrics a step, and events; only ever appended to, but that a
resumed stage drops the steps it is about to do again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nplus.records import InputError
from nplus.runs.storage import sync


@dataclass(frozen=True, slots=True)
class Journal:
    """The file, and what messages call the folder of checkpoints beside it."""

    path: Path
    checkpoints: str = "checkpoints"

    def append(self, row: Mapping[str, Any]) -> None:
        """One more line."""
        line = json.dumps(row, ensure_ascii=False) + "\n"
        with self.path.open("a+b") as out:
            # a process that died while writing leaves a torn line: begin a new one after it
            if out.tell() and os.pread(out.fileno(), 1, out.tell() - 1) != b"\n":
                line = "\n" + line
            out.write(line.encode())

    def rows(self) -> Iterator[dict[str, Any]]:
        """The metric lines so far, in order."""
        if not self.path.is_file():
            return
        for _, row in self._lines():
            if isinstance(row.get("metrics"), dict) and _is_step(row.get("step")):
                yield row

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """`(line, object)` of the journal, without lines torn by a process that died."""
        text = self.path.read_text(encoding="utf-8", errors="replace")
        for line in text.split("\n"):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield line, row

    def mark(self) -> dict[str, Any]:
        """Length and hash of the journal, which the disk holds from now on."""
        if not self.path.is_file():
            return {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
        sync(self.path)
        text = self.path.read_bytes()
        return {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}

    def require(self, mark: Mapping[str, Any] | None) -> None:
        """Raises InputError where the journal does not begin with what `mark` saw."""
        if mark is None:
            return
        text = b""
        if self.path.is_file():
            text = self.path.read_bytes()[: mark["bytes"]]
        if hashlib.sha256(text).hexdigest() != mark["sha256"]:
            raise InputError(
                f"{self.path}: its first {mark['bytes']:,} bytes are not what they were at "
                "the checkpoint; put the file back as it was, or remove the folder "
                f"{self.checkpoints} beside it, and the stage begins anew"
            )

    def rewind(self, step: int) -> None:
        """Drop metric lines after `step`: a resumed stage writes them again."""
        if not self.path.is_file():
            return
        kept = [line for line, row in self._lines() if _before(row.get("step", 0), step)]
        aside = self.path.with_name(f".journal.{os.getpid()}.tmp")
        aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        sync(aside)
        aside.replace(self.path)


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _before(value: object, step: int) -> bool:
    """Whether a journal line is of a step that stands; a line with no step is an event."""
    return isinstance(value, int) and value <= step
