"""One process at a time in a directory that several stages and runs write into."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from nplus.records import InputError

LOCK = ".lock"
TORN = ".*.tmp"
"""Files that a process was writing aside when it died."""
PATIENCE = 2.0
"""Seconds: a process that was killed may take a moment to be gone."""


def is_vacant(path: Path) -> bool:
    """Whether there is nothing in `path` but a lock and torn files, or no such directory."""
    if not path.exists():
        return True
    return all(found.name == LOCK or found.match(TORN) for found in path.iterdir())


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
