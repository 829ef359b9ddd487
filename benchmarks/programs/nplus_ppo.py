"""nplus's PPO stage, update by update: what `stages/ppo.py` runs, on the benchmark's prompts.

python nplus_ppo.py SPEC.json
"""

import json
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from serve import serve
from transformers.utils.logging import disable_progress_bar

from nplus.batches import Generation
from nplus.config.load import load_config
from nplus.data.tokens import Codec
from nplus.recipes import recipe
from nplus.records import Demonstration
from nplus.runs import StageDir
from nplus.stages import ppo as stage
from nplus.stages.compute import resolve_device
from nplus.stages.context import Context


class Scripted:
    """An engine that gives each prompt the responses of the script, in their order."""

    def __init__(self, model, by_key):
        self.model, self.by_key = model, by_key

    def generate(self, prompts, sampling, noise_BR):
        left = {key: iter(responses) for key, responses in self.by_key.items()}
        tokens_BR = torch.tensor([next(left[key]) for key in prompts.keys])
        mask_BR = torch.ones_like(tokens_BR, dtype=torch.bool)
        found = Generation(prompts, tokens_BR, mask_BR, torch.zeros(tokens_BR.shape), 0)
        tokens_BT, mask_BT = found.sequences()
        with torch.no_grad():
            logprobs_BR, _ = stage.response_logprobs(
                self.model, tokens_BT, mask_BT, tokens_BR.shape[1], temperature=sampling.temperature
            )
        return Generation(prompts, tokens_BR, mask_BR, logprobs_BR, 0)


def context(spec):
    """A stage's context, and the prompts, on the models and texts of `spec`."""
    disable_progress_bar()
    config = load_config(recipe("toy"), sets=spec["sets"])
    device = resolve_device(config.compute)
    root = Path(spec["root"])
    ctx = Context(
        config=config,
        device=device,
        console=Console(quiet=True),
        dirs={"sft": StageDir(root / "sft"), "reward": StageDir(root / "reward")},
    )
    ctx.codec = Codec.load(spec["tokenizer"])
    posts = [Demonstration(f"p{i}", text, "", {}) for i, text in enumerate(spec["texts"])]
    return ctx, posts


def start(spec):
    """The context and PPO's trainer."""
    ctx, posts = context(spec)
    return ctx, stage.Trainer.start(ctx, posts, gold=None)


def scripted_update(ctx, trainer, responses):
    """Metrics of the first update, on the script's responses to each prompt, and the distance the
    weights moved."""
    first = {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}
    by_key = {f"p{i}": each for i, each in enumerate(responses)}
    plain = ctx.engine
    ctx.engine = lambda model, **_: Scripted(model, by_key)
    found = trainer.update(0).metrics
    ctx.engine = plain
    trainer.close()  # the process beside this one knows the script
    moved = [(p.detach() - first[name]).norm() for name, p in trainer.policy.named_parameters()]
    return {**found, "update norm": float(torch.stack(moved).norm())}


def update_by_update(trainer):
    """What `serve` repeats: the updates after the first, each with its own draw."""
    step = 0

    def work():
        nonlocal step
        step += 1
        began = time.perf_counter()
        spent = trainer.update(step).seconds
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "rollout": spent["rollout"], "rest": seconds - spent["rollout"]}

    return work


def main(spec_file):
    spec = json.loads(Path(spec_file).read_text())
    ctx, trainer = start(spec)
    found = scripted_update(ctx, trainer, [[response] for response in spec["responses"]])
    serve(
        update_by_update(trainer),
        {name: float(found[name]) for name in (*spec["compared"], "update norm")},
    )


if __name__ == "__main__":
    main(sys.argv[1])
