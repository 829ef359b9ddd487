"""Label: comparisons for the reward model, in OpenAI's schema.

In the embedded world simulated workers compare policies (references, extractive leads, samples,
corrupted summaries). On real text people's comparisons are taken where there are some; where nobody
labelled, the author's own TL;DR is set against another post's and against itself with its words
shuffled.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nplus.config import LabelConfig
from nplus.data.comparisons import NEWS_SPLIT
from nplus.data.world.dice import Dice
from nplus.data.world.labellers import CREW, Pair, bayes_accuracy, expected_agreement
from nplus.data.world.policies import CORRUPTIONS, corrupt, lead
from nplus.records import Comparison, Completion, Demonstration, read_records, write_records
from nplus.runs import StageDir
from nplus.seeding import stream, take
from nplus.stages import contract
from nplus.stages.context import Context
from nplus.stages.scorers import Gold

BATCHES = tuple(f"batch{n}" for n in range(3, 11))
NAMES = {"train": "train", "valid": "valid1"}
KINDS = ("sampled", "reference", "swap", "lead", "broken")
KIND_WEIGHTS = (0.35, 0.15, 0.04, 0.12, 0.34)
"""What is compared: two samples; a sample and the reference; a text and itself with one fact
swapped; the post's lead and another; a text and itself corrupted."""


class Contestant(NamedTuple):
    """A text that is compared, who wrote it, and whether it ended by itself."""

    policy: str
    text: str
    ended: bool = True


def _contestants(
    kind: str, post: Demonstration, samples: list[Completion], gold: Gold, dice: Dice
) -> list[Contestant]:
    """Two in random order."""
    reference = Contestant("ref", post.response)
    drawn = [Contestant(s.policy, s.response, s.has_eos) for s in dice.shuffled(samples)]
    drawn.append(reference)
    first, second = drawn[0], drawn[1]
    if kind == "reference":
        second = reference
    elif kind == "lead":
        second = Contestant("lead", lead(post.fields["post"]))
    elif kind in ("swap", "broken"):
        how = kind if kind == "swap" else dice.choose([c for c in CORRUPTIONS if c != "swap"])
        text = corrupt(gold.sheets[post.id], first.text or post.response, dice, how)
        second = Contestant(f"corrupt_{how}", text)
    return dice.shuffled([first, second])


def _world_comparisons(
    split: str, count: int, samples: dict[str, list[Completion]], ctx: Context, gold: Gold
) -> Iterator[tuple[Comparison, Pair]]:
    posts = [post for post in ctx.data.demonstrations(split) if post.id in samples]
    for index in range(count):
        dice = Dice(stream(ctx.seed, "label", split, index))
        post = posts[index % len(posts)]
        kind = dice.weighted(KINDS, KIND_WEIGHTS)
        sides = _contestants(kind, post, samples[post.id], gold, dice)
        texts = [side.text for side in sides]
        golds = [gold.judge(post.id, text).total for text in texts]
        pair = Pair(*golds, *texts, gold.sheets[post.id], post.fields["post"])
        label = dice.choose(CREW).label(pair, dice)
        comparison = Comparison(
            id=post.id,
            query=post.query,
            responses=(texts[0], texts[1]),
            policies=(sides[0].policy, sides[1].policy),
            choice=label.choice,
            worker=label.worker,
            batch=dice.choose(BATCHES),
            split=NAMES[split],
            confidence=label.confidence,
            ended=(sides[0].ended, sides[1].ended),
        )
        yield comparison, pair


def _contrast_comparisons(split: str, count: int, ctx: Context) -> Iterator[Comparison]:
    posts = ctx.data.demonstrations(split)
    for index in range(min(count, 2 * len(posts))):
        dice = Dice(stream(ctx.seed, "contrast", split, index))
        at = index // 2
        post, other = posts[at], posts[(at + 1 + int(dice.unit() * (len(posts) - 1))) % len(posts)]
        if index % 2:
            wrong, policy = " ".join(dice.shuffled(post.response.split())), "shuffled"
        else:
            wrong, policy = other.response, "other_post"
        if wrong == post.response:
            continue
        sides = dice.shuffled([("ref", post.response), (policy, wrong)])
        yield Comparison(
            id=post.id,
            query=post.query,
            responses=(sides[0][1], sides[1][1]),
            policies=(sides[0][0], sides[1][0]),
            choice=[name for name, _ in sides].index("ref"),
            worker="author",
            batch=policy,
            split=NAMES[split],
        )


def people_comparisons(labelled: list[Comparison], cfg: LabelConfig, seed: int) -> list[Comparison]:
    """People's comparisons, at most as many as the config asks for, in the order of the data.

    `pairs` bounds training, `valid_pairs` the held-out comparisons of posts, and again those of
    news (Detail A11). What is left out is drawn by the seed.
    """
    limits = {"train": cfg.pairs, NEWS_SPLIT: cfg.valid_pairs}
    parts: dict[str, list[int]] = {}
    for at, row in enumerate(labelled):
        parts.setdefault(row.split if row.split in limits else "valid", []).append(at)
    chosen: set[int] = set()
    for name, index in parts.items():
        count = min(limits.get(name, cfg.valid_pairs), len(index))
        chosen |= {index[i] for i in take(seed, f"label {name}", len(index), 0, count)}
    return [labelled[at] for at in sorted(chosen)]


def as_openai_row(comparison: Comparison, post: Demonstration) -> dict[str, Any]:
    """One line of OpenAI's comparisons file; texts carry one leading space (Detail A6)."""
    info = {"id": post.id, "site": None, "article": None}
    info |= {key: post.fields.get(key) for key in ("post", "title", "subreddit")}
    summaries = [
        {"text": f" {text}", "policy": policy, "note": None}
        for text, policy in zip(comparison.responses, comparison.policies, strict=True)
    ]
    kept = {name: getattr(comparison, name) for name in ("choice", "worker", "batch", "split")}
    return {
        "info": info,
        "summaries": summaries,
        **kept,
        "extra": {"confidence": comparison.confidence},
    }


def _write_openai(path: Path, comparisons: list[Comparison], ctx: Context) -> None:
    """The same rows for other programs, in exactly the public schema."""
    posts = {p.id: p for split in NAMES for p in ctx.data.demonstrations(split)}
    with path.open("w", encoding="utf-8") as out:
        for comparison in comparisons:
            row = as_openai_row(comparison, posts[comparison.id])
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def run(where: StageDir, ctx: Context) -> dict[str, Any]:
    """Writes `comparisons.jsonl` (records), and those of our own making as
    `comparisons_openai.jsonl` (the public schema)."""
    cfg = ctx.config.label
    if cfg.kind == "data":
        found = people_comparisons(ctx.data.labelled(), cfg, ctx.seed)
        splits = dict(Counter(row.split for row in found))
        contract.keep(where, contract.labelled(found, where.comparisons, ctx), ctx.console)
        return {"comparisons": write_records(where.comparisons, found), "splits": splits}
    counts = {"train": cfg.pairs, "valid": cfg.valid_pairs}
    rows: list[Comparison] = []
    results: dict[str, Any] = {}
    if cfg.kind == "contrast":
        for split, count in counts.items():
            rows += _contrast_comparisons(split, count, ctx)
    else:
        gold = ctx.gold()
        if gold is None:
            raise ValueError("label.kind=world needs the fact sheets of the embedded world")
        samples: dict[str, list[Completion]] = {}
        for completion in read_records(ctx.dirs["sample"].completions, Completion):
            samples.setdefault(completion.id, []).append(completion)
        for split, count in counts.items():
            made = list(_world_comparisons(split, count, samples, ctx, gold))
            rows += [comparison for comparison, _ in made]
            pairs = [pair for _, pair in made]
            results[f"bayes_accuracy_{split}"] = bayes_accuracy(pairs)
            results[f"agreement_{split}"] = expected_agreement(pairs)
            results[f"gold_agrees_{split}"] = sum(
                (pair.gold1 > pair.gold2) == (row.choice == 0) for row, pair in made
            ) / len(made)
    contract.keep(where, contract.labelled(rows, where.comparisons, ctx), ctx.console)
    count = write_records(where.comparisons, rows)
    _write_openai(where.path / "comparisons_openai.jsonl", rows, ctx)
    return {"comparisons": count, **results}
