"""The whole road: every stage in order, each skipped when complete and unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from nplus.config import RunConfig, profiles, relatives
from nplus.config.online import Step, step_of
from nplus.config.run import ONLINE, member_of, reward_stages
from nplus.data.tokens import Codec
from nplus.distributed.topology import Topology, connected
from nplus.engines.api import require_judge
from nplus.models.files import model_source, require_loadable
from nplus.records import InputError
from nplus.runs import (
    Pipeline,
    RunRoot,
    StageDir,
    Stop,
    alone_in,
    content_hash,
    key_of,
    told_of_refusals,
)
from nplus.seeding import stream
from nplus.stages import (
    curve,
    data,
    dpo,
    evaluate,
    label,
    online_dpo,
    ppo,
    preference,
    pretrain,
    reinforce,
    reward,
    sample,
    sft,
)
from nplus.stages.compute import device_name, resolve_device
from nplus.stages.context import Context
from nplus.stages.copying import require_copying
from nplus.stages.doctor.watch import Watch
from nplus.stages.online import prompts, steps
from nplus.stages.ranks import Follower, dismiss, lead, telling
from nplus.stages.scoring import require_terms, scoring_key
from nplus.stages.systems import POLICIES
from nplus.stages.tuning.settle import Settled, settle

VERSIONS = {
    "data": 4,
    "prompts": 1,
    "pretrain": 2,
    "sft": 1,
    "sample": 1,
    "label": 5,
    "preference": 2,
    "reward": 2,
    "ppo": 1,
    "reinforce": 1,
    "online_dpo": 2,
    "dpo": 1,
    "online": 1,
    "curve": 2,
    "evaluate": 4,
}
"""Raised when a stage's algorithm changes, so that old results are not taken for new ones."""

SPEED_KEYS = ("threads", "side_by_side", "allocator", "activation_checkpointing")
"""Of `compute`: they change speed and not the algorithm, and stand in no key."""

PICKLE_NOTE = (
    "model.allow_pickle=true: pickled weights are read where there are no safetensors; take them "
    "only from people you trust"
)

OUTSIDE = ("data", "prompts")
"""Stages that read files of the user's."""

LOOP_KEYS = {"prompts": "prompts_data", "online": "choose"}
"""Stages around the online loop, and what of its settings each depends on."""

INPUTS = {
    "prompts": ("data",),
    "pretrain": ("data",),
    "sft": ("data", "pretrain"),
    "sample": ("data", "sft"),
    "label": ("data", "sample"),
    "preference": ("data", "sft", "label"),
    "reward": ("data", "sft", "label"),
    "ppo": ("data", "sft", "reward"),
    "reinforce": ("data", "sft", "reward"),
    "online_dpo": ("data", "sft", "reward"),
    "dpo": ("data", "sft", "label"),
    "evaluate": ("data", "sft", "label", "reward", *POLICIES[1:]),
}


def version_of(name: str) -> int:
    """The number of a stage's algorithm."""
    if step := step_of(name):
        return steps.VERSIONS[step.kind]
    return VERSIONS["reward" if member_of(name) else name]


def inputs_of(name: str, config: RunConfig) -> tuple[str, ...]:
    """The stages that a stage reads, of those that a run may have."""
    if step := step_of(name):
        return steps.inputs_of(step, config)
    if name == "online":
        return steps.chooses_from(config)
    if name == "curve":
        return curve.inputs_of(config)
    return INPUTS.get("reward" if member_of(name) else name, ())


def stage_config(name: str, config: RunConfig) -> dict[str, Any]:
    """The part of the config that a stage's result depends on, and so its key."""
    shared = ("tokenizer", "model") if name == "data" else ("compute", "model", "tokenizer")
    parts = {key: getattr(config, key).model_dump(mode="json") for key in shared}
    for key in SPEED_KEYS:
        parts.get("compute", {}).pop(key, None)
    parts["model"].pop("allow_pickle")  # how the same weights are stored
    if name in ("data", "pretrain"):  # the base model knows neither
        parts["tokenizer"].pop("distinct_pad")
        parts["model"].pop("dropout")
    if step := step_of(name):
        return parts | steps.settings_of(step, config)
    if name in LOOP_KEYS:
        return config.online.model_dump(include={LOOP_KEYS[name]}) if config.online else {}
    member = member_of(name)
    part = "reward" if member else name
    parts[part] = getattr(config, part).model_dump(mode="json")
    if member:
        parts["reward"].pop("members")
        parts |= {"member": member} if member > 1 else {}
    if name in ONLINE and not config.scoring.plain:
        parts["scoring"] = scoring_key(config.scoring)
    if name in ("curve", "evaluate") and config.evaluate.judge == "llm":
        parts["judge"] = config.judge.asked
    if name == "curve":
        names = {"judge", "response_length", "micro_batch_size", "length_bins", "use_stemmer"}
        parts["evaluate"] = config.evaluate.model_dump(mode="json", include=names)
    if name == "sft":
        # The copy test generates with the verdict's length; the gate acts outside the stage.
        parts["sft"].pop("copy_gate")
        parts["evaluate"] = {"response_length": config.evaluate.response_length}
    return parts


def outside_inputs(config: RunConfig, stage: str | None = None) -> dict[str, str]:
    """Files that the stages `data` and `prompts`, or one of them, read, by content, so that a
    changed file is a changed run; of all stages, the rewards beside the reward model too."""
    data = config.data
    sources: dict[str, str | None] = {}
    if stage in (None, "data"):
        sources |= {"comparisons": data.comparisons.data, "chat_template": data.chat_template}
        sources |= {"data": data.data} if data.source == "files" else {}
    if stage in (None, "prompts") and config.online is not None:
        sources["prompts"] = config.online.prompts_data
    paths = {role: Path(source).expanduser() for role, source in sources.items() if source}
    try:
        found = {
            role: f"{path}:{content_hash(path)}"
            for role, path in paths.items()
            if path.is_file() or path.is_dir()  # never a pipe or a device, which has no end
        }
    except OSError as error:
        raise InputError(
            f"{error.filename or ', '.join(map(str, paths.values()))}: cannot read it "
            f"({error.strerror}); name a file or folder that can be read"
        ) from error
    if stage is None and not config.scoring.plain:
        found["scoring"] = key_of(scoring_key(config.scoring))
    return found


def preflight(config: RunConfig) -> None:
    """Look at rewards, the loop's prompts, model, tokenizer and judge before any work; InputError
    names what is wrong. (The stage `data` comes first anyway, and looks at the rest.)"""
    disable_progress_bar()  # ours shows the steps; transformers' shows each file
    verdicts = ("evaluate", "curve", Step(steps.BASE, "validate").name)
    if config.evaluate.judge == "llm" and any(name in config.stage_names() for name in verdicts):
        require_judge(config.judge)
    require_terms(config.scoring)
    if "prompts" in config.stage_names():
        prompts.rows_of(config)
    if config.model.size is not None:
        return
    source = model_source(config.model)
    require_loadable(config.model)
    if config.tokenizer.vocab_size is None:
        options = {"revision": config.model.revision}
        trust = config.model.trust_remote_code
        pad = config.tokenizer.pad_token
        codec = Codec.load(source, pad_token=pad, trust_remote_code=trust, **options)
        codec.for_data(config.data, pad)


def run_road(
    config: RunConfig, out: Path, *, until: str | None = None, console: Console | None = None
) -> RunRoot:
    """Run every stage of `config` into `out`, up to and including `until`.

    Raises InputError for an unknown stage and for an `out` that holds something else or that
    another process works in, and CopyGateError when SFT copies too few facts for the later stages
    to mean anything.
    """
    names = config.stage_names()
    if until is not None and until not in names:
        raise InputError(f"unknown stage {until!r}; this recipe has {', '.join(names)}")
    root = RunRoot(out)
    root.open(config.recipe)
    preflight(config)
    console = console or Console()
    stop = Stop(lambda note: console.print(note, style="yellow"))
    with stop.listening(), told_of_refusals(out), alone_in(out):
        root.open(config.recipe)  # again: another may have been at work in it until now
        settled = settle(config, root.autos())
        with connected(device_name(settled.config.compute)) as topology:
            lead(topology, settled, out)
            _run_stages(root, settled, names, until, console, topology, stop)
    return root


def follow_road(config: RunConfig) -> None:
    """Do the stages of another process's `run_road` with it: of `config`, but for what that one
    has settled."""
    stop = Stop()
    with stop.listening(), connected(device_name(config.compute)) as topology:
        follower = Follower.of(topology)
        config = follower.settled.config
        disable_progress_bar()
        device = resolve_device(config.compute)
        ctx = Context(config, device, Console(quiet=True), follower.dirs, topology, stop)
        follower.run(stage_functions(ctx))


def stage_functions(ctx: Context) -> dict[str, Callable[[StageDir], Any]]:
    """Every stage by name; those in `TOGETHER` are run by all processes at once."""
    alone = replace(ctx, topology=Topology())
    return {
        "data": lambda where: data.run(where, ctx.config, ctx.console),
        "pretrain": lambda where: pretrain.run(where, ctx),
        "sft": lambda where: sft.run(where, ctx),
        "sample": lambda where: sample.run(where, ctx),
        "label": lambda where: label.run(where, alone),
        **{
            name: partial(reward.run, ctx=as_member(ctx, number))
            for number, name in enumerate(reward_stages(ctx.config.reward), 1)
        },
        "ppo": lambda where: ppo.run(where, ctx),
        "reinforce": lambda where: reinforce.run(where, ctx),
        "online_dpo": lambda where: online_dpo.run(where, ctx),
        "dpo": lambda where: dpo.run(where, ctx),
        "preference": lambda where: preference.run(where, ctx),
        **steps.functions(ctx),
        "curve": lambda where: curve.run(where, alone),
        "evaluate": lambda where: evaluate.run(where, alone),
    }


def as_member(ctx: Context, number: int) -> Context:
    """What the `number`th member of the reward ensemble is trained with: a seed of its own, which
    names the head's weights and the order of the comparisons."""
    if number == 1:
        return ctx
    seed = int(stream(ctx.seed, "reward member", number).integers(1 << 31))
    return replace(ctx, config=ctx.config.model_copy(update={"seed": seed}))


def _run_stages(
    root: RunRoot,
    settled: Settled,
    names: Sequence[str],
    until: str | None,
    console: Console,
    topology: Topology,
    stop: Stop,
) -> None:
    config = settled.config
    device = resolve_device(config.compute)
    pickle = (PICKLE_NOTE,) if config.model.allow_pickle else ()
    for note in (*pickle, *settled.notes):
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(settled.line, style="dim", markup=False, highlight=False, soft_wrap=True)
    pipeline = Pipeline(
        root=root,
        recipe=config.recipe,
        config=config.model_dump(mode="json"),
        seed=config.seed,
        device=str(device),
        compute=settled.line,
        auto={**root.autos(), **settled.autos},
        on_stage=telling(topology, _announce(console, config)),
    )
    watch = Watch(config, console)
    ctx = Context(config, device, console, pipeline.dirs, topology, stop, watch)
    stages = stage_functions(ctx)
    for name in names:
        inputs = {role: role for role in inputs_of(name, config) if role in names}
        if name in OUTSIDE:
            inputs |= outside_inputs(config, name)
        stage = watch.watched(name, stages[name], ctx)
        pipeline.run(
            name, stage_config(name, config), stage, version=version_of(name), inputs=inputs
        )
        if name == "sft" and config.sft.copy_gate:
            require_copying(pipeline.dirs["sft"], config.sft.copy_gate)
        if name == until:
            break
    dismiss(topology)


def _announce(console: Console, config: RunConfig) -> Callable[[str, StageDir, str], None]:
    def announce(name: str, where: StageDir, state: str) -> None:
        manifest = where.manifest()
        if state == "run" and (line := _told(name, config)):
            console.print(f"[dim]{line}[/dim]", highlight=False, soft_wrap=True)
        if state == "skip":
            console.print(f"[dim]{name:<9} complete and unchanged, skipped[/dim]")
        elif state == "done" and manifest is not None:
            console.print(f"{name:<9} done in {manifest.seconds:,.1f} s")

    return announce


def _told(stage: str, config: RunConfig) -> str:
    """Whose algorithm an online stage is, in a line; empty for other stages."""
    if stage == "ppo" and config.ppo is not None:
        return profiles.told(config.ppo)
    if stage == "reinforce" and config.reinforce is not None:
        return relatives.told(config.reinforce)
    return ""
