"""What the steps of the loop are to the pipeline: their settings, their inputs, their code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from nplus.config import RunConfig
from nplus.config.online import Step
from nplus.config.run import reward_stages
from nplus.distributed.topology import Topology
from nplus.runs import StageDir
from nplus.stages.context import Context
from nplus.stages.online import choose, pair, prompts, sample, score, train, validate
from nplus.stages.online.common import begins_at, policy_stage, refers_to, rounds_used
from nplus.stages.online.validate import BASE
from nplus.stages.scoring import scoring_key

VERSIONS = {"sample": 1, "score": 4, "pair": 3, "train": 2, "validate": 1}
"""Raised when a step's algorithm changes, so that old results are not taken for new ones."""

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "sample": ("prompts", "samples", "draw", "response_length", "micro_batch_size", "piece"),
    "score": ("scorer", "micro_batch_size", "piece"),
    "pair": (
        "aggregate",
        "length_penalty",
        "length_unit",
        "missing_eos_penalty",
        "mask_truncated_completions",
        "pairing",
        "min_margin",
        "reference",
    ),
    "train": ("reference", "init", "history", "offline_pairs", "train"),
    "validate": ("valid_prompts",),
}
"""The part of `online` that each step's result depends on: what another setting does not touch is
not done again."""


def settings_of(step: Step, config: RunConfig) -> dict[str, Any]:
    """What a step's key covers of the configuration, beside what all stages share."""
    assert config.online is not None
    parts: dict[str, Any] = {
        "online": config.online.model_dump(mode="json", include=set(SETTINGS[step.kind]))
    }
    if step.kind == "score":
        parts["knockout"] = config.online.pairing == "knockout"
        if not config.scoring.plain:
            parts["scoring"] = scoring_key(config.scoring)
    if step.kind == "validate":
        whole = config.evaluate.model_dump(mode="json")
        names = ("temperatures", "response_length", "micro_batch_size", "use_stemmer")
        parts["evaluate"] = {name: whole[name] for name in (*names, "length_bins", "judge")}
        if config.evaluate.judge == "llm":
            parts["judge"] = config.judge.asked
    return parts


def inputs_of(step: Step, config: RunConfig) -> tuple[str, ...]:
    """The stages that a step reads."""
    cfg, number = config.online, step.round
    assert cfg is not None
    reference = policy_stage(refers_to(cfg, number))
    found: tuple[str, ...]
    match step.kind:
        case "sample":
            makers = {policy_stage(source.after(number)) for source in cfg.sources}
            prompts = ("prompts",) if cfg.prompts_data else ()
            found = ("data", *prompts, *sorted(makers))
        case "score":
            found = ("data", *scoring_stages(config), Step(number, "sample").name)
        case "pair":
            found = (Step(number, "sample").name, Step(number, "score").name, reference)
        case "train":
            offline = ("label",) if cfg.history == "offline-mix" else ()
            pairs = (Step(each, "pair").name for each in rounds_used(cfg, number))
            found = ("data", policy_stage(begins_at(cfg, number)), reference, *offline, *pairs)
        case _:
            base = () if number == BASE else ("sft", Step(BASE, "validate").name)
            found = ("data", "reward", policy_stage(number), *base)
    return tuple(dict.fromkeys(found))


def scoring_stages(config: RunConfig) -> tuple[str, ...]:
    """The stages whose models judge the loop's responses."""
    assert config.online is not None
    asked = ("preference",) if config.online.pairing == "knockout" else ()
    ensemble = config.online.scorer == "ensemble"
    return (*(reward_stages(config.reward) if ensemble else ("reward",)), *asked)


def chooses_from(config: RunConfig) -> tuple[str, ...]:
    """The stages that the end of the loop reads."""
    assert config.online is not None
    return tuple(
        step.name for step in config.online.steps() if step.kind in ("pair", "train", "validate")
    )


def functions(ctx: Context) -> dict[str, Callable[[StageDir], Any]]:
    """Every step by its stage's name, and the stages before and after the rounds."""
    if ctx.config.online is None:
        return {}
    alone = replace(ctx, topology=Topology())

    def of(step: Step) -> Callable[[StageDir], Any]:
        number = step.round

        def dir_of(kind: str) -> StageDir:
            return ctx.dirs[Step(number, kind).name]

        return {
            "sample": lambda where: sample.run(where, ctx, number),
            "score": lambda where: score.run(where, alone, dir_of("sample")),
            "pair": lambda where: pair.run(where, alone, dir_of("sample"), dir_of("score"), number),
            "train": lambda where: train.run(where, ctx, number),
            "validate": lambda where: validate.run(where, alone, number),
        }[step.kind]

    found = {step.name: of(step) for step in ctx.config.online.steps()}
    around = {"prompts": partial(prompts.run, ctx=alone), "online": partial(choose.run, ctx=alone)}
    return {**found, **around}
