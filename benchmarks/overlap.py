"""Generation beside training against one after the other: seconds, and the win rate at the end.

    nplus run toy --until reward --out runs/overlap
    python benchmarks/overlap.py runs/overlap --seeds 1 2 3

Three ways to train by RLOO on the models of a run: one process that draws, then trains; two that
share both by halves; and one that draws the next responses while the other trains
(`max_staleness=1`). The three do each update in turns, so that a noisy machine is noisy to all of
them alike. Then each policy's near-greedy responses to the test posts are set against the
references by the gold score. Seconds are of whole updates, those at the start included, where
nothing has been drawn ahead yet. Intervals of win rates and of their differences are by t over
seeds, since a run is one observation of what training does; of one seed they are bootstraps over
posts, and speak of that run alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from common import keep
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from nplus.config import SamplingConfig
from nplus.config.load import load_config, read_config
from nplus.evaluation.effects import over_seeds
from nplus.runs import RunRoot
from nplus.stages import reinforce
from nplus.stages.compute import resolve_device
from nplus.stages.context import Context
from nplus.stages.drawing import draw
from nplus.stats import Interval, bootstrap_mean

WAYS: dict[str, tuple[str, ...]] = {
    "one process": ("compute.side_by_side=false",),
    "two halves": ("compute.side_by_side=true",),
    "ahead": ("compute.side_by_side=true", "reinforce.max_staleness=1"),
}
SYNCHRONOUS = ("one process", "two halves")
GREEDY = 0.01
"""The first temperature of the toy's verdict (Detail H1)."""
TOLD = ("objective/kl", "objective/gold", "val/staleness", "val/importance_bounded")


def context(run: Path, seed: int, threads: int, sets: Sequence[str]) -> Context:
    """The run's data and models under other settings of the one stage."""
    root = RunRoot(run)
    base = read_config(root.index()["config"], str(run))
    # A recipe without the stage begins it with the budget of its PPO.
    own = (f"seed={seed}", f"compute.threads={threads}")
    rloo = ("reinforce.algorithm=rloo", "reinforce.layout=shared")
    config = load_config(base, sets=(*own, *rloo, *sets))
    return Context(config, resolve_device(config.compute), Console(quiet=True), root.stages())


def trained(contexts: dict[str, Context]) -> dict[str, dict[str, Any]]:
    """Every way to its end, an update of each in turn: seconds, last metrics and posts won."""
    found: dict[str, dict[str, Any]] = {way: {"seconds": []} for way in contexts}
    with ExitStack() as stack:
        trainers = {way: reinforce.trainer(ctx) for way, ctx in contexts.items()}
        for trainer in trainers.values():
            stack.enter_context(closing(trainer))
        for step in range(trainers["ahead"].plan.updates):
            for way, trainer in trainers.items():
                began = time.perf_counter()
                metrics = trainer.update(step).metrics
                found[way]["seconds"].append(time.perf_counter() - began)
                found[way]["last"] = {name: metrics[name] for name in TOLD if name in metrics}
        for way, trainer in trainers.items():
            ahead = trainer.ahead
            shared = trainer.beside is not None or (ahead and ahead.worker is not None)
            found[way]["processes"] = 2 if shared else 1
    for way, trainer in trainers.items():
        found[way]["won"] = won(contexts[way], trainer.policy.eval())
    return found


def won(ctx: Context, policy: Any) -> list[float]:
    """1, 1/2 or 0 for each test post: the policy's near-greedy response against the reference."""
    posts, gold = ctx.data.demonstrations("test"), ctx.gold()
    assert gold is not None
    length = ctx.config.evaluate.response_length
    sampling = SamplingConfig(temperature=GREEDY, response_length=length)
    size = ctx.config.evaluate.micro_batch_size
    drawn = draw(policy, posts, sampling, ctx, name=f"evaluate {GREEDY:g}", size=size)
    pairs = [
        (gold.judge(post.id, each.text).total, gold.judge(post.id, post.response).total)
        for post, each in zip(posts, drawn, strict=True)
    ]
    return [0.5 + 0.5 * ((ours > theirs) - (ours < theirs)) for ours, theirs in pairs]


def over_runs(rows: Sequence[Sequence[float]]) -> Interval:
    """The mean over seeds of what each came to over the posts."""
    if len(rows) == 1:
        return bootstrap_mean(np.asarray(rows[0]), seed=0)
    return over_seeds(np.mean(np.asarray(rows), axis=1))


def report(seeds: dict[int, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """What all seeds come to, printed."""
    rows: dict[str, Any] = {}
    for way in WAYS:
        runs = [found[way] for found in seeds.values()]
        rate = over_runs([run["won"] for run in runs])
        rows[way] = {
            "processes": runs[0]["processes"],
            "seconds": [sum(run["seconds"]) for run in runs],
            "update": statistics.median(s for run in runs for s in run["seconds"]),
            "win_rate": rate._asdict(),
            "per_seed": [statistics.fmean(run["won"]) for run in runs],
            "last": [run["last"] for run in runs],
        }
        print(
            f"{way:12} {rows[way]['processes']} process(es), {sum(rows[way]['seconds']):.1f} s, "
            f"an update {rows[way]['update']:.3f} s, win rate {shown(rate)}"
        )
    for way in SYNCHRONOUS:
        ratio = sum(rows["ahead"]["seconds"]) / sum(rows[way]["seconds"])
        pairs = [(found["ahead"]["won"], found[way]["won"]) for found in seeds.values()]
        difference = over_runs([np.subtract(*pair).tolist() for pair in pairs])
        rows["ahead"][f"against {way}"] = {"seconds": ratio, "win_rate": difference._asdict()}
        same = difference.low <= 0.0 <= difference.high
        print(
            f"ahead / {way}: {ratio:.3f} of the seconds, win rate {shown(difference, sign='+')}: "
            f"{'no difference beyond the interval' if same else 'they differ'}"
        )
    return rows


def shown(found: Interval, sign: str = "") -> str:
    return f"{found.value:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run up to its reward model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--name", default="overlap", help="of the file in benchmarks/results")
    args = parser.parse_args()
    disable_progress_bar()
    seeds = {}
    for seed in args.seeds:
        contexts = {
            way: context(args.run, seed, args.threads, (*args.sets, *own))
            for way, own in WAYS.items()
        }
        seeds[seed] = trained(contexts)
    rows = report(seeds)
    print(keep(args.name, {"seeds": args.seeds, "sets": args.sets, "ways": rows}))


if __name__ == "__main__":
    main()
