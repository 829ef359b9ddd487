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
        row = json.loads(path.read_text(encoding="utf-8"))
        for name in ("inputs", "outputs"):
            row[name] = tuple(row[name])
        return cls(**row)
