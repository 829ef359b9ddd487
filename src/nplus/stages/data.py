"""Data: the embedded world written out, or real text read, checked, cut and split (section A)."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from nplus.config import RunConfig
from nplus.data.prepare import prepare
from nplus.models.files import model_source
from nplus.records import RowError
from nplus.runs import StageDir
from nplus.stages import contract


def run(where: StageDir, config: RunConfig, console: Console | None = None) -> dict[str, Any]:
    """Writes `data/`: demonstrations per split, the tokenizer, the world's fact sheets.

    All rows are checked before anything is written; what was found stands in `data_check.json`.
    """
    source = None if config.tokenizer.vocab_size else model_source(config.model)
    found: list[dict[str, Any]] = []
    try:
        results = prepare(
            config.data,
            config.tokenizer,
            source,
            where.data,
            inspect=lambda splits, comparisons, codec: found.append(
                contract.gathered(splits, comparisons, codec, config)
            ),
        )
    except RowError as error:
        raise contract.with_the_rest(error, config) from error
    contract.keep(where, found[0], console)
    return dict(results)
