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

NAMES = {
    "reference": "the reference",
    "sft": "SFT",
    "ppo": "PPO",
    "reinforce": "REINFORCE",
    "online_dpo": "online DPO",
    "dpo": "DPO",
    "online": "iterative DPO",
}
TUNED = ("ppo", "reinforce", "online_dpo", "online", "dpo")
"""Policies that are tuned from SFT, the one the verdict is about first."""
SPLITS = {
    "test": "test posts",
    "valid": "validation posts",
    "test_heldout": "posts with unseen facts",
    "valid_heldout": "validation posts, unseen facts",
    "unseen values": "posts with an unseen value",
    "unseen wordings": "posts with an unseen wording",
    "news": "news articles",
    "validation": "validation comparisons",
    "validation_cnndm": "news articles (CNN/DM)",
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


def nats(kl: Mapping[str, Any] | None) -> str:
    """`4.1 [3.9, 4.4]`; a dash for nothing."""
    if not kl:
        return DASH
    return f"{plain(kl['value'])} [{plain(kl['low'])}, {plain(kl['high'])}]"


def split_name(row: Mapping[str, Any]) -> str:
    """A split in words: `test posts`."""
    return SPLITS.get(str(row.get("split")), str(row.get("split")))


def ties(row: Mapping[str, Any]) -> str:
    n = number(row.get("n"))
    return percent((number(row.get("ties")) or 0.0) / n, 0) if n else DASH


def win_rows(evaluation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The win rates that have a value: PPO's first, then DPO's, the others (SFT's) after."""
    rows = [r for r in evaluation.get("win_rates") or () if number(r.get("rate")) is not None]
    return sorted(rows, key=lambda r: (*TUNED, r.get("policy")).index(r.get("policy")))


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
    found = headline_rows(run.evaluation)
    main = next((p for p in TUNED if any(r.get("policy") == p for r in found)), None)
    rows = [row for row in found if row.get("policy") == main]
    if main and rows:
        parts = [
            f"{compared(r)} {system_name(r.get('opponent'))} ({span(r)} of {plain(r.get('n'), 0)})"
            for r in rows
        ]
        return f"{system_name(main)} is {' and '.join(parts)}."
    waiting = [s for s in run.stages.values() if s.status != "complete"]
    if not waiting:
        return "No verdict: this run has no evaluation."
    stage = waiting[0]
    at = f" at step {stage.step:,}" if stage.step else ""
    return f"No verdict yet: stage {stage.name} is {stage.status}{at}."


def sentences(run: RunView) -> list[str]:
    """What the numbers say, in plain words; empty without an evaluation."""
    out = []
    if algorithm := run.algorithm:
        out.append(f"REINFORCE stands here for {algorithm} (reinforce.algorithm).")
    for row in headline_rows(run.evaluation):
        out.append(
            f"{policy_name(row)} is {compared(row)} {system_name(row.get('opponent'))}: it wins "
            f"{span(row)} of {plain(row.get('n'), 0)} {split_name(row)} at temperature "
            f"{row.get('temperature')} ({ties(row)} ties count half), with {_lengths(row)}."
        )
    facts = [wrong_facts_line(run.evaluation, policy) for policy in TUNED]
    lines = (reward_line, agreement_line, implicit_line, drift_line, token_line)
    out.extend(filter(None, [*facts, *(line(run.evaluation) for line in lines)]))
    judge = run.evaluation.get("judge")
    if judge == "reward":
        out.append(
            "The judge is the reward model that policies were trained on: this shows how far "
            "optimisation went, not whether readers would agree."
        )
    elif judge == "gold":
        out.append("The judge is the gold scorer, which knows the facts; training never saw it.")
    return out


def system_name(system: Any) -> str:
    """A system in words: `the reference`, `PPO`; a file's name stays as it is."""
    return NAMES.get(str(system), str(system))


def policy_name(row: Mapping[str, Any]) -> str:
    """The policy of a row in words."""
    return system_name(row.get("policy"))


def _lengths(row: Mapping[str, Any]) -> str:
    ours, theirs = number(row.get("tokens")), number(row.get("opponent_tokens"))
    text = f"{plain(ours)} against {plain(theirs)} tokens"
    if ours is not None and theirs:
        text += f" ({100 * (ours / theirs - 1):+.0f}%)"
    if matched := row.get("length_matched"):
        text += f"; at matched length {span(matched)}"
    return text


def wrong_facts_line(evaluation: Mapping[str, Any], policy: str = "ppo") -> str:
    """A tuned policy's wrong facts beside SFT's; empty where facts are not known."""
    found = evaluation.get(f"wrong_facts_{policy}_minus_sft") or ()
    rows = [r for r in found if number(r.get("value")) is not None]
    split = evaluation.get("split")
    row = next((r for r in rows if r.get("split") == split), rows[0] if rows else None)
    if row is None:
        return ""
    low, high = number(row.get("low")), number(row.get("high"))
    low, high = (low, high) if low is not None and high is not None else (-1.0, 1.0)
    word = "fewer" if high < 0 else "more" if low > 0 else "not clearly more or fewer"
    return (
        f"{system_name(policy)} states {word} wrong facts than SFT: "
        f"{points({**row, 'low': low, 'high': high})} of the facts it states."
    )


def points(row: Mapping[str, Any]) -> str:
    """A difference of shares: `-2.1 points [-3.4, -0.8]`."""
    value, low, high = (100 * float(row[key]) for key in ("value", "low", "high"))
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"


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


def agreement_line(evaluation: Mapping[str, Any]) -> str:
    """How often reward model and judge order a PPO response and the reference alike (D7)."""
    rows = [r for r in evaluation.get("agreement") or () if r.get("opponent") == "reference"]
    first = next(iter(evaluation.get("temperatures") or ()), None)
    for policy in TUNED:
        for row in rows:
            same = (row.get("policy"), row.get("split"), row.get("temperature"))
            if same == (policy, evaluation.get("split"), first) and number(row.get("rate")):
                return (
                    f"Reward model and judge prefer the same of {system_name(policy)}'s summary "
                    f"and the reference on {span(row)} of {plain(row.get('n'), 0)} posts; where "
                    f"the judge does not tie, on {span(row.get('decided'))}."
                )
    return ""


def implicit_line(evaluation: Mapping[str, Any]) -> str:
    """DPO's implicit reward beside the reward model (Detail D9); empty without DPO."""
    found = evaluation.get("implicit_reward") or {}
    if not found.get("accuracy"):
        return ""
    text = f"DPO's implicit reward agrees with {span(found['accuracy'])} of the same labels"
    difference = found.get("minus_reward_model")
    return f"{text}: {points(difference)} beside the reward model." if difference else f"{text}."


def token_line(evaluation: Mapping[str, Any]) -> str:
    """What tuning changed, token by token (Detail H5); empty without a token view."""
    told = [
        f"{system_name(row['policy'])}'s first choice is SFT's too for {span(row['unchanged'])} of "
        f"the tokens of {plain(row['responses'], 0)} responses, shifted for {span(row['shifted'])}"
        for row in evaluation.get("token_view") or ()
        if row.get("unchanged")
    ]
    return f"{'; '.join(told)}." if told else ""


def drift_line(evaluation: Mapping[str, Any]) -> str:
    """How far tuning moved each policy from SFT, at the last temperature; empty without a KL."""
    last = next(reversed(evaluation.get("temperatures") or ()), None)
    told = [
        f"{system_name(row['policy'])} has moved {nats(row['kl'])} nats a response from SFT"
        for row in evaluation.get("systems") or ()
        if row.get("kl") and (row["split"], row["temperature"]) == (evaluation.get("split"), last)
    ]
    return f"{'; '.join(told)}, at temperature {last}." if told else ""


def verdict(root: RunRoot) -> RenderableType:
    """The terminal's verdict: win rates, reward model, wrong facts, and one line in plain words."""
    run = collect(root)
    return Group(*_blocks(run))


def _blocks(run: RunView) -> Iterator[RenderableType]:
    rows = win_rows(run.evaluation)
    for policy in dict.fromkeys(str(r.get("policy")) for r in rows):
        yield _win_table(policy, [r for r in rows if str(r.get("policy")) == policy])
    found = run.evaluation
    facts = [wrong_facts_line(found, policy) for policy in TUNED]
    lines = (reward_line, agreement_line, implicit_line)
    yield from map(Text, filter(None, [*(line(found) for line in lines), *facts]))
    if run.evaluation.get("judge") == "reward":
        yield Text("Judge: the reward model itself, which PPO was trained on.", style="yellow")
    yield Text(headline(run), style="bold")


def _win_table(policy: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    title = Text(f"{system_name(policy)}: win rates in % with 95% intervals")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for name in ("against", "posts", "T"):
        table.add_column(name, no_wrap=True)
    for name in ("win rate", "ties", "tokens", "same length"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        word = compared(row)
        style = "green" if word == "better than" else "red" if word == "worse than" else ""
        table.add_row(
            Text(str(row.get("opponent"))),
            Text(str(row.get("split"))),
            str(row.get("temperature")),
            Text(short(row), style=style),
            ties(row),
            f"{plain(row.get('tokens'), 0)} v {plain(row.get('opponent_tokens'), 0)}",
            short(row.get("length_matched")),
        )
    return table


def short(row: Mapping[str, Any] | None) -> str:
    """`62.5 [58, 66]`: a line of the table fits 80 columns."""
    rate, low, high = (number((row or {}).get(key)) for key in ("rate", "low", "high"))
    if rate is None:
        return DASH
    if low is None or high is None:
        return f"{100 * rate:.1f}"
    return f"{100 * rate:.1f} [{100 * low:.0f}, {100 * high:.0f}]"
