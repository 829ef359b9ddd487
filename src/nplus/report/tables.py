"""The verdict in words, and as a terminal table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nplus.report.collect import RunView, collect, number
from nplus.runs import RunRoot

NAMES = {"reference": "the reference", "sft": "SFT", "ppo": "PPO"}
SPLITS = {
    "test": "test posts",
    "valid": "validation posts",
    "test_heldout": "posts with unseen facts",
    "valid_heldout": "validation posts, unseen facts",
    "unseen values": "posts with an unseen value",
    "unseen wordings": "posts with an unseen wording",
    "news": "news articles",
}
DASH = "–"  # noqa: RUF001


def percent(value: Any, digits: int = 1) -> str:
    """0.625 -> `62.5%`; a dash for nothing."""
    found = number(value)
    return DASH if found is None else f"{100 * found:.{digits}f}%"


def plain(value: Any, digits: int = 1) -> str:
    """A number with thousands separators; a dash for nothing."""
    found = number(value)
    return DASH if found is None else f"{found:,.{digits}f}"


def span(row: Mapping[str, Any] | None, key: str = "rate") -> str:
    """`62.5% [57.7, 66.1]` of a mapping with `low` and `high`, or just the rate without them."""
    if not row or number(row.get(key)) is None:
        return DASH
    low, high = number(row.get("low")), number(row.get("high"))
    if low is None or high is None:
        return percent(row[key])
    return f"{percent(row[key])} [{100 * low:.1f}, {100 * high:.1f}]"


def split_name(row: Mapping[str, Any]) -> str:
    """A split in words: `test posts`."""
    return SPLITS.get(str(row.get("split")), str(row.get("split")))


def ties(row: Mapping[str, Any]) -> str:
    n = number(row.get("n"))
    return percent((number(row.get("ties")) or 0.0) / n, 0) if n else DASH


def win_rows(evaluation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The win rates that have a value: PPO's first, the others (SFT's) after."""
    rows = [r for r in evaluation.get("win_rates") or () if number(r.get("rate")) is not None]
    return sorted(rows, key=lambda r: r.get("policy") != "ppo")


def headline_rows(evaluation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The win rates the verdict speaks of: the judged split at the first temperature."""
    rows = win_rows(evaluation)
    split = evaluation.get("split") or (rows[0].get("split") if rows else None)
    rows = [r for r in rows if r.get("split") == split]
    first = next(iter(evaluation.get("temperatures") or ()), None)
    return [r for r in rows if r.get("temperature") == first] or rows


def compared(row: Mapping[str, Any]) -> str:
    """`better than`, `worse than` or `not clearly different from`, by the interval."""
    low, high = number(row.get("low")), number(row.get("high"))
    if low is not None and low > 0.5:
        return "better than"
    if high is not None and high < 0.5:
        return "worse than"
    return "not clearly different from"


def headline(run: RunView) -> str:
    """The verdict in one sentence: the run's own, or made of its win rates, or what is missing."""
    given = run.evaluation.get("verdict")
    if given:
        return str(given)
    rows = [r for r in headline_rows(run.evaluation) if r.get("policy") == "ppo"]
    if rows:
        parts = [
            f"{compared(r)} {_name(r.get('opponent'))} ({span(r)} of {plain(r.get('n'), 0)})"
            for r in rows
        ]
        return f"PPO is {' and '.join(parts)}."
    waiting = [s for s in run.stages.values() if s.status != "complete"]
    if not waiting:
        return "No verdict: this run has no evaluation."
    stage = waiting[0]
    at = f" at step {stage.step:,}" if stage.step else ""
    return f"No verdict yet: stage {stage.name} is {stage.status}{at}."


def sentences(run: RunView) -> list[str]:
    """What the numbers say, in plain words; empty without an evaluation."""
    out = []
    for row in headline_rows(run.evaluation):
        out.append(
            f"{_name(row.get('policy'))} is {compared(row)} {_name(row.get('opponent'))}: it wins "
            f"{span(row)} of {plain(row.get('n'), 0)} {split_name(row)} at temperature "
            f"{row.get('temperature')} ({ties(row)} ties count half), with {_lengths(row)}."
        )
    out.extend(filter(None, (wrong_facts_line(run.evaluation), reward_line(run.evaluation))))
    judge = run.evaluation.get("judge")
    if judge == "reward":
        out.append(
            "The judge is the reward model that PPO was trained on: this shows how far "
            "optimisation went, not whether readers would agree."
        )
    elif judge == "gold":
        out.append("The judge is the gold scorer, which knows the facts; training never saw it.")
    return out


def _name(system: Any) -> str:
    return NAMES.get(str(system), str(system))


def _lengths(row: Mapping[str, Any]) -> str:
    ours, theirs = number(row.get("tokens")), number(row.get("opponent_tokens"))
    text = f"{plain(ours)} against {plain(theirs)} tokens"
    if ours is not None and theirs:
        text += f" ({100 * (ours / theirs - 1):+.0f}%)"
    if matched := row.get("length_matched"):
        text += f"; at matched length {span(matched)}"
    return text


def wrong_facts_line(evaluation: Mapping[str, Any]) -> str:
    """PPO's wrong facts beside SFT's; empty where facts are not known."""
    found = evaluation.get("wrong_facts_ppo_minus_sft") or ()
    rows = [r for r in found if number(r.get("value")) is not None]
    split = evaluation.get("split")
    row = next((r for r in rows if r.get("split") == split), rows[0] if rows else None)
    if row is None:
        return ""
    low, high = number(row.get("low")), number(row.get("high"))
    low, high = (low, high) if low is not None and high is not None else (-1.0, 1.0)
    word = "fewer" if high < 0 else "more" if low > 0 else "not clearly more or fewer"
    return (
        f"PPO states {word} wrong facts than SFT: {100 * float(row['value']):+.1f} points "
        f"[{100 * low:+.1f}, {100 * high:+.1f}] of the facts it states."
    )


def reward_line(evaluation: Mapping[str, Any]) -> str:
    """The reward model's accuracy, beside the best possible where that is known."""
    found = evaluation.get("reward_model") or {}
    accuracy = found.get("accuracy")
    if not accuracy:
        return ""
    text = f"The reward model agrees with {span(accuracy)} of {plain(accuracy.get('n'), 0)} labels"
    if number(found.get("bayes_accuracy")) is not None:
        text += f" (the best possible on labels this noisy: {percent(found['bayes_accuracy'])})"
    if found.get("gold_accuracy"):
        text += f", with the gold order on {span(found['gold_accuracy'])}"
    if found.get("swap_accuracy"):
        text += f", and prefers the true fact over a swapped one on {span(found['swap_accuracy'])}"
    elsewhere = [
        f"{span(g, 'accuracy')} on {SPLITS.get(g['name'], g['name'])}"
        for g in found.get("by_source") or ()
    ]
    if elsewhere:
        text += f". On comparisons of other writers it agrees with {', '.join(elsewhere)}"
    return text + "."


def verdict(root: RunRoot) -> RenderableType:
    """The terminal's verdict: win rates, reward model, wrong facts, and one line in plain words."""
    run = collect(root)
    return Group(*_blocks(run))


def _blocks(run: RunView) -> Iterator[RenderableType]:
    rows = win_rows(run.evaluation)
    for policy in dict.fromkeys(str(r.get("policy")) for r in rows):
        yield _win_table(policy, [r for r in rows if str(r.get("policy")) == policy])
    for line in (reward_line(run.evaluation), wrong_facts_line(run.evaluation)):
        if line:
            yield Text(line)
    if run.evaluation.get("judge") == "reward":
        yield Text("Judge: the reward model itself, which PPO was trained on.", style="yellow")
    yield Text(headline(run), style="bold")


def _win_table(policy: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    title = f"{_name(policy)}: win rates in % with 95% intervals"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for name in ("against", "posts", "T"):
        table.add_column(name, no_wrap=True)
    for name in ("win rate", "ties", "tokens", "same length"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        word = compared(row)
        style = "green" if word == "better than" else "red" if word == "worse than" else ""
        table.add_row(
            str(row.get("opponent")),
            str(row.get("split")),
            str(row.get("temperature")),
            Text(_short(row), style=style),
            ties(row),
            f"{plain(row.get('tokens'), 0)} v {plain(row.get('opponent_tokens'), 0)}",
            _short(row.get("length_matched")),
        )
    return table


def _short(row: Mapping[str, Any] | None) -> str:
    """`62.5 [58, 66]`: a line of the table fits 80 columns."""
    rate, low, high = (number((row or {}).get(key)) for key in ("rate", "low", "high"))
    if rate is None:
        return DASH
    if low is None or high is None:
        return f"{100 * rate:.1f}"
    return f"{100 * rate:.1f} [{100 * low:.0f}, {100 * high:.0f}]"
