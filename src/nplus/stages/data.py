"""Data: the embedded world written out, or real text read, checked, cut and split (section A)."""

from __future__ import annotations

from typing import Any

from nplus.config import RunConfig
from nplus.data.prepare import prepare
from nplus.models.files import model_source
from nplus.records import InputError
from nplus.runs import StageDir


def run(where: StageDir, config: RunConfig) -> dict[str, Any]:
    """Writes `data/`: demonstrations per split, the tokenizer, the world's fact sheets."""
    source = None if config.tokenizer.vocab_size else model_source(config.model)
    model = config.model
    options = {"trust_remote_code": model.trust_remote_code, "revision": model.revision}
    found = dict(prepare(config.data, config.tokenizer, source, where.data, **options))
    if config.pretrain is not None and "pretrain" not in found["splits"]:
        raise InputError(
            f"{config.data.data}: no split to pretrain on; give a folder with a file "
            "pretrain.jsonl beside train.jsonl, or start from the recipe `real`"
        )
    return found
