"""`nplus check` and `nplus recipes`: what would run, without running it and without torch."""

from __future__ import annotations

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
    world_size: Annotated[int, typer.Option(help="Processes that share each batch.")] = 1,
) -> None:
    """Print every setting, the batch plan and the stages of a recipe, and run nothing."""
    from nplus.config.load import config_hash, dump_yaml

    cfg = resolve(recipe, config, sets, seed)
    plan = list(_plan(cfg, world_size))
    typer.echo(dump_yaml(cfg))
    typer.echo("\n".join(plan))
    typer.echo(f"# stages: {', '.join(cfg.stage_names())}")
    typer.echo(f"# config hash: {config_hash(cfg)}")


def recipes() -> None:
    """List the recipes."""
    from nplus.recipes import RECIPES, summary

    width = max(map(len, RECIPES))
    for name in RECIPES:
        typer.echo(f"{name:{width}}  {summary(name)}")


def _plan(cfg: RunConfig, world_size: int) -> Iterator[str]:
    """The batch plan, as YAML comments so that the whole output stays a config file."""
    from nplus.config.batch_plan import batch_plan, supervised_plan

    world = cfg.data.world
    known = cfg.data.source == "world"
    trained = (
        ("pretrain", cfg.pretrain, world.pretrain if known else None),
        ("sft", cfg.sft, min(world.train, cfg.sft.max_rows or world.train) if known else None),
        ("reward", cfg.reward, cfg.label.pairs),
    )
    yield f"# batch plan over {world_size} process{'es' if world_size > 1 else ''}"
    for name, stage, rows in trained:
        if stage is None:
            continue
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
    ppo = asdict(batch_plan(cfg.ppo, world_size=world_size))
    yield "# ppo: " + ", ".join(f"{key}={value}" for key, value in ppo.items())
