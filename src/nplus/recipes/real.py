"""A real language model on text of your own."""

from __future__ import annotations

from nplus.config import (
    BatchConfig,
    ComputeConfig,
    DataConfig,
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


def real() -> RunConfig:
    """SmolLM2-135M on any JSONL of posts and summaries: --set data=posts.jsonl.

    No labeller comes with such text: comparisons set the author's summary against another post's,
    and the verdict is the reward model's own, so it says how PPO optimises, not how good it is.
    """
    return RunConfig(
        recipe="real",
        data=DataConfig(
            source="files",
            data="posts.jsonl",
            max_query_tokens=256,
            max_response_tokens=64,
            overlong="drop",
            max_rows=480,
        ),
        model=ModelConfig(model_name_or_path="smollm"),
        compute=ComputeConfig(matmul_precision="medium", autocast="bfloat16"),
        sft=SFTConfig(
            optim=OptimConfig(learning_rate=5e-5),
            batch=BatchConfig(batch_size=32, micro_batch_size=8),
        ),
        label=LabelConfig(kind="contrast", pairs=800, valid_pairs=200),
        reward=RewardConfig(
            epochs=2,
            optim=OptimConfig(learning_rate=5e-5, warmup_steps=3),
            batch=BatchConfig(batch_size=32, micro_batch_size=16),
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
            sampling=SamplingConfig(response_length=64),
        ),
        evaluate=EvaluateConfig(
            temperatures=(0.01,), response_length=64, max_rows=48, judge="reward"
        ),
    )
