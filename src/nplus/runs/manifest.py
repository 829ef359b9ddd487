"""The manifest: what a stage was, from what, with what result. Replaced atomically."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import datetime
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


def write_json(path: Path, value: Any) -> None:
    """Write JSON aside, fsync, then rename over `path`; NaN becomes null."""
    replace_bytes(path, json.dumps(_no_nan(value), indent=1, ensure_ascii=False).encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write aside, fsync, then rename over `path`."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    aside.replace(path)


def read_object(path: Path, mend: str) -> dict[str, Any]:
    """The JSON object in `path`; InputError names the file, what is wrong with it, and `mend`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror}); {mend}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); {mend}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(found).__name__}; {mend}")
    return found


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
    outputs: tuple[Mapping[str, str], ...] = ()
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
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """What `write` wrote. Raises InputError for a file that is damaged."""
        mend = f"it is damaged: remove {path.parent} and run again"
        row = read_object(path, mend)
        known = {part.name: part for part in fields(cls)}
        lacks = {n for n, p in known.items() if p.default is p.default_factory is MISSING}
        if wrong := sorted(lacks - row.keys()) or sorted(row.keys() - known.keys()):
            raise InputError(f"{path}: lacks or does not know {', '.join(wrong)}; {mend}")
        require_kinds(path, row, _KINDS, mend)
        for name in ("inputs", "outputs"):
            row[name] = tuple(row.get(name, ()))
            for part in row[name]:
                texts = isinstance(part, dict) and all(isinstance(t, str) for t in part.values())
                if not texts or not {"role", "hash"} <= part.keys():
                    raise InputError(f"{path}: {name} is not a list of role, path, hash; {mend}")
        for name in ("started", "finished"):
            _require_time(path, name, row.get(name, ""), mend)
        return cls(**row)


def _require_time(path: Path, name: str, text: str, mend: str) -> None:
    try:
        datetime.fromisoformat(text or "2000-01-01")
    except ValueError as error:
        raise InputError(f"{path}: {name} is no time; {mend}") from error


_KINDS: Mapping[str, Any] = {
    **dict.fromkeys(("stage", "key", "status", "code_version", "device", "compute"), str),
    **dict.fromkeys(("started", "finished", "error"), str),
    **dict.fromkeys(("config", "results", "packages"), dict),
    **dict.fromkeys(("inputs", "outputs"), list),
    **dict.fromkeys(("seconds", "peak_memory_gib"), (int, float)),
    "seed": int,
}
