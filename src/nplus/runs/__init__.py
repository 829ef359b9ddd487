"""A run on disk: its directory, its manifests, and the pipeline that skips what is complete."""

from nplus.runs.lock import alone_in
from nplus.runs.manifest import Manifest, content_hash, key_of
from nplus.runs.pipeline import Pipeline
from nplus.runs.rundir import RunRoot, StageDir
from nplus.runs.stop import Stop, StoppedBySignal

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
]
