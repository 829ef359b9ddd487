"""The end of the loop: its rounds side by side, and the policy it returns."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from nplus.records import InputError
from nplus.runs import StageDir
from nplus.stages.context import Context
from nplus.stages.online.common import policy_name, policy_stage, settings
from nplus.stages.online.validate import BASE


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """Writes `model/`, a copy of the chosen round's; its results are the table of rounds."""
    cfg = settings(ctx)
    rounds = [_round(ctx, number) for number in range(cfg.rounds + 1)]
    chosen = cfg.rounds if cfg.choose == "last" else best_round(rounds)
    if ctx.topology.leads:
        shutil.copytree(ctx.dirs[policy_stage(chosen)].model, where.model)
    return {"rounds": rounds, "chosen": chosen, "policy": policy_name(chosen)}


def _round(ctx: Context, number: int) -> dict[str, Any]:
    """A round's validation, and what its pairs and its training came to."""
    parts = {"validation": f"round{number}_validate"}
    if number != BASE:
        parts |= {"pairs": f"round{number}_pair", "training": f"round{number}_train"}
    found: dict[str, Any] = {"round": number}
    for part, stage in parts.items():
        manifest = ctx.dirs[stage].manifest()
        found[part] = dict(manifest.results) if manifest else {}
    return found


def best_round(rounds: Sequence[dict[str, Any]]) -> int:
    """The round that wins most against the references at the first temperature; of equal ones the
    earlier. (Against SFT all rounds soon win nearly always.)

    Raises InputError where the judge has answered nothing for any.
    """
    rates = {
        row["round"]: row["validation"]["systems"][0]["against_reference"]["rate"]
        for row in rounds
        if row["round"] != BASE
    }
    known = {number: rate for number, rate in rates.items() if rate is not None}
    if not known:
        raise InputError(
            "no round was judged on the validation posts: the judge gave no usable answer; set "
            "online.choose=last, or mend the judge (evaluate.judge)"
        )
    return max(known, key=lambda number: (known[number], -number))
