"""Further prompts in place of those whose responses are all alike (DAPO, 2503.14476, 3.2)."""

from __future__ import annotations

from typing import Any

from nplus.algorithms import reinforce
from nplus.batches import GroupRollout
from nplus.config import ReinforceConfig
from nplus.records import Demonstration
from nplus.rollout import joined
from nplus.stages.drawing import prompts_at
from nplus.stages.groups import Groups
from nplus.training.update import Beside


def refilled(
    groups: Groups,
    posts: list[Demonstration],
    prompts: list[Demonstration],
    grouped: GroupRollout,
    step: int,
    beside: Beside[Any] | None,
) -> tuple[list[Demonstration], GroupRollout]:
    """The update's prompts and responses, with those of further draws behind them.

    Each draw takes as many prompts as groups are missing, none that the update has already (so
    that its noise is its own). They come from an order of the draw's own, and hang on seed, update
    and draw alone.
    """
    cfg, ctx = groups.cfg, groups.ctx
    draws = cfg.dynamic_sampling_max if isinstance(cfg, ReinforceConfig) else 1
    for draw in range(1, draws):
        lacking = reinforce.missing(grouped, cfg)
        if not lacking:
            break
        name, reshuffle = f"{cfg.stage} prompts, draw {draw}", cfg.reshuffle
        window = prompts_at(posts, cfg.prompts, step, seed=ctx.seed, name=name, reshuffle=reshuffle)
        there = {post.id for post in prompts}
        fresh = {post.id: post for post in window if post.id not in there}
        more = list(fresh.values())[:lacking]
        if not more:
            continue
        parts = [grouped, groups.gather_over_ranks(more, step, beside, lambda part: None)]
        grouped = joined(parts, range(sum(map(len, parts))), pad_id=ctx.codec.pad_id)
        prompts = [*prompts, *more]
    return prompts, grouped
