"""A round's scores: every response, by the reward model or by each member of an ensemble."""

from __future__ import annotations

from typing import Any

from nplus.config.run import reward_stages
from nplus.records import InputError, Sample, Scorer
from nplus.runs import StageDir
from nplus.runs.pieces import Pieces, read_pieces
from nplus.stages.context import Context
from nplus.stages.online.common import settings, weights_hash
from nplus.stages.scorers import RewardScorer


def scorers_of(ctx: Context) -> dict[str, Scorer]:
    """Who scores, by the hash of its weights: the reward model, or an ensemble of them."""
    cfg = settings(ctx)
    names = reward_stages(ctx.config.reward) if cfg.scorer == "ensemble" else ("reward",)
    found: dict[str, Scorer] = {}
    for name in names:
        model = ctx.scalar(ctx.dirs[name].model).eval()
        found[weights_hash(ctx.dirs[name])] = RewardScorer(
            model, ctx.codec, size=cfg.micro_batch_size
        )
    if len(found) < len(names):
        raise InputError(
            f"online.scorer=ensemble: two of {', '.join(names)} have the same weights, so they are "
            "no two opinions"
        )
    return found


def run(where: StageDir, ctx: Context, drawn: StageDir) -> dict[str, Any]:
    """Writes `scores.jsonl`: for each prompt, a list of scores for each member."""
    cfg, scorers = settings(ctx), scorers_of(ctx)
    rows = read_pieces(drawn.responses)
    pieces = [rows[start : start + cfg.piece] for start in range(0, len(rows), cfg.piece)]
    file = Pieces(where.scores, [[row["id"] for row in piece] for piece in pieces])
    done = file.begin()
    with ctx.progress(where.path.name[:12], len(pieces) - done, "piece") as ticker:
        for piece in pieces[done:]:
            file.add(_scored(piece, scorers))
            ticker.tick()
    return {"prompts": len(rows), "members": len(scorers)}


def _scored(piece: list[dict[str, Any]], scorers: dict[str, Scorer]) -> list[dict[str, Any]]:
    samples = [Sample(row["id"], row["query"], text) for row in piece for text in row["responses"]]
    members = [scorer.score(samples) for scorer in scorers.values()]
    found, at = [], 0
    for row in piece:
        upto = at + len(row["responses"])
        scores = [member[at:upto] for member in members]
        found.append({"id": row["id"], "scorer_hashes": list(scorers), "member_scores": scores})
        at = upto
    return found
