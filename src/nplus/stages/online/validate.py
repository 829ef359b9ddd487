"""A round's validation: its policy against SFT's and the references, on the validation split."""

from __future__ import annotations

from typing import Any

from nplus.config import SamplingConfig
from nplus.records import Completion, Demonstration, read_records, write_records
from nplus.runs import StageDir
from nplus.stages.context import Context
from nplus.stages.drawing import Drawn, draw
from nplus.stages.drift import NEAR_GREEDY, kl_from
from nplus.stages.matches import play
from nplus.stages.online.common import policy_name, policy_stage, settings
from nplus.stages.systems import Judges, System, describe, judges_of, reference_system
from nplus.stats import mean_correlation

SPLIT = "valid"
BASE = 0
"""The round of the policy that the others are measured against: SFT's."""


def posts_of(ctx: Context) -> list[Demonstration]:
    return ctx.data.demonstrations(SPLIT)[: settings(ctx).valid_prompts]


def run(where: StageDir, ctx: Context, round: int) -> dict[str, Any]:
    """Writes `completions.jsonl` and, after round 0, `judgements.jsonl`.

    Responses are drawn at each of `evaluate.temperatures`; `results["systems"]` has a row each.
    """
    cfg, posts = ctx.config.evaluate, posts_of(ctx)
    judges = judges_of(ctx, where)
    reference = reference_system(posts, SPLIT, judges, ctx)
    model = ctx.policy(policy_stage(round)).eval()
    base = ctx.policy(policy_stage(BASE)).eval() if round != BASE else model
    written: list[Completion] = []
    judgements = []
    rows = []
    for temperature in cfg.temperatures:
        sampling = SamplingConfig(temperature=temperature, response_length=cfg.response_length)
        drawn = draw(
            model, posts, sampling, ctx, name=f"validate {temperature:g}", size=cfg.micro_batch_size
        )
        kl: list[float] = []
        if round != BASE and temperature >= NEAR_GREEDY:
            kl = kl_from(base, model, posts, drawn, ctx, temperature=temperature)
        system = judges.system(policy_name(round), temperature, SPLIT, posts, drawn, kl)
        row = describe(system, use_stemmer=cfg.use_stemmer)
        row["reward_length_correlation"] = mean_correlation([system.proxy], [system.tokens])
        against = [reference]
        if round != BASE:
            against.append(_base_system(temperature, posts, judges, ctx))
        for opponent in against:
            match = play(system, opponent, judges.comparator)
            judgements += match.valid
            row[f"against_{opponent.policy}"] = match.summary(cfg.length_bins)
        rows.append(row)
        written += _completions(system)
    write_records(where.completions, written)
    write_records(where.judgements, judgements)
    return {"round": round, "judge": cfg.judge, "systems": rows}


def _completions(system: System) -> list[Completion]:
    texts = zip(system.posts, system.texts, system.tokens, system.ended, strict=True)
    return [
        Completion(
            id=post.id,
            query=post.query,
            response=text,
            policy=system.policy,
            temperature=system.temperature or 0.0,
            tokens=tokens,
            has_eos=ended,
        )
        for post, text, tokens, ended in texts
    ]


def _base_system(
    temperature: float, posts: list[Demonstration], judges: Judges, ctx: Context
) -> System:
    """SFT's responses, as its own validation has drawn them."""
    where = ctx.dirs[f"round{BASE}_validate"]
    rows = [
        row for row in read_records(where.completions, Completion) if row.temperature == temperature
    ]
    drawn = [Drawn(row.response, tuple(range(row.tokens)), row.has_eos) for row in rows]
    return judges.system(policy_name(BASE), temperature, SPLIT, posts, drawn)
