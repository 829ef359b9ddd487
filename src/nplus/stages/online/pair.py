"""A round's pairs: two of each prompt's responses, and the ledger of how they were found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from nplus.algorithms.pairing import Candidates, Pair, oriented, penalised, pick
from nplus.config.online import OnlineConfig
from nplus.records import Comparison, InputError, write_records
from nplus.runs import StageDir
from nplus.runs.ledger import LedgerRow, write_ledger
from nplus.runs.pieces import read_pieces
from nplus.seeding import uniforms
from nplus.stages.context import Context
from nplus.stages.online.common import policy_stage, refers_to, settings, weights_hash
from nplus.stats import mean_correlation


def run(
    where: StageDir, ctx: Context, drawn: StageDir, scored: StageDir, round: int
) -> dict[str, Any]:
    """Writes `ledger.parquet`, all prompts, and `comparisons.jsonl`, the pairs that are kept."""
    cfg = settings(ctx)
    responses, scores = read_pieces(drawn.responses), read_pieces(scored.scores)
    if [row["id"] for row in responses] != [row["id"] for row in scores]:
        raise InputError(
            f"{scored.path}: scores other prompts than {drawn.path.name} holds; remove both "
            "folders and run again"
        )
    for row, score in zip(responses, scores, strict=True):
        counts = {*map(len, score["member_scores"])}
        if counts != {len(row["responses"])}:
            raise InputError(
                f"{scored.path}: prompt {row['id']!r} has {len(row['responses'])} responses and "
                f"{', '.join(map(str, sorted(counts)))} scores; remove the folder and run again"
            )
    reference = weights_hash(ctx.dirs[policy_stage(refers_to(cfg, round))])
    rows = [
        ledger_row(row | score, cfg, round, ctx.seed, reference)
        for row, score in zip(responses, scores, strict=True)
    ]
    write_ledger(where.ledger, rows)
    kept = [comparison(row) for row in rows if not row.reason]
    if not kept:
        counted = ", ".join(f"{n} {why}" for why, n in Counter(r.reason for r in rows).items())
        raise InputError(
            f"round {round}: no pair is left of {len(rows)} prompts ({counted}); lower "
            "online.min_margin, draw more or hotter samples (online.samples, online.draw), or give "
            "them more room to end (online.response_length)"
        )
    write_records(where.comparisons, kept)
    return summary(rows)


def ledger_row(
    found: dict[str, Any], cfg: OnlineConfig, round: int, seed: int, reference: str
) -> LedgerRow:
    """One prompt: `found` is what was drawn and how it was scored."""
    texts, tokens = found["responses"], found["tokens"]
    characters = [len(text) for text in texts]
    members_MG = torch.tensor(found["member_scores"], dtype=torch.float64)
    lengths_G = torch.tensor(characters if cfg.length_unit == "characters" else tokens)
    less_MG = penalised(
        members_MG,
        lengths_G.double(),
        torch.tensor(found["ended"]),
        length=cfg.length_penalty,
        missing_eos=cfg.missing_eos_penalty,
    )
    one, other = uniforms(seed, f"round {round} pair", found["id"], n=2).tolist()
    candidates = Candidates(less_MG, tuple(found["sources"]), (one, other), cfg.aggregate)
    raw = Candidates(members_MG, candidates.sources_G, candidates.draws, cfg.aggregate)
    matches = found.get("matches", [])
    if cfg.pairing == "knockout":
        pair = knocked_out(matches, texts, min_margin=cfg.min_margin)
    else:
        ended = [i for i, done in enumerate(found["ended"]) if done]
        field = ended if cfg.mask_truncated_completions else None
        pair = pick(candidates, texts, cfg.pairing, min_margin=cfg.min_margin, field=field)
    return LedgerRow(
        round=round,
        prompt=found["id"],
        query=found["query"],
        policies=tuple(found["policies"]),
        policy_hashes=tuple(found["policy_hashes"]),
        temperatures=tuple(found["temperatures"]),
        seeds=tuple(found["seeds"]),
        responses=tuple(texts),
        tokens=tuple(tokens),
        characters=tuple(characters),
        ended=tuple(found["ended"]),
        scorer_hashes=tuple(found["scorer_hashes"]),
        member_scores=tuple(map(tuple, found["member_scores"])),
        scores=tuple(raw.scores_G.tolist()),
        penalised=tuple(candidates.scores_G.tolist()),
        raw_order=_order(raw),
        penalised_order=_order(candidates),
        reference_hash=reference,
        pairing=cfg.pairing,
        comparator_hash=found.get("comparator_hash", ""),
        matches=tuple((one, other) for one, other, _ in matches),
        preferences=tuple(p for *_, p in matches),
        length_penalty=cfg.length_penalty,
        length_unit=cfg.length_unit,
        chosen=pair.chosen,
        rejected=pair.rejected,
        margin=pair.margin,
        reason=pair.reason,
    )


def knocked_out(
    matches: Sequence[tuple[int, int, float]], texts: Sequence[str], *, min_margin: float
) -> Pair:
    """The pair of the last match, best against worst; none where any match is no number."""
    best, worst, p = matches[-1]
    unread = any(math.isnan(p) for *_, p in matches)
    margin = math.nan if unread else 2.0 * p - 1.0
    return oriented(best, worst, margin, texts, min_margin=min_margin)


def _order(of: Candidates) -> tuple[int, ...]:
    return tuple(of.scores_G.argsort(descending=True, stable=True).tolist())


def comparison(row: LedgerRow) -> Comparison:
    """A pair as training reads it, the preferred response first."""
    return Comparison(
        id=row.prompt,
        query=row.query,
        responses=(row.responses[row.chosen], row.responses[row.rejected]),
        policies=(row.policies[row.chosen], row.policies[row.rejected]),
        choice=0,
        batch=f"round{row.round}",
        margin=row.margin,
        ended=(row.ended[row.chosen], row.ended[row.rejected]),
    )


def summary(rows: Sequence[LedgerRow]) -> dict[str, Any]:
    """What the manifest tells of a round's pairs; the ledger's views count the same."""
    kept = [row for row in rows if not row.reason]
    reasons = Counter(row.reason for row in rows if row.reason)
    scored = [row for row in rows if all(map(math.isfinite, row.scores))]
    return {
        "prompts": len(rows),
        "pairs": len(kept),
        "left_out": dict(reasons),
        "reward": fmean(fmean(row.scores) for row in scored) if scored else None,
        "best": fmean(max(row.scores) for row in scored) if scored else None,
        "worst": fmean(min(row.scores) for row in scored) if scored else None,
        "margin": fmean(row.margin for row in kept),
        "tokens": fmean(fmean(row.tokens) for row in rows),
        "chosen_tokens": fmean(row.tokens[row.chosen] for row in kept),
        "rejected_tokens": fmean(row.tokens[row.rejected] for row in kept),
        "ended": fmean(fmean(row.ended) for row in rows),
        "reward_length_correlation": mean_correlation(
            [row.scores for row in scored], [row.tokens for row in scored]
        ),
        "reordered": fmean(row.raw_order != row.penalised_order for row in rows),
    }
