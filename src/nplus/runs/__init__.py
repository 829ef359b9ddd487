"""A run on disk: its directory, its manifests, and the pipeline that skips what is complete."""

from nplus.runs.lock import alone_in
from nplus.runs.manifest import Manifest
from nplus.runs.pipeline import Pipeline
from nplus.runs.rundir import RunRoot, StageDir
from nplus.runs.stop import Stop, StoppedBySignal
from nplus.runs.storage import content_hash, key_of, told_of_refusals

__all__ = [
    "Manifest",
    "Pipeline",
    "RunRoot",
    "StageDir",
    "Stop",
    "StoppedBySignal",
    "alone_in",
    "content_hash",
    "key_of",
    "told_of_refusals",
]
