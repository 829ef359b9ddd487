"""nplus's road from the base model: SFT and reward model (`front`), or PPO with snapshots (`ppo`).

The stages' own code; their evaluations are not run here. The clock includes loading the models,
encoding the texts and saving what the next stage needs, and stops for the snapshots.

python nplus_road.py SPEC.json
"""

import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from stopwatch import Stopwatch, finish

from nplus.config.load import load_config
from nplus.data.collate import pair_rows, sequence_rows
from nplus.models.files import save_causal_lm
from nplus.models.scalar import ScalarModel
from nplus.recipes import recipe
from nplus.records import Comparison, read_records
from nplus.runs import StageDir
from nplus.stages import ppo, reward, sft
from nplus.stages.compute import resolve_device
from nplus.stages.context import Context


def context(spec):
    config = load_config(recipe("toy"), sets=spec["sets"])
    dirs = {name: StageDir(Path(path)) for name, path in spec["stages"].items()}
    device = resolve_device(config.compute)
    return Context(config=config, device=device, console=Console(quiet=True), dirs=dirs)


def fresh(ctx, spec, name):
    where = StageDir(Path(spec["front"]) / name)
    where.path.mkdir(parents=True)
    ctx.dirs[name] = where
    return where


def front(spec):
    ctx = context(spec)
    watch, laps = Stopwatch(), {}
    where, cfg = fresh(ctx, spec, "sft"), ctx.config.sft
    model = ctx.policy(ctx.base_stage)
    rows = sequence_rows(ctx.codec, ctx.data.demonstrations("train"))
    options = {"epochs": cfg.epochs, "optim": cfg.optim, "batch": cfg.batch, "save_steps": 0}
    sft.train(
        model,
        rows,
        where,
        ctx,
        name="sft",
        pad_id=ctx.codec.pad_id,
        loss_on=cfg.loss_on,
        **options,
    )
    save_causal_lm(model, where.model, ctx.codec.tokenizer)
    laps["sft"] = watch.tick()
    where, cfg = fresh(ctx, spec, "reward"), ctx.config.reward
    comparisons = read_records(ctx.dirs["label"].comparisons, Comparison)
    pairs = [row for row in comparisons if row.split == "train"]
    model = ctx.as_scalar(
        ScalarModel.from_causal(
            ctx.policy("sft"), pad_id=ctx.codec.pad_id, seed=ctx.seed, head_init=cfg.head_init
        )
    )
    reward.train(model, pair_rows(ctx.codec, pairs), where, ctx)
    model.eval()
    reward.normalise(model, ctx)
    model.save(where.model, ctx.codec.tokenizer)
    laps["reward"] = watch.tick() - laps["sft"]
    finish(spec["front"], spec, watch, seconds=laps)


def tuned(spec):
    ctx = context(spec)
    out = Path(spec["out"])
    ctx.dirs |= {name: StageDir(Path(spec["front"]) / name) for name in ("sft", "reward")}
    watch, curve, metrics = Stopwatch(), [], []
    trainer = ppo.Trainer.start(ctx, ctx.data.demonstrations("train"), gold=None)
    for step in range(spec["updates"]):
        metrics.append(trainer.update(step).metrics)
        if (step + 1) % spec["every"] == 0:
            with watch.stopped():
                curve.append({"update": step + 1, "seconds": watch.seconds})
                save_causal_lm(trainer.policy, out / f"step_{step + 1:03d}", ctx.codec.tokenizer)
    finish(out, spec, watch, curve=curve, metrics=metrics)


if __name__ == "__main__":
    wanted = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(wanted["threads"])
    {"front": front, "ppo": tuned}[wanted["part"]](wanted)
