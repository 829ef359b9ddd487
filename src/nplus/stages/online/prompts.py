"""The loop's own prompts, where it has some: read and checked before anything is trained."""

from __future__ import annotations

from collections import Counter
from typing import Any

from nplus.config import RunConfig
from nplus.data.prompts import fit_prompts, load_prompts
from nplus.data.sources import RawDemonstration
from nplus.records import RowError, write_records
from nplus.runs import StageDir
from nplus.stages import contract
from nplus.stages.context import Context


def rows_of(config: RunConfig) -> tuple[list[RawDemonstration], dict[str, int]]:
    """The loop's prompts as read, and how many were left out by kind of fault; InputError names
    faulty rows."""
    assert config.online is not None
    source, faulty = config.online.prompts_data, Counter[str]()
    assert source is not None
    try:
        return load_prompts(source, config.data, faulty), dict(faulty)
    except RowError as error:
        raise contract.with_the_rest(error, config, source) from error


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """Writes `prompts.jsonl`: each prompt once, cut to length as the demonstrations are.

    They are checked against the held-out queries; what was found stands in `data_check.json`.
    """
    rows, faulty = rows_of(ctx.config)
    prompts, told = fit_prompts(rows, ctx.codec, ctx.config.data)
    report = contract.prompts(rows, prompts, where.prompts, ctx)
    write_records(where.prompts, prompts)
    contract.keep(where, report, ctx.console)
    return {**told, **({"faulty": faulty} if faulty else {})}
