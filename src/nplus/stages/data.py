"""Data: the embedded world written out, or real text read, checked, cut and split (section A)."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from nplus.config import RunConfig
from nplus.data.prepare import prepare
from nplus.models.files import model_source
from nplus.records import InputError, RowError
from nplus.runs import StageDir
from nplus.stages import contract


def run(where: StageDir, config: RunConfig, console: Console | None = None) -> dict[str, Any]:
    """Writes `data/`: demonstrations per split, the tokenizer, the world's fact sheets.

    All rows are checked before anything is written; what was found stands in `data_check.json`.
    """
    source = None if config.tokenizer.vocab_size else model_source(config.model)
    model = config.model
    checked: list[dict[str, Any]] = []
    try:
        found = dict(
            prepare(
                config.data,
                config.tokenizer,
                source,
                where.data,
                trust_remote_code=model.trust_remote_code,
                revision=model.revision,
                inspect=lambda splits, comparisons, codec: checked.append(
                    contract.gathered(splits, comparisons, codec, config)
                ),
            )
        )
    except RowError as error:
        rows = config.data.data if config.data.source == "files" else None
        raise contract.with_the_rest(error, config, rows, config.data.comparisons.data) from error
    if config.pretrain is not None and "pretrain" not in found["splits"]:
        raise InputError(
            f"{config.data.data}: no split to pretrain on; give a folder with a file "
            "pretrain.jsonl beside train.jsonl, or start from the recipe `real`"
        )
    contract.keep(where, checked[0], console)
    return found
