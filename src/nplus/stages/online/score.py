"""A round's scores: every response, by the reward model or by each member of an ensemble."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nplus.algorithms.pairing import Matches, knock_out
from nplus.config.run import reward_stages
from nplus.metrics import values
from nplus.records import InputError, Sample, Scorer
from nplus.runs import StageDir
from nplus.runs.pieces import Pieces, read_pieces
from nplus.stages.context import Context
from nplus.stages.doctor.bounds import MANY_FAILED
from nplus.stages.online.common import scorer_hash, settings, weights_hash
from nplus.stages.preference import PairwiseModel
from nplus.stages.scorers import RewardScorer
from nplus.stages.scoring import failures, member_scores

Row = dict[str, Any]
"""What is known of a prompt's responses."""


def scorers_of(ctx: Context) -> dict[str, Scorer]:
    """Whose opinion is asked, by the hash of what decides the scores: the reward model's, or that
    of each member of an ensemble."""
    cfg = settings(ctx)
    names = reward_stages(ctx.config.reward) if cfg.scorer == "ensemble" else ("reward",)
    if len({weights_hash(ctx.dirs[name]) for name in names}) < len(names):
        raise InputError(
            f"online.scorer=ensemble: two of {', '.join(names)} have the same weights, so they are "
            "no two opinions"
        )
    shared = ctx.config.reward.layout == "shared"
    found: dict[str, Scorer] = {}
    for name in names:
        model = ctx.scalar(ctx.dirs[name].model).eval()
        scorer = RewardScorer(model, ctx.codec, size=cfg.micro_batch_size, shared=shared)
        found[scorer_hash(ctx.dirs[name], ctx.config)] = scorer
    return found


def judge_of(ctx: Context) -> Callable[[list[Row]], list[Row]] | None:
    """What a pairwise model adds to the rows of a piece; None where none is asked."""
    cfg = settings(ctx)
    if cfg.pairing != "knockout":
        return None
    where = ctx.dirs["preference"]
    judge = PairwiseModel(
        ctx.policy("preference").eval(), ctx.codec, size=max(1, cfg.micro_batch_size // 2)
    )
    mark = weights_hash(where)
    return lambda piece: _knocked_out(piece, judge, mark)


def _knocked_out(piece: list[Row], judge: PairwiseModel, mark: str) -> list[Row]:
    """Every match of each prompt, `[response, opponent, p(response is better)]`: those that find
    the best, those that find the worst, and last the best against the worst."""
    played: list[list[tuple[int, int, float]]] = [[] for _ in piece]

    def prefers(matches: Matches) -> list[float]:
        texts = [row["responses"] for row in piece]
        found = judge.preferences(
            [(piece[at]["query"], (texts[at][one], texts[at][other])) for at, one, other in matches]
        )
        for (at, one, other), p in zip(matches, found, strict=True):
            played[at].append((one, other, p))
        return found

    field = [range(len(row["responses"])) for row in piece]
    best = knock_out(field, prefers, best=True)
    others = [[i for i in row if i != winner] for row, winner in zip(field, best, strict=True)]
    worst = knock_out(others, prefers, best=False)
    prefers([(at, *pair) for at, pair in enumerate(zip(best, worst, strict=True))])
    return [{"comparator_hash": mark, "matches": matches} for matches in played]


def run(where: StageDir, ctx: Context, drawn: StageDir) -> dict[str, Any]:
    """Writes `scores.jsonl`: for each prompt, a list of scores for each member."""
    cfg, scorers, judge = settings(ctx), scorers_of(ctx), judge_of(ctx)
    rows = read_pieces(drawn.responses)
    pieces = [rows[start : start + cfg.piece] for start in range(0, len(rows), cfg.piece)]
    file = Pieces(where.scores, [[row["id"] for row in piece] for piece in pieces])
    done = file.begin()
    with ctx.progress(where.path.name[:12], len(pieces) - done, "piece") as ticker:
        for piece in pieces[done:]:
            found = scored(piece, scorers, ctx)
            if judge is not None:
                found = [row | more for row, more in zip(found, judge(piece), strict=True)]
            file.add(found)
            ticker.tick()
    return {"prompts": len(rows), "members": len(scorers), **_failed(where, ctx)}


def _failed(where: StageDir, ctx: Context) -> dict[str, float]:
    """How often a function of `scoring.terms` gave no value; nothing where there is none."""
    if not ctx.terms:
        return {}
    rows = read_pieces(where.scores)
    calls = sum(len(row["member_scores"][0]) for row in rows) * len(ctx.terms)
    told = values(failures(sum(row["failed"] for row in rows), calls))
    if (share := told["scoring/failed_share"]) > MANY_FAILED:
        ctx.warn(f"{where.path.name}: {share:.0%} of the calls of scoring.terms gave no value")
    return told


def scored(piece: list[Row], scorers: dict[str, Scorer], ctx: Context) -> list[Row]:
    """The scores of a piece: for each prompt, a list for each member."""
    samples = [Sample(row["id"], row["query"], text) for row in piece for text in row["responses"]]
    opinions = list(scorers.values())
    members, failed = member_scores(opinions, ctx.config.scoring, ctx.terms, samples)
    found, at = [], 0
    for row in piece:
        upto = at + len(row["responses"])
        scores = [member[at:upto] for member in members]
        scored_row = {"id": row["id"], "scorer_hashes": list(scorers), "member_scores": scores}
        found.append(scored_row | ({"failed": sum(failed[at:upto])} if ctx.terms else {}))
        at = upto
    return found
