"""The manifest: what a stage was, from what, with what result. Replaced atomically."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from nplus.records import InputError, read_object
from nplus.runs.storage import differences, key_of, no_nan, require_kinds, write_json

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
        row = json.loads(json.dumps(no_nan(asdict(self))))  # as it will be read
        write_json(path, {**row, "digest": key_of(row)})

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """What `write` wrote. Raises InputError for a file that is damaged."""
        mend = f"it is damaged: remove {path.parent} and run again"
        row = read_object(path, mend)
        if row.pop("digest", None) not in (None, key_of(row)):
            raise InputError(f"{path}: is not what was written (its digest differs); {mend}")
        known = {part.name: part for part in fields(cls)}
        lacks = {n for n, p in known.items() if p.default is p.default_factory is MISSING}
        if wrong := sorted(lacks - row.keys()) or sorted(row.keys() - known.keys()):
            raise InputError(f"{path}: lacks or does not know {', '.join(wrong)}; {mend}")
        require_kinds(path, row, _KINDS, mend)
        for name in ("inputs", "outputs"):
            row[name] = tuple(row.get(name, ()))
            for part in row[name]:
                if not isinstance(part, dict) or not _PARTS[name] <= part.keys():
                    keys = ", ".join(sorted(_PARTS[name]))
                    raise InputError(f"{path}: {name} is not a list of {keys}; {mend}")
        for name in ("started", "finished"):
            _require_time(path, name, row.get(name, ""), mend)
        return cls(**row)

    def differences(self, folder: Path) -> str:
        """The first artefact in `folder` that is not as the stage left it; empty where all are."""
        told = {one["path"]: {k: one[k] for k in ("bytes", "sha256")} for one in self.outputs}
        return differences(folder, told)


def _require_time(path: Path, name: str, text: str, mend: str) -> None:
    try:
        datetime.fromisoformat(text or "2000-01-01")
    except ValueError as error:
        raise InputError(f"{path}: {name} is no time; {mend}") from error


_PARTS = {"inputs": {"role", "hash"}, "outputs": {"path", "bytes", "sha256"}}
_KINDS: Mapping[str, Any] = {
    **dict.fromkeys(("stage", "key", "status", "code_version", "device", "compute"), str),
    **dict.fromkeys(("started", "finished", "error"), str),
    **dict.fromkeys(("config", "results", "packages"), dict),
    **dict.fromkeys(("inputs", "outputs"), list),
    **dict.fromkeys(("seconds", "peak_memory_gib"), (int, float)),
    "seed": int,
}
