"""A run on disk: its directory, its manifests, and the pipeline that skips what is complete."""

from nplus.runs.lock import alone_in
from nplus.runs.manifest import Manifest, content_hash, key_of
from nplus.runs.pipeline import Pipeline
from nplus.runs.rundir import RunRoot, StageDir

__all__ = ["Manifest", "Pipeline", "RunRoot", "StageDir", "alone_in", "content_hash", "key_of"]
