"""Results about a finished run, kept beside its stages under a key of their own: they overwrite
nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from nplus.config.load import read_config
from nplus.runs import Manifest, RunRoot, StageDir
from nplus.runs.manifest import code_version, package_versions
from nplus.stages.compute import resolve_device
from nplus.stages.context import Context


def context(root: RunRoot, console: Console) -> Context:
    """What the run's own stages were given; InputError for a run of another version of nplus."""
    config = read_config(root.index()["config"], str(root.path))
    return Context(config, resolve_device(config.compute), console, root.stages())


def keep_beside(
    where: StageDir, manifest: Manifest, work: Callable[[StageDir], Mapping[str, Any]]
) -> StageDir:
    """Do `work` in a directory aside, write `manifest` with its results, and only then name it.

    Work that fails leaves nothing but the answers of a language model.
    """
    started = datetime.now(UTC)
    aside = StageDir(where.path.with_name(f".{where.path.name}.part"))
    aside.path.mkdir(exist_ok=True)
    try:
        results = work(aside)
        finished = datetime.now(UTC)
        replace(
            manifest,
            results=results,
            code_version=code_version(),
            packages=package_versions(),
            started=started.isoformat(timespec="seconds"),
            finished=finished.isoformat(timespec="seconds"),
            seconds=round((finished - started).total_seconds(), 3),
        ).write(aside.manifest_path)
        shutil.rmtree(where.path, ignore_errors=True)  # left over from a failure
        aside.path.rename(where.path)
    except BaseException:
        if not aside.replies.is_file():  # a language model's answers are not asked for twice
            shutil.rmtree(aside.path, ignore_errors=True)
        raise
    return where
