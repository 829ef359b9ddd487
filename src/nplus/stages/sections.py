"""A run's reward model, ensemble or pairwise model on comparisons from elsewhere, by section."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from nplus.config import RunConfig
from nplus.config.run import reward_stages
from nplus.data.comparisons import within_limits
from nplus.data.conversations import preference
from nplus.data.files import rows_of
from nplus.data.labels import name_of
from nplus.data.sources import RawComparison, comparison
from nplus.evaluation.accuracy import margin_records
from nplus.evaluation.sections import section_of, section_report
from nplus.records import Comparison, InputError, RowError, write_records
from nplus.runs import Manifest, RunRoot, StageDir, content_hash, key_of
from nplus.stages.beside import context, keep_beside
from nplus.stages.context import Context
from nplus.stages.preference import PairwiseModel
from nplus.stages.scorers import RewardScorer, margins

VERSION = 2
Margins = Callable[[Sequence[Comparison]], list[float]]


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows of a file: comparisons whose `batch` is their subset, and the subsets' sections."""

    rows: list[RawComparison]
    sections: Mapping[str, str]


def read_sections(path: Path, config: RunConfig) -> Asked:
    """Every row of a JSONL or Parquet file of comparisons with a `subset` each.

    InputError names file, row and field of what is wrong.
    """
    if not path.is_file():
        what = "is no file that can be read" if path.exists() else "no such file"
        raise InputError(f"{path}: {what}; name a JSONL or Parquet file of comparisons")
    data, found = config.data, Asked([], {})
    sections: dict[str, str] = {}
    for where, row in rows_of(path):
        subset = name_of(where, row, "subset")
        if not subset:
            raise RowError(
                f"{where}: no field 'subset', found {sorted(row)}; name the subset of each row",
                "missing_field",
                "subset",
            )
        section = section_of(subset, name_of(where, row, "section"), where)
        if sections.setdefault(subset, section) != section:
            raise RowError(
                f"{where}: subset {subset!r} is of section {section!r} here, and of "
                f"{sections[subset]!r} above; mend one of them",
                "wrong_value",
                "section",
            )
        if data.format == "chat":
            raw: RawComparison = preference(where, row)
        else:
            raw = comparison(where, row, template=data.template, cut_field=data.cut_field)
        found.rows.append(replace(raw, batch=subset))
    if not found.rows:
        raise InputError(f"{path}: holds no rows; each needs prompt, chosen, rejected and subset")
    return replace(found, sections=sections)


def stages_of(scorer: str, config: RunConfig) -> tuple[str, ...]:
    """The stages whose models score. InputError for an ensemble of one."""
    if scorer != "ensemble":
        return (scorer,)
    if config.reward.members < 2:
        raise InputError(
            "--with ensemble: the run has one reward model; set reward.members=2 or more and run "
            "it again"
        )
    return reward_stages(config.reward)


def aggregate_of(config: RunConfig) -> str:
    """What an ensemble's scores come to: as in the online loop, the mean without one."""
    return "mean" if config.online is None else config.online.aggregate


def score(root: RunRoot, file: Path, scorer: str, console: Console) -> StageDir:
    """Score the file's comparisons by the run's own model; the same again changes nothing.

    Writes `margins.jsonl` (a row's subset is its `batch`) and a manifest whose results hold
    `subsets`, `sections` and `total` (`section_report`), and how many rows were `dropped` for
    their length, by subset.
    """
    ctx = context(root, console)
    names = stages_of(scorer, ctx.config)
    for name in names:
        done = ctx.dirs[name].manifest() if name in ctx.dirs else None
        if done is None or done.status != "complete":
            setting = " --set preference={}" if name == "preference" else ""
            raise InputError(
                f"{root.path}: no finished stage {name!r}, whose model is to score; run it first "
                f"(nplus run {ctx.config.recipe}{setting} --out {root.path})"
            )
    asked = read_sections(file, ctx.config)
    keys = {name: done.key for name in names if (done := ctx.dirs[name].manifest())}
    told = {"with": scorer, "aggregate": aggregate_of(ctx.config) if len(names) > 1 else None}
    key = key_of("sections", VERSION, told, file.name, content_hash(file), *keys.values())
    where = root.sections(key)
    if where.complete(key):
        return where
    disable_progress_bar()
    models = ({"role": n, "path": ctx.dirs[n].path.name, "hash": keys[n]} for n in names)
    rows = {"role": "comparisons", "path": str(file), "hash": content_hash(file)}
    manifest = Manifest(
        stage="sections",
        key=key,
        status="complete",
        config=told,
        seed=ctx.seed,
        inputs=(rows, *models),
        device=str(ctx.device),
    )
    return keep_beside(where, manifest, lambda aside: _scored(asked, names, file, ctx, aside))


def _scored(
    asked: Asked, names: Sequence[str], file: Path, ctx: Context, where: StageDir
) -> dict[str, Any]:
    """What is too long for the run's limits is left out, and counted."""
    scorer = _scorer(names, ctx)
    limits = ctx.config.data.model_copy(update={"overlong": "drop"})
    rows = within_limits(asked.rows, ctx.codec, limits, file, scorer.positions)
    rows = [row for row, fits in zip(rows, scorer.fits(rows), strict=True) if fits]
    if not rows:
        raise InputError(
            f"{file}: no row whose query and both responses fit into the pairwise model's "
            "positions; name a file of shorter ones, or another scorer (--with reward)"
        )
    found = scorer.margins(rows)
    write_records(where.margins, margin_records(rows, found, "sections"))
    subsets = [row.batch for row in rows]
    dropped = Counter(row.batch for row in asked.rows) - Counter(subsets)
    return {
        "name": file.name,
        "models": list(names),
        "read": len(asked.rows),
        "dropped": dict(dropped),
        **section_report(subsets, asked.sections, found),
    }


@dataclass(frozen=True, slots=True)
class Scorer:
    """What tells the score of the preferred response less the other's, and what fits into it."""

    margins: Margins
    positions: int | None
    """Those of its models for a query with one response; None has no bound."""
    fits: Callable[[Sequence[Comparison]], list[bool]] = lambda rows: [True] * len(rows)
    """Whether it has room for each comparison's query with both responses."""


def _scorer(names: Sequence[str], ctx: Context) -> Scorer:
    """Of an ensemble the margin is of what its members come to in the online loop, of the pairwise
    model it is `2 p - 1`, p the mean over both orders."""
    if names == ("preference",):
        judge = PairwiseModel(ctx.policy("preference").eval(), ctx.codec)
        return Scorer(lambda rows: judged_margins(judge, rows), None, judge.fits)
    models = [ctx.scalar(ctx.dirs[name].model).eval() for name in names]
    shared = ctx.config.reward.layout == "shared"
    members = [RewardScorer(model, ctx.codec, shared=shared) for model in models]
    together = lowest if aggregate_of(ctx.config) == "min" else fmean

    def of(rows: Sequence[Comparison]) -> list[float]:
        scores_MN2 = [member.pairs(rows) for member in members]
        return margins(
            rows,
            [
                (together([a for a, _ in pairs]), together([b for _, b in pairs]))
                for pairs in zip(*scores_MN2, strict=True)
            ],
        )

    return Scorer(of, getattr(models[0].network.config, "max_position_embeddings", None))


def lowest(scores: Sequence[float]) -> float:
    """The least score, NaN where one is: `min` alone would pass over it, or not, by its place."""
    return math.nan if any(map(math.isnan, scores)) else min(scores)


def judged_margins(judge: PairwiseModel, rows: Sequence[Comparison]) -> list[float]:
    """`p(chosen) - p(rejected)`, p the mean over both orders; a tie is 0."""
    ps = judge.preferences([(row.query, row.responses) for row in rows])
    return margins(rows, [(p, 1.0 - p) for p in ps])
