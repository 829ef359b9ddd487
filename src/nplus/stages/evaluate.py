"""The verdict: SFT and PPO against the references and each other, by gold or reward model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from nplus.config import SamplingConfig
from nplus.data.prepare import read_comparisons
from nplus.data.world.dice import Dice
from nplus.data.world.policies import minimal_swap
from nplus.evaluation.accuracy import share
from nplus.evaluation.automatic import rouge
from nplus.evaluation.winrate import summarise
from nplus.records import Comparison, Demonstration, Judgement, Sample, write_records
from nplus.runs import StageDir
from nplus.seeding import stream
from nplus.stages.context import Context
from nplus.stages.drawing import Drawn, draw
from nplus.stages.scorers import Gold, RewardScorer
from nplus.stats import bootstrap_mean, mean_difference

POLICIES = ("sft", "ppo")


@dataclass(frozen=True, slots=True)
class System:
    """One policy's responses to one split at one temperature, scored."""

    policy: str
    temperature: float | None
    split: str
    posts: list[Demonstration]
    texts: list[str]
    tokens: list[int]
    ended: list[bool]
    proxy: list[float]
    score: list[float]
    covered: list[tuple[str, ...]]
    wrong: list[tuple[tuple[str, str], ...]]
    """Facts stated wrongly, as (slot, value); empty lists without a gold scorer."""

    def part(self, name: str, index: list[int]) -> System:
        """The same of some of the posts, under a name of their own."""
        lists = (f.name for f in fields(self) if isinstance(getattr(self, f.name), list))
        picked = {field: [getattr(self, field)[i] for i in index] for field in lists}
        return replace(self, split=name, **picked)


@dataclass(frozen=True, slots=True)
class Judges:
    """Who scores: the reward model always, gold where there are fact sheets."""

    reward: RewardScorer
    gold: Gold | None

    def system(
        self,
        policy: str,
        temperature: float | None,
        split: str,
        posts: list[Demonstration],
        drawn: Sequence[Drawn],
    ) -> System:
        texts = [d.text for d in drawn]
        samples = [Sample(p.id, p.query, text) for p, text in zip(posts, texts, strict=True)]
        proxy = self.reward.score(samples)
        judged = [self.gold.judge(s.id, s.response) for s in samples] if self.gold else []
        return System(
            policy=policy,
            temperature=temperature,
            split=split,
            posts=posts,
            texts=texts,
            tokens=[len(d.tokens) for d in drawn],
            ended=[d.has_eos for d in drawn],
            proxy=proxy,
            score=[g.total for g in judged] if judged else proxy,
            covered=[tuple(g.covered) for g in judged] or [()] * len(posts),
            wrong=[tuple(g.wrong) for g in judged] or [()] * len(posts),
        )


def describe(system: System) -> dict[str, Any]:
    """One row of the systems table."""
    score = bootstrap_mean(system.score, seed=0)
    row = {
        "policy": system.policy,
        "temperature": system.temperature,
        "split": system.split,
        "n": len(system.posts),
        "score": score[0],
        "score_low": score[1],
        "score_high": score[2],
        "proxy": sum(system.proxy) / len(system.proxy),
        "tokens": sum(system.tokens) / len(system.tokens),
        "eos_rate": sum(system.ended) / len(system.ended),
        "coverage": None,
        "wrong_fact_rate": None,
        **rouge(system.texts, [p.response for p in system.posts]),
    }
    if any(system.covered):
        wrong, stated = wrong_and_stated(system)
        row["coverage"] = sum(map(len, system.covered)) / len(system.covered)
        found = share(sum(wrong), sum(stated))
        row["wrong_fact_rate"] = {
            "value": found["rate"],
            "low": found["low"],
            "high": found["high"],
        }
    return row


def parts(split: str, posts: list[Demonstration], gold: Gold | None) -> dict[str, list[int]]:
    """Which posts a result is given for: those of a split, or of a held-out split apart, those with
    a value and those with a wording that training never showed (a post may have both)."""
    if gold is None or not split.endswith("heldout"):
        return {split: list(range(len(posts)))}
    found: dict[str, list[int]] = {"unseen values": [], "unseen wordings": []}
    for at, post in enumerate(posts):
        worded = [mark.startswith("wording:") for mark in gold.sheets[post.id].heldout]
        if any(worded):
            found["unseen wordings"].append(at)
        if not all(worded):
            found["unseen values"].append(at)
    return {name: index for name, index in found.items() if index}


def wrong_and_stated(system: System) -> tuple[list[int], list[int]]:
    """Per response: facts stated wrongly, and facts stated at all."""
    wrong = [len(w) for w in system.wrong]
    return wrong, [len(c) + w for c, w in zip(system.covered, wrong, strict=True)]


def judgements(ours: System, theirs: System) -> list[Judgement]:
    """Pairs of responses to the same posts."""
    return [
        Judgement(
            id=post.id,
            split=ours.split,
            policy=ours.policy
            if ours.temperature is None
            else f"{ours.policy}@{ours.temperature:g}",
            opponent=theirs.policy,
            response=ours.texts[i],
            opponent_response=theirs.texts[i],
            score=ours.score[i],
            opponent_score=theirs.score[i],
            tokens=max(1, ours.tokens[i]),
            opponent_tokens=max(1, theirs.tokens[i]),
        )
        for i, post in enumerate(ours.posts)
    ]


def matches(reference: System, sft: System, ppo: System) -> tuple[tuple[System, System], ...]:
    """Who is set against whom."""
    return ((sft, reference), (ppo, reference), (ppo, sft))


def compare(reference: System, sft: System, ppo: System) -> list[dict[str, Any]]:
    """Win rates of SFT against the references, PPO against them, and PPO against SFT."""
    return [
        {
            "policy": ours.policy,
            "opponent": theirs.policy,
            "temperature": ours.temperature,
            "split": ours.split,
            **summarise(judgements(ours, theirs)),
        }
        for ours, theirs in matches(reference, sft, ppo)
    ]


def wrong_fact_difference(ppo: System, sft: System) -> dict[str, Any]:
    """Wrong facts per stated fact, PPO minus SFT, paired by post with a 95% interval.

    A ratio of sums: its linearised per-post influence gives the interval (delta method).
    """
    head = {"temperature": ppo.temperature, "split": ppo.split}
    if not all(sum(wrong_and_stated(system)[1]) for system in (ppo, sft)):
        return {**head, **dict.fromkeys(("value", "low", "high", "ppo", "sft"))}
    influences, rates = [], []
    for system in (ppo, sft):
        wrong, stated = wrong_and_stated(system)
        rate = sum(wrong) / sum(stated)
        mean_stated = sum(stated) / len(stated)
        influences.append(
            [(w - rate * s) / mean_stated + rate for w, s in zip(wrong, stated, strict=True)]
        )
        rates.append(rate)
    found = mean_difference(influences[0], influences[1], paired=True)
    return {
        **head,
        "value": found[0],
        "low": found[1],
        "high": found[2],
        "ppo": rates[0],
        "sft": rates[1],
    }


def reference_system(
    posts: list[Demonstration], split: str, judges: Judges, ctx: Context
) -> System:
    drawn = []
    for post in posts:
        ids = tuple(ctx.codec.encode_response(post.response))
        drawn.append(Drawn(post.response, ids, True))
    return judges.system("reference", None, split, posts, drawn)


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


def reward_model_report(judges: Judges, ctx: Context, split: str) -> dict[str, Any]:
    """Accuracy against labels and gold (from the reward stage), and on minimal swaps."""
    manifest = ctx.dirs["reward"].manifest()
    report: dict[str, Any] = dict(manifest.results["validation"]) if manifest else {}
    label = ctx.dirs["label"].manifest()
    report["bayes_accuracy"] = label.results.get("bayes_accuracy_valid") if label else None
    report["swap_accuracy"] = swap_accuracy(judges, ctx, ctx.data.demonstrations(split))
    report["by_source"] = accuracy_by_source(judges, ctx, split)
    return report


def accuracy_by_source(judges: Judges, ctx: Context, split: str) -> list[dict[str, Any]]:
    """Accuracy on the world's own comparisons, which the reward model never trained on: posts like
    those of training, posts with held-out facts, and news; none on other data."""
    files = ctx.data.comparison_files()
    limits = ctx.config.data.model_copy(update={"overlong": "drop"})
    report = []
    for name in (split, f"{split}_heldout", "news"):
        if name in files:
            rows, _ = read_comparisons(files[name], ctx.codec, limits)
            hits = sum(margin > 0 for margin in judges.reward.margins(rows))
            found = share(hits, len(rows))
            report.append({"name": name, "accuracy": found.pop("rate"), **found})
    return report


def _table_rows(reference: System, sft: System, ppo: System) -> list[dict[str, Any]]:
    systems = {"reference": reference, "sft": sft, "ppo": ppo}
    return [
        {
            "id": post.id,
            "split": ppo.split,
            "temperature": ppo.temperature,
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
        for i, post in enumerate(ppo.posts)
    ]


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """Writes `judgements.jsonl` and `table.jsonl`; its results are the report's tables."""
    cfg = ctx.config.evaluate
    reward_model = ctx.scalar(ctx.dirs["reward"].model).eval()
    gold = ctx.gold() if cfg.judge == "gold" else None
    shared = ctx.config.reward.layout == "shared"
    scorer = RewardScorer(reward_model, ctx.codec, size=cfg.micro_batch_size, shared=shared)
    judges = Judges(scorer, gold)
    splits = [s for s in (cfg.split, f"{cfg.split}_heldout") if s in ctx.data.splits()]
    posts = {split: ctx.data.demonstrations(split)[: cfg.max_rows] for split in splits}
    models = {name: ctx.policy(name).eval() for name in POLICIES}
    systems: list[System] = []
    judged: list[Judgement] = []
    table: list[dict[str, Any]] = []
    win_rates: list[dict[str, Any]] = []
    wrong: list[dict[str, Any]] = []
    total = sum(map(len, posts.values())) * len(POLICIES) * len(cfg.temperatures)
    with ctx.progress("evaluate", total, "response") as bar:
        for split in splits:
            reference = reference_system(posts[split], split, judges, ctx)
            pieces = parts(split, posts[split], gold)
            systems += [reference.part(name, index) for name, index in pieces.items()]
            for temperature in cfg.temperatures:
                sampling = SamplingConfig(
                    temperature=temperature, response_length=cfg.response_length
                )
                found = {}
                for name, model in models.items():
                    drawn = draw(
                        model,
                        posts[split],
                        sampling,
                        ctx,
                        name=f"evaluate {temperature:g}",
                        size=cfg.micro_batch_size,
                        ticker=bar,
                    )
                    found[name] = judges.system(name, temperature, split, posts[split], drawn)
                table += _table_rows(reference, found["sft"], found["ppo"])
                for ours, theirs in matches(reference, found["sft"], found["ppo"]):
                    judged += judgements(ours, theirs)
                for name, index in pieces.items():
                    sft, ppo = (found[policy].part(name, index) for policy in POLICIES)
                    systems += [sft, ppo]
                    win_rates += compare(reference.part(name, index), sft, ppo)
                    if gold is not None:
                        wrong.append(wrong_fact_difference(ppo, sft))
    write_records(where.judgements, judged)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
    (where.path / "table.jsonl").write_text(lines, encoding="utf-8")
    trained = ctx.dirs["sft"].manifest()
    return {
        "judge": cfg.judge,
        "split": cfg.split,
        "temperatures": list(cfg.temperatures),
        "systems": [describe(system) for system in systems],
        "win_rates": win_rates,
        "wrong_facts_ppo_minus_sft": wrong,
        "reward_model": reward_model_report(judges, ctx, cfg.split),
        "copy": trained.results.get("copy") if trained else None,
        "verdict": verdict_line(win_rates),
    }


def verdict_line(win_rates: list[dict[str, Any]]) -> str:
    """The near-greedy verdict on the main split in one sentence."""
    main = win_rates[:3]
    told = {
        (row["policy"], row["opponent"]): f"{row['rate']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"
        for row in main
    }
    return (
        f"Against the references SFT wins {told['sft', 'reference']} and "
        f"PPO {told['ppo', 'reference']}; PPO beats SFT in {told['ppo', 'sft']}."
    )
