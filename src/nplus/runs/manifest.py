"""The manifest: what a stage was, from what, with what result. Replaced atomically."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from nplus.records import InputError
from nplus.runs.storage import differences, key_of, no_nan, write_json

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
