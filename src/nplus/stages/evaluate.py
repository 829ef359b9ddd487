"""The verdict: every policy against the references and SFT, and what the paper asks of them (H)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nplus.config import EvaluateConfig, SamplingConfig
from nplus.records import Demonstration, Judgement, write_records
from nplus.runs import StageDir
from nplus.stages.context import Context
from nplus.stages.drawing import draw
from nplus.stages.drift import NEAR_GREEDY, kl_from
from nplus.stages.matches import Match, pairings, play, verdict_line
from nplus.stages.reward_report import implicit_report, reward_model_report
from nplus.stages.systems import (
    POLICIES,
    REFERENCE,
    Judges,
    System,
    describe,
    judges_of,
    parts,
    policies,
    reference_system,
    wrong_fact_difference,
)
from nplus.stages.token_view import token_view


@dataclass(slots=True)
class Findings:
    """What the splits and temperatures have come to so far: the report's tables."""

    systems: list[dict[str, Any]] = field(default_factory=list)
    win_rates: list[dict[str, Any]] = field(default_factory=list)
    agreement: list[dict[str, Any]] = field(default_factory=list)
    wrong_facts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    judgements: list[Judgement] = field(default_factory=list)
    table: list[dict[str, Any]] = field(default_factory=list)

    def add_systems(
        self, systems: Sequence[System], pieces: Mapping[str, list[int]], cfg: EvaluateConfig
    ) -> None:
        """Rows of the systems table, one per part of the split."""
        self.systems += [
            describe(system.part(name, index), use_stemmer=cfg.use_stemmer)
            for name, index in pieces.items()
            for system in systems
        ]

    def add_matches(
        self, matches: Sequence[Match], pieces: Mapping[str, list[int]], cfg: EvaluateConfig
    ) -> None:
        """Rows of the win rates and, where another judges, of the reward model's agreement."""
        self.judgements += [row for match in matches for row in match.valid]
        for name, index in pieces.items():
            parted = [match.part(name, index) for match in matches]
            self.win_rates += [match.summary(cfg.length_bins) for match in parted]
            if cfg.judge != "reward":  # with itself it would agree
                self.agreement += [match.agreement() for match in parted]

    def add_wrong_facts(
        self, systems: Mapping[str, System], pieces: Mapping[str, list[int]]
    ) -> None:
        """Each tuned policy's wrong facts less SFT's."""
        base, *tuned = (name for name in POLICIES if name in systems)
        for policy in tuned:
            rows = self.wrong_facts.setdefault(f"wrong_facts_{policy}_minus_{base}", [])
            for name, index in pieces.items():
                sides = (systems[side].part(name, index) for side in (policy, base))
                rows.append(wrong_fact_difference(*sides))


def table_rows(systems: Mapping[str, System]) -> list[dict[str, Any]]:
    """What the systems say of each post, side by side; the last one names temperature and split."""
    last = list(systems.values())[-1]
    return [
        {
            "id": post.id,
            "split": last.split,
            "temperature": last.temperature,
            "query": post.query,
            "fields": dict(post.fields),
            **{name: s.texts[i] for name, s in systems.items()},
            "scores": {name: s.score[i] for name, s in systems.items()},
            "proxy": {name: s.proxy[i] for name, s in systems.items()},
            "tokens": {name: s.tokens[i] for name, s in systems.items()},
            "covered": {name: list(s.covered[i]) for name, s in systems.items()},
            "wrong": {
                name: [f"{slot}: {value}" for slot, value in s.wrong[i]]
                for name, s in systems.items()
            },
        }
        for i, post in enumerate(last.posts)
    ]


def judge_split(
    split: str,
    posts: list[Demonstration],
    models: Mapping[str, Any],
    judges: Judges,
    ctx: Context,
    found: Findings,
    ticker: Any,
) -> None:
    """Draw from every policy at every temperature, and set them against each other."""
    cfg, base = ctx.config.evaluate, POLICIES[0]
    reference = reference_system(posts, split, judges, ctx)
    pieces = parts(split, posts, judges.gold)
    found.add_systems([reference], pieces, cfg)
    for temperature in cfg.temperatures:
        sampling = SamplingConfig(temperature=temperature, response_length=cfg.response_length)
        systems = {REFERENCE: reference}
        for name, model in models.items():
            drawn = draw(
                model,
                posts,
                sampling,
                ctx,
                name=f"evaluate {temperature:g}",
                size=cfg.micro_batch_size,
                ticker=ticker,
            )
            kl: list[float] = []
            if name != base and temperature >= NEAR_GREEDY:
                kl = kl_from(models[base], model, posts, drawn, ctx, temperature=temperature)
            systems[name] = judges.system(name, temperature, split, posts, drawn, kl)
        found.table += table_rows(systems)
        found.add_systems([systems[name] for name in models], pieces, cfg)
        found.add_matches([play(*p, judges.comparator) for p in pairings(systems)], pieces, cfg)
        if judges.gold is not None:
            found.add_wrong_facts(systems, pieces)


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """Writes judgements, table, token view and margins; its results are the report's tables.

    Detail H1: responses are drawn at each of `evaluate.temperatures`, the first near-greedy.
    """
    cfg = ctx.config.evaluate
    judges = judges_of(ctx, where)
    splits = [s for s in (cfg.split, f"{cfg.split}_heldout") if s in ctx.data.splits()]
    posts = {split: ctx.data.demonstrations(split)[: cfg.max_rows] for split in splits}
    models = {name: ctx.policy(name).eval() for name in policies(ctx.dirs)}
    found = Findings()
    total = sum(map(len, posts.values())) * len(models) * len(cfg.temperatures)
    with ctx.progress("evaluate", total, "response") as bar:
        for split in splits:
            judge_split(split, posts[split], models, judges, ctx, found, bar)
    tokens, shares = token_view(models, posts[splits[0]], ctx)
    write_records(where.judgements, found.judgements)
    write_rows(where.table, found.table)
    write_rows(where.token_view, tokens)
    trained = ctx.dirs["sft"].manifest()
    return {
        "judge": cfg.judge,
        "split": cfg.split,
        "temperatures": list(cfg.temperatures),
        "policies": list(models),
        "systems": found.systems,
        "win_rates": found.win_rates,
        **found.wrong_facts,
        "agreement": found.agreement,
        "token_view": shares,
        "reward_model": reward_model_report(judges, ctx, where),
        "implicit_reward": implicit_report(ctx),
        "copy": trained.results.get("copy") if trained else None,
        "verdict": verdict_line(found.win_rates),
    }


def write_rows(path: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the report as JSONL."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8")
