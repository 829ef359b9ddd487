"""Files that last: written aside, synced, renamed; hashes that show damage; a full disk told of."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nplus.records import InputError, StorageError

REFUSED = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
)
"""The disk does not take it, may not be written to, or is broken."""


@contextmanager
def told_of_refusals(where: Path) -> Iterator[None]:
    """Turn a refusal of the disk below `where` into one message."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        raise StorageError(
            f"{error.filename or where}: {error.strerror}; what stood before stands. Once it can "
            "be written to, the same command goes on"
        ) from error


def no_nan(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [no_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write JSON aside, fsync, then rename over `path`; NaN becomes null."""
    replace_bytes(path, json.dumps(no_nan(value), indent=1, ensure_ascii=False).encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write aside, fsync, then rename over `path`."""
    with replaced(path) as aside:
        aside.write_bytes(content)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Where to write what is to stand at `path`: synced and renamed when the block is through."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    yield aside
    sync(aside)
    aside.replace(path)


def require_kinds(path: Path, row: Mapping[str, Any], kinds: Mapping[str, Any], mend: str) -> None:
    """InputError unless every key of `kinds` that `row` has is of the kind (or kinds) given."""
    for name, kind in kinds.items():
        value = row.get(name)
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if name in row and wrong:
            found = "null" if value is None else type(value).__name__
            raise InputError(f"{path}: {name} is {found}, which nplus never writes; {mend}")


def key_of(*parts: Any) -> str:
    """A 64-character hash of JSON-able parts, the same for equal content."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a directory's relative names and their files' hashes."""
    if not path.is_dir():
        with path.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return key_of({f.relative_to(path).as_posix(): content_hash(f) for f in files})


Contents = dict[str, dict[str, Any]]
"""Relative name of each file: `{"bytes", "sha256"}`."""


def contents_of(folder: Path, without: Path | None = None) -> Contents:
    """Size and hash of every file below `folder` that is not below `without` or hidden."""
    found: Contents = {}
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and (without is None or without not in path.parents):
            size, name = path.stat().st_size, path.relative_to(folder).as_posix()
            found[name] = {"bytes": size, "sha256": content_hash(path)}
    return found


def write_contents(folder: Path, name: str) -> None:
    """Have the file `name` in `folder` tell all files that are there now, and its own hash."""
    found = contents_of(folder)
    write_json(folder / name, {"files": found, "digest": key_of(found)})


def damage(folder: Path, name: str) -> str:
    """What is wrong with a folder of `write_contents`; empty where all is well."""
    try:
        told = json.loads((folder / name).read_text(encoding="utf-8"))
        if told["digest"] == key_of(told["files"]):
            return differences(folder, told["files"])
    except OSError as error:
        return f"{name}: {error.strerror}"
    except (ValueError, TypeError, KeyError):
        pass
    return f"{name} is not what was written"


def differences(folder: Path, told: Mapping[str, Mapping[str, Any]]) -> str:
    """The first file that is not what `told` says; empty where all are."""
    for name, one in told.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != one["bytes"]:
            return f"{name} has {size:,} bytes, not {one['bytes']:,}"
    for name, one in told.items():
        if content_hash(folder / name) != one["sha256"]:
            return f"{name} is not what was written: its SHA-256 differs"
    return ""
