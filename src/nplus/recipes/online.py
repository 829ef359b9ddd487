"""The online family: iterative preference learning on the embedded world, and as in the paper."""

from __future__ import annotations

from nplus.config import BatchConfig, DPOConfig, OnlineConfig, OptimConfig, RunConfig
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
