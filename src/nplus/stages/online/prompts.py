"""The loop's own prompts, where it has some: read and checked before anything is trained."""

from __future__ import annotations

from collections import Counter
from typing import Any

from nplus.data.prompts import fit_prompts, load_prompts
from nplus.records import RowError, write_records
from nplus.runs import StageDir
from nplus.stages import contract
from nplus.stages.context import Context
from nplus.stages.online.common import settings


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """Writes `prompts.jsonl`: each prompt once, cut to length as the demonstrations are.

    They are checked against the held-out queries; what was found stands in `data_check.json`.
    """
    source, faulty = settings(ctx).prompts_data, Counter[str]()
    assert source is not None
    try:
        rows = load_prompts(source, ctx.config.data, faulty)
        prompts, told = fit_prompts(rows, ctx.codec, ctx.config.data)
    except RowError as error:
        raise contract.with_the_rest(error, ctx.config, source) from error
    report = contract.prompts(rows, prompts, where.prompts, ctx)
    write_records(where.prompts, prompts)
    contract.keep(where, report, ctx.console)
    return {**told, **({"faulty": dict(faulty)} if faulty else {})}
