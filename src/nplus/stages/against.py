"""A run's policies against completions from elsewhere, by the run's own judge (Detail H4).

The completions of the run are those of its verdict, so nothing is drawn again. What comes of it is
kept beside the run's stages, under a key of the file and the verdict, and overwrites nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from nplus.evaluation.outside import Matched, match_rows, read_outside
from nplus.records import Demonstration, InputError, parse_lines, write_records
from nplus.runs import Manifest, RunRoot, StageDir, content_hash, key_of
from nplus.stages.beside import context, keep_beside
from nplus.stages.context import Context
from nplus.stages.matches import Match, play
from nplus.stages.systems import POLICIES, REFERENCE, System, judges_of, written

VERSION = 1
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be compared, found before any model is loaded."""

    name: str
    file: Path
    key: str
    verdict: Manifest
    tables: Mapping[tuple[str, float], Rows]
    """The verdict's rows by split and temperature."""
    matched: Mapping[str, Matched]
    """By split."""
    unmatched: int


def prepare(root: RunRoot, file: Path) -> Plan:
    """Read and match everything; InputError for bad input, and for a run without a verdict."""
    rows = read_outside(file)
    where = root.stages().get("evaluate")
    verdict = where.manifest() if where is not None else None
    done = verdict is not None and verdict.status == "complete"
    if where is None or verdict is None or not done or not where.table.is_file():
        raise InputError(
            f"{root.path}: no finished evaluation to compare with; finish the run first "
            f"(nplus run {root.index()['recipe']} --out {root.path})"
        )
    tables: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for number, row in parse_lines(where.table):
        _require_row(row, f"{where.table}, line {number}")
        tables.setdefault((row["split"], row["temperature"]), []).append(row)
    if not tables:
        raise InputError(f"{where.table}: holds no rows; remove its directory and run again")
    posts = {split: [(r["id"], r["query"]) for r in t] for (split, _), t in tables.items()}
    matched = {split: match_rows(rows, of_split) for split, of_split in posts.items()}
    everything = [pair for of_split in posts.values() for pair in of_split]
    unmatched = match_rows(rows, everything).unmatched
    if unmatched == len(rows):
        first, (name, query) = rows[0], everything[0]
        raise InputError(
            f"{file}: none of its {len(rows)} rows matches a post of the run's verdict; its first "
            f"has {_told(first.id, first.query)}, the run's first {_told(name, query)}"
        )
    return Plan(
        # Never the name of a policy: a suffix tells a file from one.
        name=file.name if file.suffix else f"{file.name} (file)",
        file=file,
        key=key_of("against", VERSION, file.name, content_hash(file), verdict.key),
        verdict=verdict,
        tables=tables,
        matched={split: found for split, found in matched.items() if found.rows},
        unmatched=unmatched,
    )


def _require_row(row: Mapping[str, Any], where: str) -> None:
    """InputError for a row of the verdict's table that the evaluation did not write."""
    numbers, texts = ("tokens", "scores", "proxy"), ("id", "split", "query", REFERENCE)
    kinds = {"temperature": (int, float), "fields": dict}
    kinds |= dict.fromkeys(texts, str) | dict.fromkeys(numbers, dict)
    wrong = [name for name, kind in kinds.items() if not isinstance(row.get(name), kind)]
    for name in (name for name in (REFERENCE, *POLICIES) if name in row):
        told = isinstance(row[name], str) and not wrong
        if not told or not all(isinstance(row[key].get(name), int | float) for key in numbers):
            wrong.append(name)
    if wrong:
        raise InputError(
            f"{where}: {', '.join(dict.fromkeys(wrong))} is not what an evaluation writes; the "
            "table is damaged: remove its directory and finish the run again"
        )


def _told(name: str | None, query: str | None) -> str:
    shown = None if query is None else query.strip()[:60]
    parts = (("id", name), ("query", shown))
    return ", ".join(f"{key} {value!r}" for key, value in parts if value is not None)


def compare(root: RunRoot, file: Path, console: Console) -> StageDir:
    """Judge the file's completions against those of the run; the same file again changes nothing.

    Writes `judgements.jsonl` and a manifest whose results hold `win_rates` (the file against the
    references, each policy against the file) and how many rows were matched.
    """
    plan = prepare(root, file)
    where = root.against(plan.key)
    if where.complete(plan.key):
        return where
    disable_progress_bar()
    ctx = context(root, console)
    return keep_beside(where, _manifest(plan, ctx), lambda aside: judge(plan, ctx, aside))


def judge(plan: Plan, ctx: Context, where: StageDir) -> dict[str, Any]:
    """Score the file's completions once per split, and set the run's against them."""
    cfg, judges = ctx.config.evaluate, judges_of(ctx, where)
    matches: list[Match] = []
    scored: dict[str, System] = {}
    for (split, temperature), table in plan.tables.items():
        if split not in plan.matched:
            continue
        found = plan.matched[split].rows
        rows = [table[index] for index in found]
        posts = [Demonstration(r["id"], r["query"], r[REFERENCE], r["fields"], split) for r in rows]
        if split not in scored:
            drawn = written([row.text for row in found.values()], ctx)
            scored[split] = judges.system(plan.name, None, split, posts, drawn)
            reference = _kept(rows, REFERENCE, None, posts)
            matches.append(play(scored[split], reference, judges.comparator))
        for name in (name for name in POLICIES if name in rows[0]):
            ours = _kept(rows, name, temperature, posts)
            matches.append(play(ours, scored[split], judges.comparator))
    write_records(where.judgements, [row for match in matches for row in match.valid])
    win_rates = [match.summary(cfg.length_bins) for match in matches]
    return {"name": plan.name, "judge": cfg.judge, "win_rates": win_rates, **_counts(plan)}


def _kept(rows: Rows, name: str, temperature: float | None, posts: list[Demonstration]) -> System:
    """A system as the verdict's table kept it: its texts, lengths and the judge's scores."""
    return System(
        policy=name,
        temperature=temperature,
        split=posts[0].split,
        posts=posts,
        texts=[row[name] for row in rows],
        tokens=[row["tokens"][name] for row in rows],
        score=[row["scores"][name] for row in rows],
        proxy=[row["proxy"][name] for row in rows],
        ended=[],  # no match asks for these
        covered=[],
        wrong=[],
    )


def _counts(plan: Plan) -> dict[str, Any]:
    """How the file's rows fared; a row may stand in several splits only by its query."""
    sums = Counter({"duplicates": 0, "other_query": 0})
    for found in plan.matched.values():
        sums.update(duplicates=found.duplicates, other_query=found.other_query)
    read = next(iter(plan.matched.values())).read
    matched = {split: len(found.rows) for split, found in plan.matched.items()}
    return {"read": read, "unmatched": plan.unmatched, "matched": matched, **sums}


def _manifest(plan: Plan, ctx: Context) -> Manifest:
    return Manifest(
        stage="against",
        key=plan.key,
        status="complete",
        config=ctx.config.evaluate.model_dump(mode="json"),
        seed=ctx.seed,
        inputs=(
            {"role": "completions", "path": str(plan.file), "hash": content_hash(plan.file)},
            {"role": "evaluate", "path": ctx.dirs["evaluate"].path.name, "hash": plan.verdict.key},
        ),
        device=str(ctx.device),
    )
