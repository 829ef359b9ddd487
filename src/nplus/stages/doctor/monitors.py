"""What a journal's curves say: pure functions of columns of metrics, cheap enough for every step.

A level is judged over a window of the last updates, a rise or fall against the spread between
neighbouring updates. Thresholds are where healthy runs, of the embedded world's toys and of the
paper, have never been.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from nplus.findings import Finding, found
from nplus.stages.doctor.bounds import LOGPROB, MANY_FAILED
from nplus.stages.doctor.windows import (
    LEAST,
    SIGMAS,
    WINDOW,
    Columns,
    known_of,
    known_values,
    lately,
    mean_of,
    noise,
    rise_of,
)

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
    kl = known_of(columns, "objective/kl", WINDOW - 1)
    if kl is None:
        return None
    last = kl[-LEAST:]
    mean = mean_of(last)
    errors = known_values(list(columns.get("objective/kl_stderr", ()))[-len(last) :])
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
    per_token = known_of(columns, "objective/kl_per_token", 3)
    if per_token is None or mean_of(per_token[-3:]) <= 0.75:
        return None
    kl = known_values(columns.get("objective/kl", ()))[-3:] or [math.nan]
    return found(
        "kl_large",
        f"{mean_of(per_token[-3:]):.2g} nats a token, {mean_of(kl):.3g} a response",
        kl_per_token=mean_of(per_token[-3:]),
        kl=mean_of(kl),
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
    drop, error = means[best] - means[-1], noise(golds) * math.sqrt(2 / WINDOW)
    at_best = mean_of([s for _, s in pairs[best : best + WINDOW]])
    now = mean_of([s for _, s in pairs[-WINDOW:]])
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
    scores = known_of(columns, "objective/scores", 2 * WINDOW + 2)
    lengths = known_of(columns, "val/response_length", 2 * WINDOW + 2)
    if scores is None or lengths is None or len(scores) != len(lengths):
        return None
    stride = max(1, len(scores) // 200)
    correlation = _correlation(scores[::stride], lengths[::stride])
    (gain, error), now = rise_of(scores), mean_of(lengths[-WINDOW:])
    growth = now / max(mean_of(lengths[:3]), 1e-9)
    if correlation < 0.8 or growth < 1.25 or gain <= SIGMAS * error:
        return None
    gold = known_of(columns, "objective/gold", 2 * WINDOW + 2)
    if gold is not None:
        better, doubt = rise_of(gold)
        if better > 2 * doubt:
            return None
    return found(
        "length_hacking",
        f"responses grew by {growth - 1:.0%} to {now:.3g} tokens, correlated "
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
    explained = known_of(columns, "val/explained_variance", 40)
    if explained is None or max(explained[-20:]) >= -0.05:
        return None
    return found(
        "value_useless",
        f"explained variance was below {max(explained[-20:]):.2g} in each of the last 20 updates "
        f"of {len(explained)}, {mean_of(explained[-20:]):.2g} on average",
        explained_variance=mean_of(explained[-20:]),
        updates=len(explained),
    )


def entropy_collapse(columns: Columns) -> Finding | None:
    """A tenth of what it was, or next to nothing. Healthy toys keep two fifths."""
    entropy = known_of(columns, "policy/entropy_avg", LEAST)
    if entropy is None:
        return None
    before, now = mean_of(entropy[:3]), mean_of(entropy[-WINDOW:])
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
    rate = known_of(columns, "val/eos_rate", LEAST)
    if rate is None:
        return None
    before, now = mean_of(rate[:3]), mean_of(rate[-WINDOW:])
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
    now = lately(columns, "policy/clipfrac_avg")
    if now is None or now <= 0.35:
        return None
    return found(
        "clip_fraction_high",
        f"{now:.0%} of the tokens of the last {WINDOW} updates",
        clipfrac=now,
    )


def update_too_large(columns: Columns) -> Finding | None:
    """Healthy toys begin at 0.1 and are at 0.03 by the second update; the paper's at 0.008."""
    now = lately(columns, "policy/approxkl_avg")
    if now is None or now <= 0.15:
        return None
    return found(
        "update_too_large",
        f"approxkl is {now:.2g} over the last {WINDOW} updates: a log-ratio of "
        f"{math.sqrt(2 * now):.2g} a token",
        approxkl=now,
    )


def score_spread_lost(columns: Columns) -> Finding | None:
    """A tenth of the standard deviation at the start."""
    spread = known_of(columns, "objective/scores_std", LEAST)
    if spread is None:
        return None
    before, now = mean_of(spread[:3]), mean_of(spread[-WINDOW:])
    if now > 0.1 * before or before == 0:
        return None
    return found(
        "score_spread_lost",
        f"a standard deviation of {now:.2g}, {before:.2g} at the start",
        scores_std=now,
        scores_std_at_start=before,
    )


def scoring_failed(columns: Columns) -> Finding | None:
    """More than a half, from the first update on."""
    share = known_of(columns, "scoring/failed_share", 1)
    if share is None or mean_of(share[-WINDOW:]) <= MANY_FAILED:
        return None
    now = mean_of(share[-WINDOW:])
    return found(
        "scoring_failed",
        f"{now:.0%} of the calls of the last {min(WINDOW, len(share))} updates",
        share=now,
    )


# --- supervised stages --------------------------------------------------------------------------


def loss_rising(columns: Columns) -> Finding | None:
    """The last ten steps against the first ten."""
    loss = known_of(columns, "loss/train", 30)
    if loss is None:
        return None
    rise, error = rise_of(loss, 10)
    before = mean_of(loss[:10])
    if rise <= SIGMAS * error or rise <= 0.05 * abs(before):
        return None
    return found(
        "loss_rising",
        f"{before + rise:.3g} over the last 10 steps, {before:.3g} over the first 10",
        loss=before + rise,
        loss_at_start=before,
        stderr=error,
    )


def chosen_unlikely(columns: Columns) -> Finding | None:
    """Likelihood displacement (Razin et al., 2410.08847): a loss of differences alone lets the
    preferred responses fall with the others, and what they lose goes to texts that no pair has."""
    chosen = known_of(columns, "logps/chosen", 30)
    if chosen is None:
        return None
    rise, error = rise_of(chosen, 5)
    before = mean_of(chosen[:5])
    if rise >= -SIGMAS * error or rise >= -max(0.5 * abs(before), 3.0):
        return None
    return found(
        "chosen_unlikely",
        f"their log-prob is {before + rise:.3g} nats over the last 5 steps, {before:.3g} over the "
        "first 5",
        logprob=before + rise,
        logprob_at_start=before,
        stderr=error,
    )


def reward_at_chance(columns: Columns) -> Finding | None:
    """Accuracy on training pairs, each before its step, over the second half of the steps."""
    accuracy = known_of(columns, "accuracy", 30)
    if accuracy is None:
        return None
    later = accuracy[len(accuracy) // 2 :]
    mean, error = mean_of(later), statistics.stdev(later) / math.sqrt(len(later))
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
    scoring_failed,
)
MONITORS: Mapping[str, tuple[Monitor, ...]] = {
    "pretrain": (loss_rising,),
    "sft": (loss_rising,),
    "dpo": (loss_rising, chosen_unlikely),
    "reward": (loss_rising, reward_at_chance),
    "ppo": PPO,
    "reinforce": tuple(monitor for monitor in PPO if monitor is not value_useless),
    "online_dpo": (
        kl_negative,
        kl_large,
        reward_hacking,
        length_hacking,
        eos_rate_low,
        scoring_failed,
    ),
}
ROUND = re.compile(r"round\d+")
"""Stages of the online loop; those that train do so as DPO does."""
ONLINE = ("ppo", "reinforce")
"""Stages whose first update is an identity: no KL yet, and a ratio of 1."""


def journal_findings(
    stage: str, columns: Columns, rollout: str, training: str
) -> Iterator[Finding]:
    """What the columns of a stage's journal show, as far as they go.

    `rollout` and `training` are the precisions of an online stage's forwards (`bounds.py`).
    """
    kind = "dpo" if ROUND.match(stage) else stage
    found_here = [monitor(columns) for monitor in MONITORS.get(kind, ())]
    if stage in ONLINE:
        found_here += [kl_at_start(columns, rollout), ratio_at_start(columns, training)]
    yield from (finding for finding in found_here if finding is not None)
