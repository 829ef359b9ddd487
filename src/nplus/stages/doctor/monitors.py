"""What a journal's curves say: pure functions of columns of metrics, cheap enough for every step.

A level is judged over a window of the last updates, a rise or fall against the spread between
neighbouring updates. Thresholds are where healthy runs, of the embedded world's toys and of the
paper, have never been.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from nplus.findings import Finding, found
from nplus.stages.doctor.bounds import LOGPROB

Columns = Mapping[str, Sequence[float]]
"""Metrics by name, one value a step, in order; NaN where a step has none."""
WINDOW = 5
LEAST = 8
"""Steps from which on a change is judged."""
SIGMAS = 4.0
"""A run asks the same question at every update, so the answer has to be surer than 95%."""


def columns_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Columns of journalled metrics."""
    columns: dict[str, list[float]] = {}
    for count, metrics in enumerate(rows):
        append(columns, metrics, count)
    return columns


def append(columns: dict[str, list[float]], metrics: Mapping[str, Any], count: int) -> None:
    """Add the metrics of one step to columns of `count` steps."""
    for name in {*columns, *metrics}:
        value = metrics.get(name)
        number = math.nan if value is None else float(value)
        columns.setdefault(name, [math.nan] * count).append(number)


# --- windows ------------------------------------------------------------------------------------


def _known(column: Sequence[float]) -> list[float]:
    return [x for x in column if math.isfinite(x)]


def _of(columns: Columns, name: str, least: int) -> list[float] | None:
    """The known values of a metric; None where they are fewer than `least`."""
    known = _known(columns.get(name, ()))
    return known if len(known) >= least else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _noise(values: Sequence[float]) -> float:
    """Standard deviation around a slow trend: from the steps between neighbours, as von Neumann's
    ratio takes it."""
    steps = [(b - a) ** 2 for a, b in pairwise(values)]
    return math.sqrt(_mean(steps) / 2) if steps else 0.0


def _rise(values: Sequence[float], window: int = WINDOW) -> tuple[float, float]:
    """`(rise, standard error)` from the first window to the last."""
    window = min(window, len(values) // 2)
    rise = _mean(values[-window:]) - _mean(values[:window])
    return rise, _noise(values) * math.sqrt(2 / window)


# --- PPO ----------------------------------------------------------------------------------------


def kl_at_start(columns: Columns, precision: str) -> Finding | None:
    """Detail E3: policy and reference are the same network at update 1."""
    first = _first(columns, "objective/kl", "val/response_length")
    if first is None:
        return None
    kl, length = first
    stderr = _first(columns, "objective/kl_stderr")
    spread = stderr[0] if stderr else 0.0
    a_token, bound = max(abs(kl), spread) / max(length, 1.0), LOGPROB[precision]
    if a_token <= bound:
        return None
    return found(
        "kl_at_start",
        f"it is {kl:.3g} nats a response with a standard error of {spread:.2g}, where {precision} "
        f"explains {bound * max(length, 1.0):.2g}",
        step=1,
        kl=kl,
        stderr=spread,
        bound=bound * max(length, 1.0),
    )


def ratio_at_start(columns: Columns, precision: str) -> Finding | None:
    """Details B1, B4, E5: nothing has moved at the first minibatch of update 1."""
    first = _first(columns, "first_minibatch/ratio", "first_minibatch/approxkl_avg")
    if first is None:
        return None
    ratio, approxkl = first
    rms, bound = math.sqrt(2 * max(approxkl, 0.0)), LOGPROB[precision]
    if rms <= bound and abs(ratio - 1) <= bound:
        return None
    return found(
        "ratio_at_start",
        f"it is {ratio:.4g} on average, its log {rms:.3g} a token (root mean square), where "
        f"{precision} explains {bound:g}",
        step=1,
        ratio=ratio,
        rms=rms,
        bound=bound,
    )


def _first(columns: Columns, *names: str) -> tuple[float, ...] | None:
    """The metrics of step 1, where it has them all; NaN counts as infinite."""
    if not all(columns.get(name) for name in names):
        return None
    values = tuple(columns[name][0] for name in names)
    return tuple(math.inf if math.isnan(x) else x for x in values)


def kl_negative(columns: Columns) -> Finding | None:
    """k1 is signed (Detail F3): only a mean below 0 by more than its error is a fault."""
    kl = _of(columns, "objective/kl", WINDOW - 1)
    if kl is None:
        return None
    last = kl[-LEAST:]
    mean = _mean(last)
    errors = _known(list(columns.get("objective/kl_stderr", ()))[-len(last) :])
    if len(errors) == len(last) and any(errors):
        error = math.sqrt(sum(e * e for e in errors)) / len(last)
    else:
        error = statistics.stdev(last) / math.sqrt(len(last))
    if mean >= -max(SIGMAS * error, 0.02):
        return None
    return found(
        "kl_negative",
        f"{mean:.3g} nats a response over {len(last)} updates, with a standard error of "
        f"{error:.2g}",
        kl=mean,
        stderr=error,
        updates=len(last),
    )


def kl_large(columns: Columns) -> Finding | None:
    """Healthy toys stay below 0.45 nats a token; 50 nats in 45 tokens went with lost win rates."""
    per_token = _of(columns, "objective/kl_per_token", 3)
    if per_token is None or _mean(per_token[-3:]) <= 0.75:
        return None
    kl = _known(columns.get("objective/kl", ()))[-3:] or [math.nan]
    return found(
        "kl_large",
        f"{_mean(per_token[-3:]):.2g} nats a token, {_mean(kl):.3g} a response",
        kl_per_token=_mean(per_token[-3:]),
        kl=_mean(kl),
    )


def reward_hacking(columns: Columns) -> Finding | None:
    """Gold below its best by more than noise, while the score is above what it was there."""
    gold, scores = columns.get("objective/gold", ()), columns.get("objective/scores", ())
    pairs = [
        (g, s) for g, s in zip(gold, scores, strict=False) if math.isfinite(g) and math.isfinite(s)
    ]
    if len(pairs) < 2 * WINDOW + 2:
        return None
    golds = [g for g, _ in pairs]
    total = [0.0]
    for g in golds:
        total.append(total[-1] + g)
    means = [(total[i + WINDOW] - total[i]) / WINDOW for i in range(len(golds) - WINDOW + 1)]
    best = max(range(len(means)), key=means.__getitem__)
    drop, error = means[best] - means[-1], _noise(golds) * math.sqrt(2 / WINDOW)
    at_best = _mean([s for _, s in pairs[best : best + WINDOW]])
    now = _mean([s for _, s in pairs[-WINDOW:]])
    if drop <= SIGMAS * error or drop <= 0 or now <= at_best:
        return None
    return found(
        "reward_hacking",
        f"gold fell from {means[best]:.3g} around update {best + 1 + WINDOW // 2} to "
        f"{means[-1]:.3g} ({drop / error if error else math.inf:.1f} standard errors), while the "
        f"score rose from {at_best:.3g} to {now:.3g}",
        gold_best=means[best],
        gold=means[-1],
        stderr=error,
        score_at_best=at_best,
        score=now,
    )


def length_hacking(columns: Columns) -> Finding | None:
    """Score and length rise together, and gold, where there is one, does not."""
    scores = _of(columns, "objective/scores", 2 * WINDOW + 2)
    lengths = _of(columns, "val/response_length", 2 * WINDOW + 2)
    if scores is None or lengths is None or len(scores) != len(lengths):
        return None
    stride = max(1, len(scores) // 200)
    correlation = _correlation(scores[::stride], lengths[::stride])
    (gain, error), growth = _rise(scores), _mean(lengths[-WINDOW:]) / max(_mean(lengths[:3]), 1e-9)
    if correlation < 0.8 or growth < 1.25 or gain <= SIGMAS * error:
        return None
    gold = _of(columns, "objective/gold", 2 * WINDOW + 2)
    if gold is not None:
        better, doubt = _rise(gold)
        if better > 2 * doubt:
            return None
    return found(
        "length_hacking",
        f"responses grew by {growth - 1:.0%} to {_mean(lengths[-WINDOW:]):.3g} tokens, correlated "
        f"with the score at {correlation:.2f} over {len(scores)} updates"
        + (", and gold did not rise" if gold is not None else ""),
        growth=growth,
        correlation=correlation,
        gain=gain,
        updates=len(scores),
    )


def _correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's; 0 where one does not vary."""
    try:
        return statistics.correlation(x, y)
    except statistics.StatisticsError:
        return 0.0


def value_useless(columns: Columns) -> Finding | None:
    """Explained variance below 0 for long; below 0 at first is how every critic begins."""
    explained = _of(columns, "val/explained_variance", 40)
    if explained is None or max(explained[-20:]) >= -0.05:
        return None
    return found(
        "value_useless",
        f"explained variance was below {max(explained[-20:]):.2g} in each of the last 20 updates "
        f"of {len(explained)}, {_mean(explained[-20:]):.2g} on average",
        explained_variance=_mean(explained[-20:]),
        updates=len(explained),
    )


def entropy_collapse(columns: Columns) -> Finding | None:
    """A tenth of what it was, or next to nothing. Healthy toys keep two fifths."""
    entropy = _of(columns, "policy/entropy_avg", LEAST)
    if entropy is None:
        return None
    before, now = _mean(entropy[:3]), _mean(entropy[-WINDOW:])
    if now > max(0.1 * before, 0.005):
        return None
    return found(
        "entropy_collapse",
        f"{now:.2g} nats a token, {before:.2g} at the start",
        entropy=now,
        entropy_at_start=before,
    )


def eos_rate_low(columns: Columns) -> Finding | None:
    """Below a half, or a quarter below where it began."""
    rate = _of(columns, "val/eos_rate", LEAST)
    if rate is None:
        return None
    before, now = _mean(rate[:3]), _mean(rate[-WINDOW:])
    if now >= 0.5 and now >= before - 0.25:
        return None
    return found(
        "eos_rate_low",
        f"{now:.0%} of the responses of the last {WINDOW} updates have an EOS, {before:.0%} at the "
        "start",
        eos_rate=now,
        eos_rate_at_start=before,
    )


def clip_fraction_high(columns: Columns) -> Finding | None:
    """Healthy toys begin at 0.13; the paper's traces stay below 0.08."""
    clipped = _of(columns, "policy/clipfrac_avg", WINDOW)
    if clipped is None or _mean(clipped[-WINDOW:]) <= 0.35:
        return None
    now = _mean(clipped[-WINDOW:])
    return found(
        "clip_fraction_high",
        f"{now:.0%} of the tokens of the last {WINDOW} updates",
        clipfrac=now,
    )


def update_too_large(columns: Columns) -> Finding | None:
    """Healthy toys begin at 0.1 and are at 0.03 by the second update; the paper's at 0.008."""
    approxkl = _of(columns, "policy/approxkl_avg", WINDOW)
    if approxkl is None or _mean(approxkl[-WINDOW:]) <= 0.15:
        return None
    now = _mean(approxkl[-WINDOW:])
    return found(
        "update_too_large",
        f"approxkl is {now:.2g} over the last {WINDOW} updates: a log-ratio of "
        f"{math.sqrt(2 * now):.2g} a token",
        approxkl=now,
    )


def score_spread_lost(columns: Columns) -> Finding | None:
    """A tenth of the standard deviation at the start."""
    spread = _of(columns, "objective/scores_std", LEAST)
    if spread is None:
        return None
    before, now = _mean(spread[:3]), _mean(spread[-WINDOW:])
    if now > 0.1 * before or before == 0:
        return None
    return found(
        "score_spread_lost",
        f"a standard deviation of {now:.2g}, {before:.2g} at the start",
        scores_std=now,
        scores_std_at_start=before,
    )


# --- supervised stages --------------------------------------------------------------------------


def loss_rising(columns: Columns) -> Finding | None:
    """The last ten steps against the first ten."""
    loss = _of(columns, "loss/train", 30)
    if loss is None:
        return None
    rise, error = _rise(loss, 10)
    before = _mean(loss[:10])
    if rise <= SIGMAS * error or rise <= 0.05 * abs(before):
        return None
    return found(
        "loss_rising",
        f"{before + rise:.3g} over the last 10 steps, {before:.3g} over the first 10",
        loss=before + rise,
        loss_at_start=before,
        stderr=error,
    )


def reward_at_chance(columns: Columns) -> Finding | None:
    """Accuracy on training pairs, each before its step, over the second half of the steps."""
    accuracy = _of(columns, "accuracy", 30)
    if accuracy is None:
        return None
    later = accuracy[len(accuracy) // 2 :]
    mean, error = _mean(later), statistics.stdev(later) / math.sqrt(len(later))
    if mean + SIGMAS * error >= 0.55:
        return None
    return found(
        "reward_at_chance",
        f"{mean:.1%} of the pairs of the last {len(later)} steps, with a standard error of "
        f"{error:.1%}",
        accuracy=mean,
        stderr=error,
    )


Monitor = Callable[[Columns], Finding | None]
PPO: tuple[Monitor, ...] = (
    kl_negative,
    kl_large,
    reward_hacking,
    length_hacking,
    value_useless,
    entropy_collapse,
    eos_rate_low,
    clip_fraction_high,
    update_too_large,
    score_spread_lost,
)
MONITORS: Mapping[str, tuple[Monitor, ...]] = {
    "pretrain": (loss_rising,),
    "sft": (loss_rising,),
    "dpo": (loss_rising,),
    "reward": (loss_rising, reward_at_chance),
    "ppo": PPO,
    "reinforce": tuple(monitor for monitor in PPO if monitor is not value_useless),
    "online_dpo": (kl_negative, kl_large, reward_hacking, length_hacking, eos_rate_low),
}
ONLINE = ("ppo", "reinforce")
"""Stages whose first update is an identity: no KL yet, and a ratio of 1."""


def journal_findings(
    stage: str, columns: Columns, rollout: str, training: str
) -> Iterator[Finding]:
    """What the columns of a stage's journal show, as far as they go.

    `rollout` and `training` are the precisions of an online stage's forwards (`bounds.py`).
    """
    found_here = [monitor(columns) for monitor in MONITORS.get(stage, ())]
    if stage in ONLINE:
        found_here += [kl_at_start(columns, rollout), ratio_at_start(columns, training)]
    yield from (finding for finding in found_here if finding is not None)
