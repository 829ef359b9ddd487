"""Work done a piece at a time, a line for each item: a killed step goes on after the last piece.

A line carries a hash of itself. Pieces are whole: one of which a line is missing, torn or damaged
is dropped, with all after it, and done again, since what is computed may hang on its neighbours.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nplus.records import InputError
from nplus.runs.storage import sync


def _digest(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps({**row, "digest": _digest(row)}, ensure_ascii=False).encode() + b"\n"


def _row(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None for a line that is not as it was written."""
    try:
        row = json.loads(line)
        told = row.pop("digest")
    except (ValueError, RecursionError, KeyError, AttributeError):
        return None
    return row if line.endswith(b"\n") and told == _digest(row) else None


@dataclass(frozen=True, slots=True)
class Pieces:
    """The file of a step, and the items of each piece, by id."""

    path: Path
    pieces: Sequence[Sequence[str]]

    def begin(self) -> int:
        """How many pieces are done; what stands after them in the file is dropped."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        done = kept = 0
        for piece in self.pieces:
            rows = [_row(line) for line in lines[done : done + len(piece)]]
            if [row and row.get("id") for row in rows] != list(piece):
                break
            done += len(piece)
            kept += 1
        if len(lines) > done:
            os.truncate(self.path, sum(map(len, lines[:done])))
            sync(self.path)
        return kept

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """One more piece: a row for each of its items, with its `id`; on disk on return."""
        with self.path.open("ab") as out:
            out.write(b"".join(map(_line, rows)))
            out.flush()
            os.fsync(out.fileno())


def read_pieces(path: Path) -> list[dict[str, Any]]:
    """All rows of a step that is done. Raises InputError for a line that is damaged."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        row = _row(line)
        if row is None:
            raise InputError(
                f"{path}, line {number}: is not what was written; remove the folder "
                f"{path.parent.name} and run again"
            )
        rows.append(row)
    return rows
