"""What the tables of malformed inputs are made of."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Make = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One malformed input: what `make` leaves in the directory, and the command that meets it."""

    name: str
    command: tuple[str, ...]
    says: tuple[str, ...]
    """What the one message has to hold: file, row, field, and the mend."""
    make: Make = field(default=lambda place: None)


def sets(*settings: str) -> tuple[str, ...]:
    """`settings` as the command line has them."""
    return tuple(word for text in settings for word in ("--set", text))


def text(path: str, content: str | bytes) -> Make:
    """Writes one file."""

    def make(place: Path) -> None:
        where = place / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def jsonl(path: str, rows: Iterable[Any]) -> Make:
    """Writes rows as JSON lines; a row that is text or bytes is written as it is."""
    lines = [row if isinstance(row, bytes | str) else json.dumps(row) for row in rows]
    whole = [line if isinstance(line, bytes) else line.encode() for line in lines]
    return text(path, b"".join(line + b"\n" for line in whole))


def folder(path: str) -> Make:
    """Makes a directory."""
    return lambda place: (place / path).mkdir(parents=True)


def both(*makes: Make) -> Make:
    """One after the other."""

    def make(place: Path) -> None:
        for each in makes:
            each(place)

    return make


def link(path: str, target: str) -> Make:
    """Makes a symbolic link."""

    def make(place: Path) -> None:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).symlink_to(target)

    return make


def pipe(path: str) -> Make:
    """Makes a named pipe that nobody writes into."""
    return lambda place: os.mkfifo(place / path)


def post(n: int, **changed: Any) -> dict[str, Any]:
    """A good row of posts."""
    row = {
        "id": f"t{n}",
        "subreddit": "test",
        "title": f"Title {n}",
        "post": f"Post number {n} is short.",
        "summary": f"Number {n}.",
    }
    return {**row, **changed}


def pair(n: int, **changed: Any) -> dict[str, Any]:
    """A good row of comparisons in OpenAI's schema."""
    info = {"id": f"c{n}", "post": f"Post {n}.", "title": "T", "subreddit": "s"}
    row = {
        "info": {**info, "site": None, "article": None},
        "summaries": [{"text": " One.", "policy": "ref"}, {"text": " Two.", "policy": "sup"}],
        "choice": n % 2,
        "worker": "w",
        "batch": "batch9",
        "split": "train",
        "extra": {"confidence": 5},
    }
    return {**row, **changed}


POSTS = [post(n) for n in range(12)]
PAIRS = [pair(n) for n in range(12)]


def with_line(line: Any, rows: list[dict[str, Any]] | None = None, at: int = 2) -> list[Any]:
    """Good rows of which the one on line `at` is another."""
    found: list[Any] = list(POSTS if rows is None else rows)
    found[at - 1] = line
    return found


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """The row without these columns."""
    return {name: value for name, value in row.items() if name not in names}


def snapshot(place: Path) -> dict[str, tuple[str, int, str]]:
    """Every name below `place`: its kind, size, and what it holds."""
    found = {}
    for path in sorted(place.rglob("*")):
        state = path.lstat()
        name = path.relative_to(place).as_posix()
        if stat.S_ISREG(state.st_mode):
            digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
            found[name] = ("file", state.st_size, digest)
        elif stat.S_ISLNK(state.st_mode):
            found[name] = ("link", 0, os.readlink(path))
        else:
            found[name] = ("other", stat.S_IFMT(state.st_mode), "")
    return found
