"""nplus's stages without a critic, update by update, on the benchmark's prompts.

python nplus_groups.py SPEC.json
"""

import json
import sys
import time
from pathlib import Path

import torch
from nplus_ppo import Scripted, context
from serve import serve

from nplus.stages import on_policy
from nplus.stages.online_dpo import PairLoss
from nplus.stages.reinforce import PolicyGradient


def trainer_of(spec, ctx, posts):
    """What the stage's `run` runs."""
    policy, reference, reward_model = on_policy.start(ctx)
    if spec["kind"] == "online-dpo":
        method = PairLoss(ctx, policy, reference)
    else:
        method = PolicyGradient(ctx, policy)
    return on_policy.Trainer.of(ctx, method, policy, reference, reward_model, posts)


def main(spec_file):
    spec = json.loads(Path(spec_file).read_text())
    ctx, posts = context(spec)
    trainer = trainer_of(spec, ctx, posts)
    first = {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}
    by_key = {f"p{i}": responses for i, responses in enumerate(spec["responses"])}
    plain = ctx.engine
    ctx.engine = lambda model, version: Scripted(model, by_key)
    found = trainer.update(0).metrics
    ctx.engine = plain
    trainer.close()  # the process beside this one knows the script
    moved = [(p.detach() - first[name]).norm() for name, p in trainer.policy.named_parameters()]
    parity = {
        "score": found["objective/scores"],
        "gradient norm": found["grad_norm"],
        "update norm": float(torch.stack(moved).norm()),
    }
    step = 0

    def work():
        nonlocal step
        step += 1
        began = time.perf_counter()
        spent = trainer.update(step).seconds
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "rollout": spent["rollout"], "rest": seconds - spent["rollout"]}

    serve(work, parity)


if __name__ == "__main__":
    main(sys.argv[1])
