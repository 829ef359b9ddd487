"""The report: one self-contained HTML page, written atomically.

Text from the run reaches the page in two ways, both safe for any content: autoescaped by jinja2, or
as JSON in which `<`, `>` and `&` are escaped and which the script shows as text nodes only.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from nplus.report import analyses, figures, rounds
from nplus.report.against import against_rows, coverage
from nplus.report.collect import ONLINE, Row, RunView, StageView, collect, number
from nplus.report.data_check import page_row
from nplus.report.shapes import SYSTEMS
from nplus.report.tables import (
    DASH,
    NAMES,
    TUNED,
    compared,
    headline,
    headline_rows,
    percent,
    plain,
    sentences,
    span,
    system_name,
    ties,
    win_rows,
)
from nplus.runs import RunRoot

HERE = Path(__file__).resolve().parent
MAX_ROWS = 4000
"""Table rows embedded in the page (about 1 kB each); the rest stay in the run's table."""
SHOWN_STEPS = 8
SHOWN_SAMPLES = 4
PRICE = tuple(f"{stage}-{name}" for stage in ONLINE for name in ("kl-from-sft", "response-length"))
CURVE_STAGES = ("ppo", "reinforce", "online_dpo", "dpo", "reward", "sft", "pretrain")
UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_report(root: RunRoot) -> Path:
    """Write `report.html` of the run, whatever of it exists yet; returns its path."""
    text = render(collect(root))
    aside = root.report.with_name(f".{root.report.name}.{os.getpid()}.tmp")
    with aside.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    aside.replace(root.report)
    return root.report


def render(run: RunView) -> str:
    """The page's HTML: the same run gives the same text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        percent=percent, plain=plain, span=span, ties=ties, compared=compared, dash=DASH
    )
    evaluation = run.evaluation
    over = analyses.over_optimisation(run)
    agreed = analyses.agreement(evaluation)
    loop = rounds.Rounds.of(run)
    drawn = {name: figures.curves(run, name) for name in CURVE_STAGES}
    online = run.online
    price = [p for p in drawn[online] if p.name in PRICE]
    drawn[online] = [p for p in drawn[online] if p.name not in PRICE]
    return environment.get_template("template.html").render(
        run=run,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        headline=headline(run),
        sentences=sentences(run),
        tiles=list(tiles(run)),
        wins=_drawn(figures.win_rates(evaluation)),
        win_rows=win_rows(evaluation),
        systems=evaluation.get("systems") or (),
        rounds=loop,
        rounds_head=rounds.HEAD,
        rounds_told=rounds.sentences(loop) if loop else (),
        rounds_drawn=_drawn(rounds.panels(loop)) if loop else (),
        price=_drawn([*([over] if over else []), *price]),
        against=[(coverage(found), against_rows(found), found) for found in run.against],
        lengths=_drawn(analyses.lengths(evaluation)),
        reward=_drawn([*figures.reward_model(evaluation), *([agreed] if agreed else [])]),
        calibrations=_drawn(analyses.calibrations(evaluation)),
        token_shares=evaluation.get("token_view") or (),
        token_rows=[token_row(row) for row in run.tokens],
        **legend(run.tokens),
        tuned=tuned_policies(run.table),
        copy=sorted((evaluation.get("copy") or {}).items()),
        curves=[(name, _drawn(panels)) for name, panels in drawn.items()],
        table=safe_json(posts(run.table)),
        table_rows=min(len(run.table), MAX_ROWS),
        samples=rollouts(run.stages.get(online)),
        config=outline(run.config),
        stages=[_stage(stage) for stage in run.stages.values()],
        versions=_versions(run),
        checks=[page_row(name, found) for name, found in run.checks.items()],
        finished=_finished(run),
    )


def safe_json(value: Any) -> str:
    """JSON that can stand inside `<script>`: it cannot close the element, and NaN is null."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"))
    for char, escaped in UNSAFE.items():
        text = text.replace(char, escaped)
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tuned_policies(table: Sequence[Row]) -> list[tuple[str, str]]:
    """`(policy, its name)` of the tuned policies in the table, the main one first."""
    there = {name for row in table[:1] for name in TUNED if row.get(name) is not None}
    return [(name, NAMES[name]) for name in TUNED if name in there]


def whose(row: Row) -> str:
    """`DPO's `; the verdict's main policy needs no name."""
    return "" if row.get("policy") == TUNED[0] else f"{system_name(row.get('policy'))}'s "


def token_row(row: Row) -> dict[str, Any]:
    """A response token by token (Detail H5): its class, and what to tell of it on a touch."""
    base = system_name(row.get("base"))
    fields = row.get("fields") or {}
    return {
        "policy": system_name(row.get("policy")),
        "title": str(fields.get("title") or row.get("id", "")),
        "tokens": [
            {
                "text": "EOS" if token["eos"] else token["text"],
                "eos": token["eos"],
                "kind": token["kind"],
                "tip": f"first choice {token['choice']!r}, rank {token['rank']} for {base}, "
                f"whose own are {', '.join(map(repr, token['base']))}",
            }
            for token in row.get("tokens") or ()
        ],
    }


def legend(rows: Sequence[Row]) -> dict[str, str]:
    """What the classes of the token view mean (Detail H5)."""
    top = int(rows[0].get("top", 4)) if rows else 4
    between = "2" if top == 3 else f"2 to {top - 1}"
    marginal = f"SFT's choice {between}" if top > 2 else "not used"
    return {"marginal": marginal, "shifted": f"SFT's choice {top} or later"}


def tiles(run: RunView) -> Iterator[tuple[str, str, str]]:
    """`(number, what it is, detail)` of the figures that matter most; only those there are."""
    for row in headline_rows(run.evaluation):
        if row.get("policy") in TUNED:
            detail = f"n {plain(row.get('n'), 0)}, T {row.get('temperature')}, {ties(row)} ties"
            low_high = span(row).partition(" ")[2]
            yield (
                percent(row["rate"]),
                f"{whose(row)}win rate against {system_name(row.get('opponent'))}",
                f"{low_high}, {detail}",
            )
    kl = run.curve(run.online, "objective/kl")
    if kl:
        yield plain(kl.tail()), "KL from SFT, nats per response", f"update {kl.steps[-1]:,}"
    length = run.curve(run.online, "val/response_length")
    if length:
        yield plain(length.tail()), "tokens per rollout", f"{plain(length.values[0])} at the start"
    found = (run.evaluation.get("reward_model") or {}).get("accuracy")
    if found:
        bayes = number(run.evaluation["reward_model"].get("bayes_accuracy"))
        best = f"best possible {percent(bayes)}" if bayes is not None else "on held-out labels"
        yield percent(found.get("rate")), "reward model accuracy", best


def posts(table: Sequence[Row]) -> dict[str, Any]:
    """The evaluated posts for the page's script: each post once, and a row per temperature."""
    seen: dict[tuple[Any, Any], int] = {}
    texts: list[dict[str, Any]] = []
    rows = []
    for row in table[:MAX_ROWS]:
        key = (row.get("split"), row.get("id"))
        if key not in seen:
            seen[key] = len(texts)
            texts.append(_post(row))
        rows.append({"p": seen[key], "t": row.get("temperature"), "s": _systems(row)})
    return {"posts": texts, "rows": rows, "total": len(table)}


def _post(row: Row) -> dict[str, Any]:
    fields = row.get("fields") or {}
    body = fields.get("post") or fields.get("article") or row.get("query") or ""
    return {
        "id": str(row.get("id", "")),
        "split": str(row.get("split", "")),
        "subreddit": str(fields.get("subreddit") or ""),
        "title": str(fields.get("title") or ""),
        "post": str(body),
    }


def _systems(row: Row) -> dict[str, dict[str, Any]]:
    out = {}
    for name in SYSTEMS:
        if row.get(name) is None:
            continue
        score, proxy = (number((row.get(k) or {}).get(name)) for k in ("scores", "proxy"))
        out[name] = {
            "text": str(row[name]),
            "score": score,
            "proxy": None if proxy is None else round(proxy, 3),
            "tokens": (row.get("tokens") or {}).get(name),
            "covered": list((row.get("covered") or {}).get(name) or ()),
            "wrong": list((row.get("wrong") or {}).get(name) or ()),
        }
    return out


def rollouts(stage: StageView | None) -> list[tuple[int, list[dict[str, Any]]]]:
    """A few rollouts at a few updates, evenly spread from the first to the last."""
    if stage is None or not stage.samples:
        return []
    steps = sorted(stage.samples)
    count = min(SHOWN_STEPS, len(steps))
    chosen = sorted({steps[round(i * (len(steps) - 1) / max(1, count - 1))] for i in range(count)})
    return [(s, [_rollout(r) for r in stage.samples[s][:SHOWN_SAMPLES]]) for s in chosen]


def _rollout(row: Row) -> dict[str, Any]:
    facts = [
        (name, plain(row[name], 0 if name == "tokens" else 2))
        for name in ("score", "gold", "kl", "tokens")
        if number(row.get(name)) is not None
    ]
    return {
        "query": str(row.get("query", "")),
        "response": str(row.get("response", "")),
        "facts": facts,
        "no_eos": row.get("has_eos") is False,
    }


def outline(value: Any, indent: int = 0) -> str:
    """A mapping as indented `key: value` lines, as in YAML; strings that need it are quoted."""
    lines = []
    for key, item in value.items():
        head = f"{'  ' * indent}{key}:"
        if isinstance(item, Mapping) and item:
            lines += [head, outline(item, indent + 1)]
        else:
            bare = isinstance(item, str) and item.isidentifier()
            lines.append(f"{head} {item if bare else json.dumps(item, ensure_ascii=False)}")
    return "\n".join(lines)


def _drawn(panels: Sequence[figures.Panel]) -> list[dict[str, Any]]:
    return [{"title": p.title, "note": p.note, "svg": p.svg} for p in panels]


def _stage(stage: StageView) -> dict[str, Any]:
    """A row of the stage table, with its measured results flattened and its provenance."""
    manifest = stage.manifest
    inputs = manifest.inputs if manifest else ()
    outputs = manifest.outputs if manifest else ()
    nested = stage.name == "evaluate"  # shown in full above
    return {
        "name": stage.name,
        "status": stage.status,
        "folder": stage.path.name,
        "manifest": manifest,
        "results": [] if nested else list(_flat(stage.results)),
        "inputs": [
            (i.get("role"), Path(i.get("path", "")).name, i.get("hash", "")) for i in inputs
        ],
        "outputs": [
            (o.get("role"), Path(o.get("path", "")).name, o.get("hash", "")) for o in outputs
        ],
    }


def _flat(results: Row, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in results.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield f"{prefix}{key}", f"{value:.4g}"
        elif isinstance(value, str | int):
            yield f"{prefix}{key}", str(value)


def _versions(run: RunView) -> list[tuple[str, list[tuple[str, str]]]]:
    """`(stages, versions)`: one entry when every stage ran under the same versions."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for stage in run.stages.values():
        if stage.manifest:
            m = stage.manifest
            rows = [*m.packages.items(), ("code", m.code_version), ("device", m.device)]
            groups.setdefault(tuple(rows), []).append(stage.name)
    return [(", ".join(names), list(rows)) for rows, names in groups.items()]


def _finished(run: RunView) -> str:
    """When the last stage finished, in the time zone of the manifests."""
    times = [s.manifest.finished for s in run.stages.values() if s.manifest and s.manifest.finished]
    return datetime.fromisoformat(max(times)).strftime("%Y-%m-%d %H:%M %Z") if times else ""
