"""`nplus check` and `nplus recipes`: what would run, without running it and without torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from nplus.cli.options import ConfigFile, Recipe, Seed, Sets, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nplus.config import RunConfig


def check(
    recipe: Recipe,
    sets: Sets = None,
    config: ConfigFile = None,
    seed: Seed = None,
    world_size: Annotated[int, typer.Option(min=1, help="Processes that share each batch.")] = 1,
) -> None:
    """Print every setting, the batch plan, an estimate of memory and the stages of a recipe, and
    run nothing."""
    from nplus.config.load import config_hash, dump_yaml

    cfg = resolve(recipe, config, sets, seed)
    plan = [*_plan(cfg, world_size), *_loop(cfg, world_size), *_memory(cfg, world_size)]
    typer.echo(dump_yaml(cfg))
    typer.echo("\n".join([*plan, *_autos(cfg), *_semantics(cfg)]))
    typer.echo(f"# stages: {', '.join(cfg.stage_names())}")
    typer.echo(f"# config hash: {config_hash(cfg)}")


def recipes() -> None:
    """List the recipes."""
    from nplus.recipes import RECIPES, summary

    width = max(map(len, RECIPES))
    for name in RECIPES:
        typer.echo(f"{name:{width}}  {summary(name)}")


def _autos(cfg: RunConfig) -> Iterator[str]:
    """Which settings are settled only when it runs."""
    from nplus.config.auto import auto_keys
    from nplus.config.load import default_of

    for key in auto_keys(cfg):
        yield (
            f"# {key}: what `nplus tune` found on the machine that runs it, "
            f"else {json.dumps(default_of(key))}"
        )


def _semantics(cfg: RunConfig) -> Iterator[str]:
    """Whose PPO this is, and which numbered details stand otherwise than by default."""
    from nplus.cli.details import changed
    from nplus.config import relatives
    from nplus.config.profiles import profile_values, told

    stages = cfg.stage_names()
    if cfg.reinforce is not None and "reinforce" in stages:
        yield f"# {relatives.told(cfg.reinforce)}"
    if cfg.ppo is not None and "ppo" in stages:
        yield f"# {told(cfg.ppo)}"
        values = (f"{key}={value}" for key, value in profile_values(cfg.ppo).items())
        yield f"# the profile's keys: {', '.join(values)}"
    yield "# details that stand otherwise than by default (`nplus details` lists all):"
    yield from (f"#   {line}" for line in changed(cfg.model_dump(mode="json")))


def _plan(cfg: RunConfig, world_size: int) -> Iterator[str]:
    """The batch plan, as YAML comments so that the whole output stays a config file."""
    from nplus.config.batch_plan import batch_plan, supervised_plan

    stages = cfg.stage_names()
    trained = (
        ("pretrain", cfg.pretrain),
        ("sft", cfg.sft),
        ("dpo", cfg.dpo),
        ("preference", cfg.preference),
        ("reward", cfg.reward),
    )
    yield f"# batch plan over {world_size} process{'es' if world_size > 1 else ''}"
    for name, stage in trained:
        if stage is None or name not in stages:
            continue
        rows = _rows(cfg, name)
        if rows is None:
            yield f"# {name}: batches of {stage.batch.batch_size} rows; steps depend on the data"
            continue
        plan = supervised_plan(
            stage.batch,
            rows=rows,
            epochs=stage.epochs,
            world_size=world_size,
            where=f"{name}.batch",
        )
        yield (
            f"# {name}: {plan.steps} optimiser steps of {stage.batch.batch_size} rows "
            f"({rows} rows, {stage.epochs} epochs, {plan.micro_batches} micro-batches a step)"
        )
    for name, online in (
        ("ppo", cfg.ppo),
        ("reinforce", cfg.reinforce),
        ("online_dpo", cfg.online_dpo),
    ):
        if online is not None and name in stages:
            told = asdict(batch_plan(online, world_size=world_size))
            yield f"# {name}: " + ", ".join(f"{key}={value}" for key, value in told.items())


def _loop(cfg: RunConfig, world_size: int) -> Iterator[str]:
    """What the online loop draws, scores and trains on, if every pair is kept."""
    from nplus.config.batch_plan import supervised_plan

    loop = cfg.online
    if loop is None or "online" not in cfg.stage_names():
        return
    responses = loop.rounds * loop.prompts * loop.samples
    yield (
        f"# online: {loop.rounds} rounds of {loop.prompts:,} prompts with {loop.samples} responses "
        f"each: {responses:,} responses, at most {responses * loop.response_length:,} tokens"
    )
    offline = (loop.offline_pairs or cfg.label.pairs) if loop.history == "offline-mix" else 0
    for number in range(1, loop.rounds + 1):
        rounds = 1 if loop.history == "fresh" else number
        plan = supervised_plan(
            loop.train.batch,
            rows=offline + rounds * loop.prompts,
            epochs=loop.train.epochs,
            world_size=world_size,
            where="online.train.batch",
        )
        yield (
            f"# round {number}: {plan.steps} optimiser steps of {loop.train.batch.batch_size} "
            f"pairs (at most {offline + rounds * loop.prompts:,} pairs, {loop.train.epochs} epochs)"
        )


def _rows(cfg: RunConfig, stage: str) -> int | None:
    """Rows that a supervised stage trains on, where they are known without the data."""
    from nplus.config.hub import HUB_ROWS

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


def _memory(cfg: RunConfig, world_size: int) -> Iterator[str]:
    """The estimate of memory, as YAML comments."""
    from nplus.config.memory import GIB, memory_plan
    from nplus.config.shapes import shape_of

    shape = shape_of(cfg)
    if shape is None:
        name = cfg.model.model_name_or_path
        yield f"# memory: {name} has a shape not known here; give a directory with config.json"
        return
    yield f"# memory of one process, estimated in GiB ({shape.parameters:,} parameters)"
    for stage, need in memory_plan(cfg, shape, world_size=world_size).items():
        states = [f"{name} {size / GIB:.1f}" for name, size in need.states.items() if size]
        phases = [f"{name} {size / GIB:.1f}" for name, size in need.phases.items()]
        parts = " + ".join(states) + " + " + " or ".join(phases)
        yield f"# {stage}: {need.total / GIB:.1f} = {parts}"
    yield (
        "# it takes every row as long as allowed, and for more than one process all state of "
        "trained models but their weights shared out (ZeRO stage 2)"
    )
