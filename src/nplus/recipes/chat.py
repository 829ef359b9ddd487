"""A real instruct model on conversations of your own (arXiv 2405.07863, section 2 and 3)."""

from __future__ import annotations

from nplus.config import (
    BatchConfig,
    ComputeConfig,
    DataConfig,
    DPOConfig,
    EvaluateConfig,
    LabelConfig,
    ModelConfig,
    OptimConfig,
    PPOConfig,
    RewardConfig,
    RunConfig,
    SamplingConfig,
    SFTConfig,
)
from nplus.config.data import ComparisonsConfig

RESPONSE = 96
"""Tokens of a response: what two CPU cores draw for a batch in some seconds."""


def chat() -> RunConfig:
    """SmolLM2-135M-Instruct on conversations and pairs of them: SFT, reward model, PPO.

    `--set data=messages.jsonl --set data.comparisons.data=pairs.jsonl`. The verdict is the reward
    model's own, so it says how PPO optimises, not how good it is.
    """
    return RunConfig(
        recipe="chat",
        data=DataConfig(
            source="files",
            data="messages.jsonl",
            format="chat",
            truncation="history",
            max_query_tokens=320,
            max_response_tokens=RESPONSE,
            overlong="drop",
            max_rows=320,
            comparisons=ComparisonsConfig(data="pairs.jsonl", max_response_tokens=RESPONSE),
        ),
        model=ModelConfig(model_name_or_path="smollm"),
        compute=ComputeConfig(matmul_precision="medium", autocast="bfloat16"),
        sft=SFTConfig(
            loss_on="assistant",
            optim=OptimConfig(learning_rate=2e-5, warmup_steps=1),
            batch=BatchConfig(batch_size=32, micro_batch_size=8),
        ),
        label=LabelConfig(kind="data", pairs=480, valid_pairs=120),
        reward=RewardConfig(
            optim=OptimConfig(learning_rate=3e-5, warmup_steps=2),
            batch=BatchConfig(batch_size=32, micro_batch_size=8),
            layout="shared",
            normalise_rows=100,
        ),
        ppo=PPOConfig(
            total_episodes=6 * 16,
            num_ppo_epochs=2,
            batch_size=16,
            micro_batch_size=4,
            rollout_micro_batch_size=16,
            optim=OptimConfig(learning_rate=3e-6, lr_scheduler_type="linear"),
            sampling=SamplingConfig(response_length=RESPONSE),
        ),
        evaluate=EvaluateConfig(
            temperatures=(0.01,), response_length=RESPONSE, max_rows=32, judge="reward"
        ),
    )


def chat_dpo() -> RunConfig:
    """The same with offline DPO beside PPO, and its implicit reward beside the reward model."""
    return chat().model_copy(
        update={
            "recipe": "chat:dpo",
            "dpo": DPOConfig(
                beta=0.1,
                optim=OptimConfig(learning_rate=5e-6, warmup_steps=2),
                batch=BatchConfig(batch_size=32, micro_batch_size=8),
            ),
        }
    )
