"""The manifest: what a stage was, from what, with what result. Replaced atomically."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from nplus.records import InputError

PACKAGES = (
    "nplus",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "numpy",
    "scipy",
)


def _no_nan(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(item) for item in value]
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
    value = _no_nan(value)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("w", encoding="utf-8") as out:
        json.dump(value, out, indent=1, ensure_ascii=False)
        out.flush()
        os.fsync(out.fileno())
    aside.replace(path)


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


def code_version() -> str:
    """The git commit of the source tree (with `+` when changed), or the installed version."""
    here = Path(__file__).resolve().parent
    if "site-packages" in here.parts:  # an installed copy: the repository around it is another's
        return package_versions()["nplus"]
    try:
        commit = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    return commit or package_versions()["nplus"]


def package_versions() -> dict[str, str]:
    """Versions of the packages a result may depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclass(frozen=True, slots=True)
class Manifest:
    """One stage's record. `status` is running, complete or failed."""

    stage: str
    key: str
    status: str
    config: Mapping[str, Any]
    seed: int
    inputs: tuple[Mapping[str, str], ...] = ()
    outputs: tuple[Mapping[str, Any], ...] = ()
    """Every file of the finished stage: `{"path", "bytes", "sha256"}`."""
    results: Mapping[str, Any] = field(default_factory=dict)
    code_version: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    compute: str = ""
    """How the process computed, as the run printed it."""
    started: str = ""
    finished: str = ""
    seconds: float = 0.0
    peak_memory_gib: float = 0.0
    error: str = ""

    def write(self, path: Path) -> None:
        """With a hash of all it tells, so that a damaged one is known."""
        row = json.loads(json.dumps(_no_nan(asdict(self))))  # as it will be read
        write_json(path, {**row, "digest": key_of(row)})

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises InputError for one that is not as it was written."""
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            if row.pop("digest", None) not in (None, key_of(row)):
                raise ValueError("its digest differs")
            for name in ("inputs", "outputs"):
                row[name] = tuple(row[name])
            return cls(**row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path}: damaged ({error}); put it back as it was, or remove the folder "
                f"{path.parent}, and the same command makes it anew"
            ) from error

    def differences(self, folder: Path) -> str:
        """The first artefact in `folder` that is not as the stage left it; empty where all are."""
        told = {one["path"]: {k: one[k] for k in ("bytes", "sha256")} for one in self.outputs}
        return differences(folder, told)
