"""What the verdict says of the reward model: accuracy, calibration, swaps (details D6 to D9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nplus.data.comparisons import NEWS_SPLIT
from nplus.data.prepare import read_comparisons
from nplus.data.world.dice import Dice
from nplus.data.world.policies import minimal_swap
from nplus.evaluation.accuracy import VALIDATION, margin_records, share
from nplus.evaluation.calibration import calibration_report
from nplus.records import Comparison, Demonstration, Margin, read_records, write_records
from nplus.runs import StageDir
from nplus.seeding import stream, uniforms
from nplus.stages.context import Context
from nplus.stages.systems import Judges
from nplus.stats import mean_difference


def reward_model_report(judges: Judges, ctx: Context, where: StageDir) -> dict[str, Any]:
    """Accuracy against labels and gold (from the reward stage), on minimal swaps and on other
    writers' comparisons, and calibration of each; writes `margins.jsonl` of the latter."""
    split = ctx.config.evaluate.split
    manifest = ctx.dirs["reward"].manifest()
    report: dict[str, Any] = dict(manifest.results["validation"]) if manifest else {}
    label = ctx.dirs["label"].manifest()
    report["bayes_accuracy"] = label.results.get("bayes_accuracy_valid") if label else None
    report["swap_accuracy"] = swap_accuracy(judges, ctx, ctx.data.demonstrations(split))
    margins = outside_margins(judges, ctx, split)
    write_records(where.margins, [row for rows in margins.values() for row in rows])
    kept = stage_margins(ctx, "reward")
    news = {NEWS_SPLIT: kept[NEWS_SPLIT]} if NEWS_SPLIT in kept else {}
    report["by_source"] = [_source(name, rows) for name, rows in (news | margins).items()]
    report["calibration"] = [
        {"name": name, **calibration(rows, ctx, name)} for name, rows in (kept | margins).items()
    ]
    return report


def calibration(rows: Sequence[Margin], ctx: Context, name: str) -> dict[str, Any]:
    """Detail D8, with a control whose labels are drawn by the name of the comparisons."""
    uniforms_N = uniforms(ctx.seed, "calibration", name, n=len(rows))
    width = ctx.config.evaluate.calibration_width
    return calibration_report([row.margin for row in rows], uniforms_N, width=width)


def stage_margins(ctx: Context, stage: str) -> dict[str, list[Margin]]:
    """The held-out margins that a stage has left: `validation`, and news apart where there is some
    (Detail A11); none from a run of an older version."""
    path = ctx.dirs[stage].margins
    found: dict[str, list[Margin]] = {}
    for row in read_records(path, Margin) if path.is_file() else []:
        found.setdefault(NEWS_SPLIT if row.split == NEWS_SPLIT else VALIDATION, []).append(row)
    return found


def swap_accuracy(
    judges: Judges, ctx: Context, posts: list[Demonstration]
) -> dict[str, float] | None:
    """How often the reward model prefers a reference to itself with exactly one fact swapped."""
    if judges.gold is None:
        return None
    found = []
    for post in posts:
        dice = Dice(stream(ctx.seed, "swap", post.id))
        swapped = minimal_swap(judges.gold.sheets[post.id], post.response, dice)
        if swapped is not None:
            texts = (post.response, swapped[0])
            found.append(Comparison(post.id, post.query, texts, ("ref", "corrupt_swap"), choice=0))
    return share(sum(margin > 0 for margin in judges.reward.margins(found)), len(found))


def outside_margins(judges: Judges, ctx: Context, split: str) -> dict[str, list[Margin]]:
    """Margins on the world's own comparisons, which the reward model never trained on: posts like
    those of training, posts with held-out facts, and news; none on other data."""
    files = ctx.data.comparison_files()
    limits = ctx.config.data.model_copy(update={"overlong": "drop"})
    found = {}
    for name in (split, f"{split}_heldout", "news"):
        if name in files:
            rows, _ = read_comparisons(files[name], ctx.codec, limits)
            found[name] = margin_records(rows, judges.reward.margins(rows), name)
    return found


def _source(name: str, rows: Sequence[Margin]) -> dict[str, Any]:
    found = share(sum(row.margin > 0 for row in rows), len(rows))
    return {"name": name, "accuracy": found["rate"], **found}


def implicit_report(ctx: Context) -> dict[str, Any] | None:
    """Detail D9: the accuracy of DPO's implicit reward beside the reward model's, on the same
    comparisons; None for a run without DPO."""
    manifest = ctx.dirs["dpo"].manifest() if "dpo" in ctx.dirs else None
    if manifest is None or "validation" not in manifest.results:
        return None
    ours, theirs = stage_margins(ctx, "dpo"), stage_margins(ctx, "reward")
    sides = (found.get(VALIDATION, []) for found in (ours, theirs))
    return {
        **manifest.results["validation"],
        "minus_reward_model": accuracy_difference(*sides),
        "calibration": [
            {"name": name, **calibration(rows, ctx, name)} for name, rows in ours.items()
        ],
    }


def accuracy_difference(
    ours: Sequence[Margin], theirs: Sequence[Margin]
) -> dict[str, float] | None:
    """Accuracy of ours minus theirs, paired by comparison, with a 95% t interval; None where the
    two are not of the same comparisons in the same order."""
    if not ours or [(r.id, r.policies) for r in ours] != [(r.id, r.policies) for r in theirs]:
        return None
    right, theirs_right = ([float(row.margin > 0) for row in rows] for rows in (ours, theirs))
    found = mean_difference(right, theirs_right, paired=True)
    return {"value": found.value, "low": found.low, "high": found.high, "n": len(ours)}
