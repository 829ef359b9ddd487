"""The road to a policy: what a run kept along the way, and best-of-n, judged on the same posts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nplus.config import CurveConfig, GroupConfig, OnPolicyConfig, RunConfig, SamplingConfig
from nplus.config.online import Step
from nplus.config.run import ONLINE
from nplus.records import Sample
from nplus.runs import StageDir
from nplus.stages.context import Context
from nplus.stages.drawing import Drawn, draw_several
from nplus.stages.drift import NEAR_GREEDY, kl_from
from nplus.stages.matches import play
from nplus.stages.systems import Judges, System, describe, judges_of, reference_system

BASE = "sft"


@dataclass(frozen=True, slots=True)
class Point:
    """A policy along the way."""

    policy: str
    """The stage that was making it."""
    step: int
    """Updates done, or rounds of the online loop."""
    rollouts: int
    """Responses that it was trained on so far, drawn and scored."""
    path: Path


def inputs_of(config: RunConfig) -> tuple[str, ...]:
    """The stages that this one reads, of those that a run may have."""
    rounds = range(1, config.online.rounds + 1) if config.online else ()
    trained = (Step(number, "train").name for number in rounds)
    return ("data", BASE, "reward", *ONLINE, *trained)


def spent_by(cfg: OnPolicyConfig, where: StageDir) -> list[int]:
    """Responses that each update of a stage drew and scored: further draws and rivals count."""
    each = [cfg.batch_size] * cfg.updates
    if not isinstance(cfg, GroupConfig):
        return each
    if getattr(cfg, "dynamic_sampling_max", 1) > 1:
        drawn = [row["metrics"]["groups/drawn"] for row in where.journal_rows()]
        each = [round(groups) * cfg.num_generations for groups in drawn]
    rivals = {"none": 0, "greedy": cfg.batch_size // cfg.num_generations, "mixture": cfg.batch_size}
    return [rows + rivals[cfg.rival] for rows in each]


def points_of(ctx: Context) -> Iterator[Point]:
    """What the run's stages have kept, stage by stage; SFT first."""
    config, dirs = ctx.config, ctx.dirs
    yield Point(BASE, 0, 0, dirs[BASE].model)
    for stage in (name for name in ONLINE if name in dirs):
        cfg, where = getattr(config, stage), dirs[stage]
        spent = spent_by(cfg, where)
        for step, path in {**where.policies(), len(spent): where.model}.items():
            yield Point(stage, step, sum(spent[:step]), path)
    if config.online is not None:
        each = config.online.prompts * config.online.samples
        for number in range(1, config.online.rounds + 1):
            path = dirs[Step(number, "train").name].model
            yield Point("online", number, number * each, path)


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """Its results are the `points`, each with its wins against the references, score, KL from SFT
    and length, and the same of best-of-n (`best_of`)."""
    cfg = ctx.config.curve
    assert cfg is not None
    road = _Road(ctx, where, cfg)
    points = list(points_of(ctx))
    with ctx.progress("curve", len(points) + len(cfg.best_of), "policy") as ticker:
        found = []
        for point in points:
            head = {"policy": point.policy, "step": point.step, "rollouts": point.rollouts}
            found.append(head | road.judged(point))
            ticker.tick()
        best_of = road.best_of(cfg.best_of)
        ticker.tick(len(best_of))
    return {
        "judge": ctx.config.evaluate.judge,
        "split": cfg.split,
        "temperature": cfg.temperature,
        "points": found,
        "best_of": best_of,
    }


class _Road:
    """The posts, who judges, and the policy that the others are measured from."""

    def __init__(self, ctx: Context, where: StageDir, cfg: CurveConfig) -> None:
        self.ctx, self.cfg = ctx, cfg
        self.posts = ctx.data.demonstrations(cfg.split)[: cfg.max_rows]
        self.judges: Judges = judges_of(ctx, where)
        self.reference = reference_system(self.posts, cfg.split, self.judges, ctx)
        self.base = ctx.policy(BASE).eval()

    def judged(self, point: Point) -> dict[str, Any]:
        """A policy's responses, each from the same noise as every other policy's."""
        first = point.policy == BASE
        model = self.base if first else self.ctx.causal(point.path).eval()
        drawn = [one for (one,) in self._draw(model, 1)]
        kl: list[float] = []
        temperature = self.cfg.temperature
        if not first and temperature >= NEAR_GREEDY:
            kl = kl_from(self.base, model, self.posts, drawn, self.ctx, temperature=temperature)
        row = self._row(self._system(point.policy, drawn, kl))
        if first:
            row["kl"] = {"value": 0.0, "low": 0.0, "high": 0.0}
        return row

    def best_of(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The reward model's favourite of n responses of the SFT policy, for each n.

        KL is `log n - (n - 1) / n`, the most that it can be (Beirami et al. 2024, theorem 1).
        """
        if not numbers:
            return []
        each = numbers[-1]
        drawn = self._draw(self.base, each)
        samples = [
            Sample(post.id, post.query, one.text)
            for post, row in zip(self.posts, drawn, strict=True)
            for one in row
        ]
        scores = self.judges.reward.score(samples)
        rows = [(row, scores[at * each :][:each]) for at, row in enumerate(drawn)]
        found = []
        for n in numbers:
            best = [row[max(range(n), key=scored.__getitem__)] for row, scored in rows]
            most = math.log(n) - (n - 1) / n
            bound = {"value": most, "low": 0.0, "high": most}
            found.append({"n": n} | self._row(self._system(BASE, best, [])) | {"kl": bound})
        return found

    def _draw(self, model: Any, samples: int) -> list[list[Drawn]]:
        cfg = self.ctx.config.evaluate
        sampling = SamplingConfig(
            temperature=self.cfg.temperature, response_length=cfg.response_length
        )
        return draw_several(
            model,
            self.posts,
            sampling,
            self.ctx,
            name="curve",
            size=cfg.micro_batch_size,
            samples=range(samples),
        )

    def _system(self, policy: str, drawn: Sequence[Drawn], kl: Sequence[float]) -> System:
        cfg = self.cfg
        return self.judges.system(policy, cfg.temperature, cfg.split, self.posts, drawn, kl)

    def _row(self, system: System) -> dict[str, Any]:
        """What is told of a policy."""
        cfg = self.ctx.config.evaluate
        told = describe(system, use_stemmer=cfg.use_stemmer)
        names = ("score", "proxy", "tokens", "eos_rate", "kl", "wrong_fact_rate")
        match = play(system, self.reference, self.judges.comparator)
        against = match.summary(cfg.length_bins)
        wins = {name: against.get(name) for name in ("rate", "low", "high", "n")}
        return {name: told[name] for name in names} | {"against_reference": wins}
