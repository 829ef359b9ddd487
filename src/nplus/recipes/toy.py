"""The toy family: a model trained from scratch on the embedded world, on a laptop's CPU."""

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
    PretrainConfig,
    RewardConfig,
    RunConfig,
    SampleConfig,
    SamplingConfig,
    SFTConfig,
    TokenizerConfig,
    WorldConfig,
)
from nplus.config.load import load_config
from nplus.records import InputError

RESPONSE_LENGTH = 40

SIZES: dict[str, tuple[str, ...]] = {
    "0.3M": (
        "pretrain.optim.learning_rate=7e-3",
        "sft.optim.learning_rate=1.5e-3",
        "reward.optim.learning_rate=1e-3",
        "ppo.optim.learning_rate=7e-4",
        "ppo.value_learning_rate=1.5e-3",
        "dpo.optim.learning_rate=4.5e-4",
    ),
    "1M": (),
    "4M": (
        "pretrain.optim.learning_rate=3e-3",
        "pretrain.optim.muon_learning_rate=0.035",
        "sft.optim.learning_rate=7e-4",
        "reward.optim.learning_rate=4e-4",
        "ppo.optim.learning_rate=3e-4",
        "ppo.value_learning_rate=6e-4",
        "dpo.optim.learning_rate=2e-4",
    ),
    "12M": (
        "pretrain.optim.learning_rate=2e-3",
        "pretrain.optim.muon_learning_rate=0.025",
        "sft.optim.learning_rate=5e-4",
        "reward.optim.learning_rate=2.5e-4",
        "ppo.optim.learning_rate=2e-4",
        "ppo.value_learning_rate=4e-4",
        "dpo.optim.learning_rate=1.3e-4",
    ),
}
"""What a size changes of the toy: learning rates fall with width. Data and steps are those of the
toy at every size, so that nothing else differs but the model."""


def toy() -> RunConfig:
    """The whole road in minutes on two CPU cores: a 1M-parameter model on the embedded world."""
    return RunConfig(
        recipe="toy",
        data=DataConfig(
            max_query_tokens=224,
            max_response_tokens=36,
            world=WorldConfig(pretrain=15_000, train=5_000),
        ),
        tokenizer=TokenizerConfig(vocab_size=2048),
        model=ModelConfig(size="1M", attn_implementation="eager"),
        compute=ComputeConfig(device="cpu", matmul_precision="medium", autocast="bfloat16"),
        pretrain=PretrainConfig(
            optim=OptimConfig(
                name="muon",
                learning_rate=5e-3,
                muon_learning_rate=0.05,
                warmup_steps=20,
                lr_scheduler_type="linear",
            ),
            batch=BatchConfig(batch_size=32, micro_batch_size=16),
            summary_weight=10.0,
        ),
        sft=SFTConfig(
            optim=OptimConfig(learning_rate=1e-3),
            batch=BatchConfig(batch_size=64, micro_batch_size=32),
            copy_gate=0.85,
        ),
        sample=SampleConfig(
            prompts=4_000, response_length=RESPONSE_LENGTH, temperatures=(0.5, 0.8)
        ),
        label=LabelConfig(kind="world", pairs=24_000, valid_pairs=1_500),
        reward=RewardConfig(
            optim=OptimConfig(learning_rate=7e-4, warmup_steps=20),
            batch=BatchConfig(batch_size=48, micro_batch_size=48),
            layout="shared",
            normalise_rows=1_000,
        ),
        ppo=PPOConfig(
            total_episodes=24 * 64,
            batch_size=64,
            num_ppo_epochs=2,
            num_mini_batches=2,
            micro_batch_size=32,
            optim=OptimConfig(learning_rate=5e-4, lr_scheduler_type="linear"),
            value_learning_rate=1e-3,
            sampling=SamplingConfig(response_length=RESPONSE_LENGTH),
            kl_coef=0.06,
        ),
        evaluate=EvaluateConfig(response_length=RESPONSE_LENGTH),
    )


def toy_sized(size: str) -> RunConfig:
    """The toy road with DPO at another model size, with what that size needs of its own.

    The copy gate is off: of a size that copies badly it would drop the worst seeds and flatter the
    mean. DPO takes half its comparisons, and the verdict is near greedy only, so that nine runs end
    within the hour. Raises InputError for a size that has no settings.
    """
    if size not in SIZES:
        raise InputError(f"unknown size {size!r} of toy; known: {', '.join(SIZES)}")
    shared = ("sft.copy_gate=0", "dpo.max_rows=4000", "evaluate.temperatures=[0.01]")
    return load_config(dpo(), sets=(f"model.size={size}", *shared, *SIZES[size]))


def dpo() -> RunConfig:
    """The toy road with offline DPO beside PPO, on a part of the same comparisons (Detail D9)."""
    stage = DPOConfig(
        optim=OptimConfig(learning_rate=3e-4, warmup_steps=10),
        batch=BatchConfig(batch_size=48, micro_batch_size=24),
        max_rows=8_000,
    )
    return toy().model_copy(update={"recipe": "toy:dpo", "dpo": stage})


def overoptimise() -> RunConfig:
    """The toy road without brakes (no KL penalty, constant rate): does gold follow the reward?"""
    cfg = toy()
    assert cfg.ppo is not None
    ppo = cfg.ppo.model_copy(
        update={
            "kl_coef": 0.0,
            "total_episodes": 80 * 64,
            "optim": OptimConfig(learning_rate=7e-4, lr_scheduler_type="constant"),
        }
    )
    return cfg.model_copy(update={"recipe": "toy:overoptimise", "ppo": ppo})


def tiny() -> RunConfig:
    """Every stage of the toy road at smoke-test size: under a minute, learns next to nothing."""
    return RunConfig(
        recipe="toy:tiny",
        data=DataConfig(
            max_query_tokens=224,
            max_response_tokens=36,
            world=WorldConfig(pretrain=256, train=192, valid=32, test=32, heldout=16, news=8),
        ),
        tokenizer=TokenizerConfig(vocab_size=2048),
        model=ModelConfig(size="0.3M", attn_implementation="eager"),
        compute=ComputeConfig(device="cpu", matmul_precision="medium", autocast="bfloat16"),
        pretrain=PretrainConfig(batch=BatchConfig(batch_size=32, micro_batch_size=32)),
        sft=SFTConfig(
            optim=OptimConfig(learning_rate=1e-3),
            batch=BatchConfig(batch_size=32, micro_batch_size=32),
        ),
        sample=SampleConfig(prompts=32, valid_prompts=16, response_length=RESPONSE_LENGTH),
        label=LabelConfig(kind="world", pairs=64, valid_pairs=16),
        reward=RewardConfig(
            optim=OptimConfig(learning_rate=5e-4),
            batch=BatchConfig(batch_size=32, micro_batch_size=32),
            normalise_rows=64,
        ),
        ppo=PPOConfig(
            total_episodes=3 * 16,
            batch_size=16,
            num_ppo_epochs=2,
            micro_batch_size=16,
            optim=OptimConfig(learning_rate=2e-4, lr_scheduler_type="linear"),
            sampling=SamplingConfig(response_length=RESPONSE_LENGTH),
            sample_steps=1,
        ),
        evaluate=EvaluateConfig(response_length=RESPONSE_LENGTH, max_rows=16),
    )
