"""nplus's SFT, reward or DPO stage, step by step, on the benchmark's rows.

python nplus_trainers.py SPEC.json
"""

import json
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from serve import serve

from nplus.config.load import load_config
from nplus.data.collate import PairRow
from nplus.data.tokens import Codec
from nplus.recipes import recipe
from nplus.runs import StageDir
from nplus.stages import dpo, reward, sft
from nplus.stages.compute import resolve_device
from nplus.stages.context import Context


def trainer_of(spec, ctx):
    """What the stage's `train` runs."""
    cfg, rows = ctx.config, spec["data"]
    if spec["stage"].startswith("sft"):
        return sft.trainer(
            ctx.policy("sft"),
            [(row["query"], row["response"]) for row in rows],
            ctx,
            name="sft",
            epochs=cfg.sft.epochs,
            optim=cfg.sft.optim,
            batch=cfg.sft.batch,
            pad_id=ctx.codec.pad_id,
            loss_on=cfg.sft.loss_on,
        )
    pairs = [PairRow(row["query"], row["chosen"], row["rejected"]) for row in rows]
    if spec["stage"] == "reward":
        return reward.trainer(ctx.scalar(ctx.dirs["reward"].model), pairs, ctx)
    reference = ctx.policy("reference").eval().requires_grad_(False)
    return dpo.trainer(ctx.policy("sft"), reference, pairs, ctx, cfg.dpo, name="dpo")


def main(spec_file):
    spec = json.loads(Path(spec_file).read_text())
    config = load_config(recipe("toy:dpo"), sets=spec["sets"])
    device = resolve_device(config.compute)
    root = Path(spec["root"])
    names = ("sft", "reference", "reward")
    ctx = Context(
        config=config,
        device=device,
        console=Console(quiet=True),
        dirs={name: StageDir(root / name) for name in names},
    )
    ctx.codec = Codec.load(spec["tokenizer"])
    trainer = trainer_of(spec, ctx)
    # The first batch of both sides: the rival reads the rows in the order of the file.
    size = trainer.batch.batch_size
    given, trainer.order = trainer.order, lambda start, count: torch.arange(size).numpy()
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    found = trainer.step(0)
    trainer.order = given
    moved = [(p.detach() - start[name]).norm() for name, p in trainer.model.named_parameters()]
    parity = {
        "loss": found["loss/train"],
        "gradient norm": found["grad_norm"],
        "update norm": float(torch.stack(moved).norm()),
    }
    done = 0

    def work():
        nonlocal done
        began = time.perf_counter()
        for _ in range(spec["steps"]):
            done += 1
            trainer.step(done)
        return {"seconds": (time.perf_counter() - began) / spec["steps"]}

    serve(work, parity)


if __name__ == "__main__":
    main(sys.argv[1])
