"""A PPO update of nplus and generation by its policy, part by part.

python grow.py SPEC.json
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from nplus_ppo import start
from serve import serve

from nplus.batches import PromptBatch
from nplus.data.collate import prompt_batch
from nplus.engines.halves import halved

DRAWS = 3


def main(spec_file):
    spec = json.loads(Path(spec_file).read_text())
    ctx, trainer = start(spec)
    sampling = ctx.config.ppo.sampling
    once: PromptBatch = prompt_batch(ctx.codec, trainer.posts)
    samples = spec["samples"]
    prompts = PromptBatch(
        once.tokens_BP.repeat_interleave(samples, 0),
        once.mask_BP.repeat_interleave(samples, 0),
        tuple(f"{key}:{i}" for key in once.keys for i in range(samples)),
    )

    def draw(engine):
        noise_BR = torch.rand(len(prompts), sampling.response_length, dtype=torch.float64)
        began = time.perf_counter()
        engine.generate(prompts, sampling, noise_BR)
        return time.perf_counter() - began

    step = 0

    def work():
        nonlocal step
        with halved(ctx.engine(trainer.policy)) as engine:
            draw(engine)
            found = {"generation": statistics.median(draw(engine) for _ in range(DRAWS))}
        if spec["update"]:
            spent = trainer.update(step).seconds
            step += 1
            found |= {"scores": spent["scores"], "update": spent["update"]}
        return found

    serve(work, {"prompts": len(prompts)})


if __name__ == "__main__":
    main(sys.argv[1])
