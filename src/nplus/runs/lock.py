"""One process at a time in a directory that several stages and runs write into."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from nplus.records import InputError

LOCK = ".lock"
TORN = ".*.tmp"
"""Files that a process was writing aside when it died."""
LONGEST_NAME = 255
"""Bytes that Linux and macOS allow a name."""
PATIENCE = 2.0
"""Seconds: a process that was killed may take a moment to be gone."""


def is_vacant(path: Path) -> bool:
    """Whether there is nothing in `path` but a lock and torn files, or no such directory."""
    if not path.exists():
        return True
    return all(found.name == LOCK or found.match(TORN) for found in path.iterdir())


def require_makeable(path: Path) -> None:
    """InputError unless `path` is a directory that can be written into, or can be made."""
    mend = "name another directory with --out"
    try:
        if any("\0" in name or len(os.fsencode(name)) > LONGEST_NAME for name in path.parts):
            raise InputError(f"{path}: holds a name that no directory can have; {mend}")
        # What of it there is already; a broken link is there, and is no directory.
        nearest = next(p for p in (path, *path.parents) if p.is_symlink() or p.exists())
        if not nearest.is_dir():
            what = "is a file" if nearest.exists() else "is a link to nothing"
            told = what if nearest == path else f"{nearest} {what}"
            raise InputError(f"{path}: {told}; {mend}")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise InputError(f"{path}: no permission to write into {nearest}; {mend}")
    except OSError as error:
        raise InputError(f"{path}: cannot be made ({error.strerror}); {mend}") from error


@contextlib.contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """Be the only process in directory `path`, which is made if need be.

    Directories made here in which nothing came to be are removed again. The lock ends with the
    process, however it ends. Raises InputError where another process holds it.
    """
    made = [where for where in (path, *path.parents) if not where.exists()]
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise InputError(
            f"{path}: another nplus process is at work in it; wait for that one, or name another "
            "directory with --out"
        ) from error
    try:
        yield
    finally:
        if made and is_vacant(path):
            (path / LOCK).unlink(missing_ok=True)  # a waiting process sees that it is not its own
            with contextlib.suppress(OSError):
                for where in made:
                    where.rmdir()
        lock.release()
