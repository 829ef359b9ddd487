"""What a batch configuration comes to: rows per process, micro-batches, optimiser steps."""

from __future__ import annotations

from dataclasses import dataclass

from nplus.config.hub import HUB_ROWS
from nplus.config.on_policy import OnPolicyConfig
from nplus.config.optim import BatchConfig
from nplus.config.run import RunConfig
from nplus.records import InputError


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """PPO's arithmetic (Detail G1): `batch = micro * micro_batches * minibatches * world_size`."""

    world_size: int
    """Processes."""
    updates: int
    """Rollout batches: `total_episodes // batch_size`."""
    local_rows: int
    """Responses of one update in one process."""
    minibatch_rows: int
    """Rows of one optimiser step in one process."""
    micro_batches: int
    """Forwards and backwards of one optimiser step in one process."""
    optimiser_steps: int
    """Over the whole run: `updates * passes over a batch * num_mini_batches`."""
    episodes_used: int
    """Responses sampled: `updates * batch_size`."""
    episodes_left: int
    """Episodes of `total_episodes` that do not fill a batch and are not sampled."""


@dataclass(frozen=True, slots=True)
class SupervisedPlan:
    """One supervised stage: passes over `rows`, cut into whole batches."""

    world_size: int
    """Processes."""
    steps: int
    """Optimiser steps: `epochs * rows // batch_size`, at least one."""
    local_rows: int
    """Rows of one step in one process."""
    micro_batches: int
    """Forwards and backwards of one step in one process."""
    rows_used: int
    """Rows seen: `steps * batch_size`."""


def batch_plan(cfg: OnPolicyConfig, *, world_size: int = 1) -> BatchPlan:
    """The plan of an online stage over `world_size` processes; `InputError` where the rows do not
    divide."""
    _positive(world_size)
    per_minibatch, rest = divmod(cfg.batch_size, world_size * cfg.num_mini_batches)
    if rest:
        raise InputError(
            f"{cfg.stage}.batch_size={cfg.batch_size} does not divide over {world_size} processes "
            f"times {cfg.stage}.num_mini_batches={cfg.num_mini_batches}; make it a multiple of "
            f"{world_size * cfg.num_mini_batches}"
        )
    return BatchPlan(
        world_size=world_size,
        updates=cfg.updates,
        local_rows=per_minibatch * cfg.num_mini_batches,
        minibatch_rows=per_minibatch,
        micro_batches=_micro_batches(cfg.stage, per_minibatch, cfg.micro_batch_size),
        optimiser_steps=cfg.updates * cfg.passes * cfg.num_mini_batches,
        episodes_used=cfg.updates * cfg.batch_size,
        episodes_left=cfg.total_episodes % cfg.batch_size,
    )


def known_rows(cfg: RunConfig, stage: str) -> int | None:
    """Rows that a supervised stage trains on, where they are known without the data."""
    if stage in ("reward", "dpo", "preference"):
        there = HUB_ROWS.get(cfg.data.comparisons.data or "", {}).get("train", cfg.label.pairs)
        most = getattr(getattr(cfg, stage), "max_rows", None)
        return min(cfg.label.pairs, there, most or there)
    world = cfg.data.source == "world"
    if stage == "pretrain":
        return cfg.data.world.pretrain if world else None
    posts = HUB_ROWS.get(cfg.data.data or "", {}).get("train")
    rows = cfg.data.world.train if world else posts
    limits = [limit for limit in (cfg.data.max_rows, cfg.sft.max_rows) if limit is not None]
    return None if rows is None else min([rows, *limits])


def loop_pairs(cfg: RunConfig, round: int) -> tuple[int, int]:
    """Offline comparisons and pairs of its own that a round of the online loop trains on, if every
    prompt makes a pair."""
    loop = cfg.online
    assert loop is not None
    offline = (loop.offline_pairs or cfg.label.pairs) if loop.history == "offline-mix" else 0
    return offline, loop.prompts * (1 if loop.history == "fresh" else round)


def require_batches(config: RunConfig, *, world_size: int = 1) -> None:
    """InputError where the batches of an online stage of this run do not divide."""
    for stage in (config.ppo, config.reinforce, config.online_dpo):
        if stage is not None:
            batch_plan(stage, world_size=world_size)


def supervised_plan(
    batch: BatchConfig, *, rows: int, epochs: int = 1, world_size: int = 1, where: str = "batch"
) -> SupervisedPlan:
    """The plan of pre-training, SFT or reward modelling on `rows` rows (pairs for the latter).

    `where` is the batch's key, for error messages.
    """
    _positive(world_size)
    if rows < 1:
        raise InputError("no rows to train on: give at least one")
    local_rows, rest = divmod(batch.batch_size, world_size)
    if rest:
        raise InputError(
            f"{where}.batch_size={batch.batch_size} does not divide over {world_size} processes; "
            f"make it a multiple of {world_size}"
        )
    steps = max(1, epochs * rows // batch.batch_size)
    return SupervisedPlan(
        world_size=world_size,
        steps=steps,
        local_rows=local_rows,
        micro_batches=_micro_batches(where, local_rows, batch.micro_batch_size),
        rows_used=steps * batch.batch_size,
    )


def _micro_batches(where: str, rows: int, micro_batch_size: int) -> int:
    count, rest = divmod(rows, micro_batch_size)
    if rest:
        raise InputError(
            f"{where}.micro_batch_size={micro_batch_size} does not divide the {rows} rows that one "
            "process has in an optimiser step; choose one that does"
        )
    return count


def _positive(world_size: int) -> None:
    if world_size < 1:
        raise InputError(f"world_size={world_size}: at least one process is needed")
