"""Rows of the world in the schemas of the public data sets, and their export to JSON lines.

A row depends only on the spec's seed, its split and its index: sizes set where a split ends,
never what is in it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nplus.data.world.dice import Dice
from nplus.data.world.facts import NEWS, FactSheet, domains, draw_sheet, subreddits
from nplus.data.world.gold import GoldScorer, GoldWeights
from nplus.data.world.labellers import CREW, Labeller, Pair
from nplus.data.world.lexicon_news import SITES
from nplus.data.world.policies import CORRUPTIONS, corrupt, lead
from nplus.data.world.posts import render_article, render_post, render_title
from nplus.data.world.writers import WriterMix, reference, retell
from nplus.seeding import stream

Row = dict[str, Any]
SPLITS = ("train", "valid", "test", "valid_heldout", "test_heldout")
COMPARISON_SPLITS = {
    "train": "train",
    "valid": "valid1",
    "test": "valid2",
    "valid_heldout": "valid1",
    "test_heldout": "valid2",
}
TRAIN_BATCHES = tuple(f"batch{n}" for n in range(3, 11))
LATER_BATCHES = tuple(f"batch{n}" for n in range(11, 21))
NEWS_BATCHES = ("batch0_cnndm", "cnndm0", "cnndm2")
PER_POST = 2
NEWS_EVERY = 200
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class PairMix:
    """Weights of what a reference is compared with: another writer's, the lead, a corrupted one.

    `matched` is the probability that the corrupted reference is the very one it is compared with.
    """

    writers: float = 0.3
    lead: float = 0.16
    swap: float = 0.2
    drop: float = 0.14
    repeat: float = 0.08
    shuffle: float = 0.04
    truncate: float = 0.08
    matched: float = 0.5


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """Sizes of all splits in rows, and everything that shapes their content.

    distracted: share of posts with distractors. retellings: share of pretraining rows whose
    summary tells all facts. crew: the labellers, each as likely as the other.
    """

    seed: int = 1
    train: int = 20_000
    valid: int = 1_000
    test: int = 1_000
    valid_heldout: int = 500
    test_heldout: int = 500
    pretrain: int = 40_000
    comparisons_train: int = 20_000
    comparisons_valid: int = 1_000
    comparisons_test: int = 1_000
    comparisons_valid_heldout: int = 500
    comparisons_test_heldout: int = 500
    news: int = 500
    retellings: float = 0.9
    distracted: float = 0.4
    mix: WriterMix = field(default_factory=WriterMix)
    pairs: PairMix = field(default_factory=PairMix)
    weights: GoldWeights = field(default_factory=GoldWeights)
    crew: tuple[Labeller, ...] = CREW


def row_id(spec: WorldSpec, kind: str, index: int) -> str:
    """`t3_` and twelve base-36 digits of a hash of seed, kind of row and index."""
    digest = hashlib.blake2b(f"{spec.seed}/{kind}/{index}".encode(), digest_size=8).digest()
    number, digits = int.from_bytes(digest, "big"), ""
    for _ in range(12):
        number, rest = divmod(number, 36)
        digits = _BASE36[rest] + digits
    return f"t3_{digits}"


def _known(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {SPLITS}")


def _post(spec: WorldSpec, kind: str, index: int, *, heldout: bool) -> tuple[Row, FactSheet, Dice]:
    """A row without its summary, its sheet, and the dice to go on with."""
    dice = Dice(stream(spec.seed, "world", kind, index))
    domain = domains()[dice.choose(subreddits())]
    sheet = draw_sheet(domain, dice, heldout=heldout, distracted=spec.distracted)
    title, post = render_title(sheet, dice), render_post(sheet, dice)
    row = {"id": row_id(spec, kind, index), "subreddit": domain.name, "title": title, "post": post}
    return row, sheet, dice


def posts(spec: WorldSpec, split: str) -> Iterator[tuple[Row, FactSheet]]:
    """TL;DR rows (`id, subreddit, title, post, summary`) of a split, with their fact sheets."""
    _known(split)
    for index in range(getattr(spec, split)):
        row, sheet, dice = _post(spec, split, index, heldout=split.endswith("heldout"))
        row["summary"] = reference(sheet, dice, spec.mix).text
        yield row, sheet


def pretraining(spec: WorldSpec) -> Iterator[Row]:
    """Rows like those of `posts`, whose summary is a writer's or a retelling of all facts."""
    for index in range(spec.pretrain):
        row, sheet, dice = _post(spec, "pretrain", index, heldout=False)
        dense = dice.chance(spec.retellings)
        row["summary"] = (
            retell(sheet, dice, spec.mix) if dense else reference(sheet, dice, spec.mix).text
        )
        yield row


def _contestants(spec: WorldSpec, sheet: FactSheet, post: str, dice: Dice) -> list[tuple[str, str]]:
    """Two (policy, text)s in random order; the first drawn is always a reference."""
    kinds = ("writers", "lead", *CORRUPTIONS)
    kind = dice.weighted(kinds, [getattr(spec.pairs, k) for k in kinds])
    text = reference(sheet, dice, spec.mix).text
    if kind == "lead":
        other = ("lead", lead(post))
    else:
        matched = kind != "writers" and dice.chance(spec.pairs.matched)
        second = text if matched else reference(sheet, dice, spec.mix).text
        other = (
            ("writer", second)
            if kind == "writers"
            else (f"corrupt_{kind}", corrupt(sheet, second, dice, kind))
        )
    return dice.shuffled([("ref", text), other])


def _compare(
    spec: WorldSpec, gold: GoldScorer, sheet: FactSheet, post: str, dice: Dice, *, space: str
) -> tuple[list[Row], Row]:
    """The `summaries` of a comparison row, and its choice, worker and extra."""
    sides = _contestants(spec, sheet, post, dice)
    texts = [text for _, text in sides]
    pair = Pair(*(gold.score(sheet, text).total for text in texts), *texts, sheet, post)
    label = dice.choose(spec.crew).label(pair, dice)
    summaries = [{"text": space + text, "policy": policy, "note": None} for policy, text in sides]
    extra = {"confidence": label.confidence}
    return summaries, {"choice": label.choice, "worker": label.worker, "extra": extra}


def comparisons(spec: WorldSpec, split: str) -> Iterator[tuple[Row, FactSheet]]:
    """Labelled comparisons of a split with their sheets.

    Each post serves two of them; none of these posts is in `posts`.
    """
    _known(split)
    gold, kind = GoldScorer(spec.weights), f"comparisons_{split}"
    for index in range(getattr(spec, kind)):
        base, sheet, _ = _post(spec, kind, index // PER_POST, heldout=split.endswith("heldout"))
        dice = Dice(stream(spec.seed, "world", kind, index // PER_POST, index % PER_POST))
        summaries, label = _compare(spec, gold, sheet, base["post"], dice, space=" ")
        info = {key: base[key] for key in ("id", "post", "title", "subreddit")} | {
            "site": None,
            "article": None,
        }
        batch = dice.choose(TRAIN_BATCHES if split == "train" else LATER_BATCHES)
        yield _row(info, summaries, label, batch, COMPARISON_SPLITS[split]), sheet


def news_comparisons(spec: WorldSpec) -> Iterator[tuple[Row, FactSheet]]:
    """Labelled comparisons on news articles, all in split `valid2`, with their sheets."""
    gold = GoldScorer(spec.weights)
    for index in range(spec.news):
        dice = Dice(stream(spec.seed, "world", NEWS, index))
        sheet = draw_sheet(domains()[NEWS], dice, distracted=0.0)
        title, article = render_article(sheet, dice)
        summaries, label = _compare(spec, gold, sheet, article, dice, space="")
        info = {"id": row_id(spec, NEWS, index), "post": None, "title": title, "subreddit": None}
        info |= {"site": dice.choose(SITES), "article": article}
        yield _row(info, summaries, label, dice.choose(NEWS_BATCHES), "valid2"), sheet


def _row(info: Row, summaries: list[Row], label: Row, batch: str, split: str) -> Row:
    return {
        "info": info,
        "summaries": summaries,
        "choice": label["choice"],
        "worker": label["worker"],
        "batch": batch,
        "split": split,
        "extra": label["extra"],
    }


def vocabulary_texts(spec: WorldSpec, rows: int = 20_000) -> Iterator[str]:
    """Texts to train a tokenizer on: posts with retellings, and now and then a news article."""
    for index in range(rows):
        row, sheet, dice = _post(spec, "vocabulary", index, heldout=False)
        answer = retell(sheet, dice, spec.mix)
        head = f"SUBREDDIT: r/{row['subreddit']}\n\nTITLE: {row['title']}\n\n"
        yield f"{head}POST: {row['post']}\n\nTL;DR: {answer}"
        if index % NEWS_EVERY == 0:
            news = draw_sheet(domains()[NEWS], dice, distracted=0.0)
            title, article = render_article(news, dice)
            yield f"Article:\n{title} {article}\n\nTL;DR:\n{retell(news, dice, spec.mix)}"


def _write_lines(path: Path, rows: Iterable[Row]) -> Path:
    """Write aside, flush to disk, then rename."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def export(spec: WorldSpec, out: Path) -> dict[str, Path]:
    """Write every split as JSON lines under `out`, and `facts.jsonl`: {id, sheet} for each post.

    Files: `train`, `valid`, ..., `pretrain`, `comparisons_train`, ..., `comparisons_news`,
    `facts`. Pretraining posts have no entry in `facts`. A file appears only when it is complete.
    """
    out.mkdir(parents=True, exist_ok=True)
    sheets: dict[str, Row] = {}

    def noted(rows: Iterable[tuple[Row, FactSheet]]) -> Iterator[Row]:
        for row, sheet in rows:
            sheets[row["info"]["id"] if "info" in row else row["id"]] = sheet.to_json()
            yield row

    sources: dict[str, Iterable[Row]] = {split: noted(posts(spec, split)) for split in SPLITS}
    sources["pretrain"] = pretraining(spec)
    sources |= {f"comparisons_{split}": noted(comparisons(spec, split)) for split in SPLITS}
    sources["comparisons_news"] = noted(news_comparisons(spec))
    files = {name: _write_lines(out / f"{name}.jsonl", rows) for name, rows in sources.items()}
    facts = ({"id": key, "sheet": sheet} for key, sheet in sheets.items())
    return files | {"facts": _write_lines(out / "facts.jsonl", facts)}
