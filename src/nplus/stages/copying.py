"""The copy test: of the facts a greedy summary states, how many are the post's, slot by slot.

Copying is what a tiny model finds hardest, and everything after fails quietly without it, so the
road stops here with a message rather than training a reward model on noise.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from transformers import PreTrainedModel

from nplus.config import SamplingConfig
from nplus.runs import StageDir
from nplus.stages.context import Context
from nplus.stages.drawing import draw

ROWS = 200
GREEDY = 0.01


class CopyGateError(RuntimeError):
    """The policy states too many facts wrongly for the later stages to mean anything."""


def copy_test(model: PreTrainedModel, where: StageDir, ctx: Context) -> dict[str, Any]:
    """`{"copy": {slot: share right}, "copy_accuracy": overall}`; empty outside the world.

    Writes the greedy summaries to `samples/`. The gate itself is `require_copying`.
    """
    gold = ctx.gold()
    if gold is None:
        return {}
    model.eval()
    sampling = SamplingConfig(
        temperature=GREEDY, response_length=ctx.config.evaluate.response_length
    )
    posts = ctx.data.demonstrations("valid")[:ROWS]
    drawn = draw(
        model, posts, sampling, ctx, name="copy test", size=ctx.config.evaluate.micro_batch_size
    )
    right: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    rows = []
    for post, response in zip(posts, drawn, strict=True):
        judged = gold.judge(post.id, response.text)
        right.update(judged.covered)
        wrong.update(slot for slot, _ in judged.wrong)
        rows.append(
            {"id": post.id, "query": post.query, "response": response.text, "gold": judged.total}
        )
    where.write_samples(0, rows)
    slots = sorted(right.keys() | wrong.keys())
    stated = sum(right.values()) + sum(wrong.values())
    return {
        "copy": {slot: right[slot] / (right[slot] + wrong[slot]) for slot in slots},
        "copy_accuracy": sum(right.values()) / max(1, stated),
        "copy_stated_per_summary": stated / max(1, len(posts)),
        "gold": sum(row["gold"] for row in rows) / max(1, len(rows)),
    }


def require_copying(where: StageDir, least: float) -> None:
    """Raises CopyGateError when a finished SFT stage copies fewer than `least` facts right."""
    manifest = where.manifest()
    found = dict(manifest.results) if manifest else {}
    if "copy_accuracy" not in found or found["copy_accuracy"] >= least:
        return
    slots = ", ".join(
        f"{slot} {share:.2f}" for slot, share in sorted(found["copy"].items(), key=lambda x: x[1])
    )
    raise CopyGateError(
        f"copy test failed: {found['copy_accuracy']:.2f} of the facts in greedy SFT summaries "
        f"are right, sft.copy_gate asks for {least:.2f} (by slot: {slots}). Train longer "
        "(data.world.pretrain, pretrain.epochs) or take a larger model.size; a lower "
        "sft.copy_gate goes on regardless"
    )
