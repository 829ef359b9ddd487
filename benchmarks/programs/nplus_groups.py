"""nplus's stages without a critic, update by update, on the benchmark's prompts.

python nplus_groups.py SPEC.json
"""

import json
import sys
from pathlib import Path

from nplus_ppo import context, scripted_update, update_by_update
from serve import serve

from nplus.stages import on_policy
from nplus.stages.online_dpo import PairLoss
from nplus.stages.reinforce import PolicyGradient


def trainer_of(spec, ctx, posts):
    """What the stage's `run` runs."""
    policy, reference = ctx.policy("sft"), ctx.policy("sft")
    reward_model = ctx.scalar(ctx.dirs["reward"].model)
    if spec["kind"] == "online-dpo":
        method = PairLoss(ctx, policy, reference)
    else:
        method = PolicyGradient(ctx, policy)
    return on_policy.Trainer.of(ctx, method, policy, reference, reward_model, posts)


def main(spec_file):
    spec = json.loads(Path(spec_file).read_text())
    ctx, posts = context(spec)
    trainer = trainer_of(spec, ctx, posts)
    found = scripted_update(ctx, trainer, spec["responses"])
    parity = {"score": "objective/scores", "gradient norm": "grad_norm"}
    parity = {name: found[metric] for name, metric in parity.items()}
    serve(update_by_update(trainer), parity | {"update norm": found["update norm"]})


if __name__ == "__main__":
    main(sys.argv[1])
