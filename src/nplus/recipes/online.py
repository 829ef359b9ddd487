"""The online family: iterative preference learning on the embedded world, and as in the paper."""

from __future__ import annotations

from nplus.config import BatchConfig, DPOConfig, OnlineConfig, OptimConfig, RunConfig
from nplus.recipes.real import real
from nplus.recipes.toy import RESPONSE_LENGTH, toy

ROUNDS, PROMPTS = 3, 1_000
OPTIM = OptimConfig(learning_rate=3e-4, warmup_steps=10)
BATCH = BatchConfig(batch_size=48, micro_batch_size=24)


def online() -> RunConfig:
    """The toy road with three rounds of online DPO beside offline DPO of as many pairs and steps
    (arXiv 2405.07863)."""
    base = toy()
    return base.model_copy(
        update={
            "recipe": "toy:online",
            "ppo": None,
            # Rounds train on 1, 2 and 3 thousand pairs: six thousand pairs of steps, as offline.
            "dpo": DPOConfig(
                optim=OPTIM, batch=BATCH, beta=0.1, epochs=2, max_rows=ROUNDS * PROMPTS
            ),
            "online": OnlineConfig(
                rounds=ROUNDS,
                prompts=PROMPTS,
                response_length=RESPONSE_LENGTH,
                micro_batch_size=256,
                piece=256,
                train=DPOConfig(optim=OPTIM, batch=BATCH, beta=0.1, epochs=1),
            ),
        }
    )


def real_online() -> RunConfig:
    """SmolLM2-135M on your posts, with two rounds of online DPO against its own reward model:
    --set data=posts.jsonl.

    As in `real` the verdict is the reward model's own.
    """
    base = real()
    return base.model_copy(
        update={
            "recipe": "real:online",
            "ppo": None,
            "online": OnlineConfig(
                rounds=2,
                prompts=96,
                samples=4,
                response_length=64,
                micro_batch_size=32,
                piece=32,
                valid_prompts=32,
                train=DPOConfig(
                    optim=OptimConfig(learning_rate=5e-6, warmup_steps=2),
                    batch=BatchConfig(batch_size=16, micro_batch_size=4),
                    beta=0.1,
                ),
            ),
        }
    )
