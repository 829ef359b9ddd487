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
    world_size: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share each batch; budget.gpus, or else 1."),
    ] = None,
) -> None:
    """Print every setting, the batch plan, an estimate of memory, and of GPU-hours where `budget`
    has its assumptions, and the stages of a recipe; run nothing."""
    from nplus.config.load import config_hash, dump_yaml

    cfg = resolve(recipe, config, sets, seed)
    world = world_size or (cfg.budget.gpus if cfg.budget else 1)
    plan = [*_plan(cfg, world), *_loop(cfg, world), *_memory(cfg, world), *_budget(cfg, world)]
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
    from nplus.config.batch_plan import batch_plan, known_rows, supervised_plan

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
        rows = known_rows(cfg, name)
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
    from nplus.config.batch_plan import loop_pairs, supervised_plan

    loop = cfg.online
    if loop is None or "online" not in cfg.stage_names():
        return
    prompts = loop.rounds * loop.prompts
    responses = prompts * loop.samples
    yield (
        f"# online: {loop.rounds} rounds of {loop.prompts:,} prompts with {loop.samples} responses "
        f"each: {prompts:,} prompts of {loop.prompts_data or 'the demonstrations'}, {responses:,} "
        f"responses, at most {responses * loop.response_length:,} tokens"
    )
    for number in range(1, loop.rounds + 1):
        pairs = sum(loop_pairs(cfg, number))
        plan = supervised_plan(
            loop.train.batch,
            rows=pairs,
            epochs=loop.train.epochs,
            world_size=world_size,
            where="online.train.batch",
        )
        yield (
            f"# round {number}: {plan.steps} optimiser steps of {loop.train.batch.batch_size} "
            f"pairs (at most {pairs:,} pairs, {loop.train.epochs} epochs)"
        )


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


def _budget(cfg: RunConfig, world_size: int) -> Iterator[str]:
    """The estimate of tokens and GPU-hours, and whether memory is enough."""
    from nplus.config.cost import gpu_hours, works
    from nplus.config.online import step_of
    from nplus.config.shapes import shape_of

    budget, shape = cfg.budget, shape_of(cfg)
    if budget is None or shape is None:
        return
    yield from _room(cfg, world_size)
    yield from _assumed(cfg)
    total, known = 0.0, works(cfg, shape, budget)
    if "sft" in cfg.stage_names() and "sft" not in known:
        one = budget.model_copy(update={"sft_tokens": 1_000_000_000})
        each = gpu_hours(works(cfg, shape, one)["sft"], cfg, shape, one)["trained"]
        yield f"# sft: {each:.1f} GPU-hours for each 1,000M tokens of data (budget.sft_tokens)"
    for name, work in known.items():
        hours = gpu_hours(work, cfg, shape, budget)
        tokens = [f"{_millions(getattr(work, part))} {part}" for part in hours]
        parts = [f"{part} {value:.1f}" for part, value in hours.items()]
        total += sum(hours.values())
        yield (
            f"# {name}: {', '.join(tokens)} tokens: {sum(hours.values()):.1f} GPU-hours"
            + (f" = {' + '.join(parts)}" if len(parts) > 1 else "")
        )
    left = [name for name in cfg.stage_names() if name not in known and name != "online"]
    steps = {name: step_of(name) for name in left}
    without = dict.fromkeys(f"the rounds' {at.kind}" if at else name for name, at in steps.items())
    yield (
        f"# in all {total:,.0f} GPU-hours, {total / world_size:,.0f} hours on {world_size} "
        f"GPU{'s' if world_size > 1 else ''}, without {', '.join(without)}"
    )


def _room(cfg: RunConfig, world_size: int) -> Iterator[str]:
    """Which stages do not fit a GPU of the budget: as they are, and with state shared out."""
    from nplus.config.budget import GPUS
    from nplus.config.memory import GIB, memory_plan
    from nplus.config.shapes import shape_of

    shape = shape_of(cfg)
    assert cfg.budget is not None
    assert shape is not None
    room = GPUS[cfg.budget.gpu].memory
    for size, how in ((world_size, "shared out"), (1, "in every process, as `nplus run` keeps it")):
        plan = memory_plan(cfg, shape, world_size=size)
        over = [f"{s} {n.total / GIB:.0f}" for s, n in plan.items() if n.total / GIB > room]
        told = f"over it: {', '.join(over)}" if over else "every stage fits"
        yield f"# {room:.0f} GiB of {cfg.budget.gpu}, with state {how}: {told}"


def _assumed(cfg: RunConfig) -> Iterator[str]:
    """The assumptions of the budget, in words."""
    from nplus.config.cost import Lengths

    budget = cfg.budget
    assert budget is not None
    mean, loop = Lengths.of(cfg, budget), ""
    if cfg.online is not None:
        loop = f"{mean.prompt:.0f} tokens a prompt and {mean.response:.0f} a response of the loop, "
    yield (
        f"# GPU-hours of {budget.gpu}, an estimate and no measurement; assumed (budget.*) are "
        f"{budget.mfu:.0%} of its peak in forwards and backwards, {budget.mbu:.0%} of its "
        "bandwidth in drawing"
    )
    yield (
        f"# and means of {loop}{mean.pair_prompt:.0f}, {mean.pair_chosen:.0f} and "
        f"{mean.pair_rejected:.0f} of a comparison's prompt, chosen and rejected response"
    )


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:,.1f}M"
