"""The paper's runs: Pythia on TL;DR with its hyper-parameters (arXiv 2403.17031, section 3 of the
details). They need the public data and models, and GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nplus.config import (
    BatchConfig,
    ComparisonsConfig,
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
    SFTConfig,
)
from nplus.config.hub import HUB_ROWS
from nplus.config.profiles import profile_tree

POSTS = "vwxyzjn/summarize_from_feedback_tldr_3_filtered"
COMPARISONS = "vwxyzjn/summarize_from_feedback_oai_preprocessing_1706381144"
RESPONSE_LENGTH = 53
DPO_RESPONSE_LENGTH = 128
"""Detail H1: what DPO's policy may write when it is judged."""
SEEDS = (44413, 55513, 66613, 77713)
"""The four runs of the paper (Detail B5)."""


@dataclass(frozen=True, slots=True)
class Size:
    """A model and the rows per forward that fit its eight 80 GB GPUs."""

    model: str
    micro_batch_size: int
    """Of PPO: rows of one forward and backward."""
    rollout_micro_batch_size: int


SIZES = {
    "1b": Size("EleutherAI/pythia-1b-deduped", 16, 64),
    "2.8b": Size("EleutherAI/pythia-2.8b-deduped", 4, 32),
    "6.9b": Size("EleutherAI/pythia-6.9b-deduped", 1, 4),
}
STAGES = {
    "sft": "SFT on 116,722 posts with their TL;DRs",
    "reward": "SFT and the reward model on 92,832 of OpenAI's comparisons",
    "ppo": "SFT, reward model, a million episodes of PPO, and the verdict",
    "dpo": "SFT and DPO on OpenAI's comparisons",
}


def tldr(stage: str, size: str) -> RunConfig:
    """The road up to `stage` for a Pythia of `size`; the numbers are those of eight processes.

    The paper keeps bfloat16 weights beside float32 master weights (Detail B4): here the weights are
    float32, and training forwards run under bfloat16 autocast. Of DPO's rollouts only the verdict's
    length differs.
    """
    chosen = SIZES[size]
    optim = OptimConfig(learning_rate=3e-6, lr_scheduler_type="cosine")
    pairs = BatchConfig(batch_size=64, micro_batch_size=1)
    length = DPO_RESPONSE_LENGTH if stage == "dpo" else RESPONSE_LENGTH
    return RunConfig(
        recipe=f"tldr:{stage}-{size}",
        seed=SEEDS[0],
        data=_data(),
        model=ModelConfig(model_name_or_path=chosen.model, dtype="float32"),
        compute=ComputeConfig(autocast="bfloat16"),
        sft=SFTConfig(
            optim=optim,
            batch=BatchConfig(batch_size=128, micro_batch_size=1),
            save_steps=100,
        ),
        label=LabelConfig(kind="data", pairs=92_832, valid_pairs=HUB_ROWS[COMPARISONS]["valid"]),
        dpo=DPOConfig(optim=optim, batch=pairs, beta=0.05, save_steps=200)
        if stage == "dpo"
        else None,
        reward=RewardConfig(
            optim=optim, batch=pairs, normalise_rows=HUB_ROWS[POSTS]["train"], save_steps=200
        ),
        ppo=_ppo(chosen),
        evaluate=EvaluateConfig(
            temperatures=(0.01,),
            response_length=length,
            split="valid",
            micro_batch_size=chosen.rollout_micro_batch_size,
            judge="reward",
        ),
        until=None if stage == "ppo" else stage,
    )


def _data() -> DataConfig:
    """Details A1, A3 and A8: the lengths are the longest of the data, with Pythia's tokenizer."""
    return DataConfig(
        source="files",
        data=POSTS,
        max_query_tokens=512,
        max_response_tokens=RESPONSE_LENGTH,
        max_length=562,
        comparisons=ComparisonsConfig(
            data=COMPARISONS,
            max_response_tokens=169,
            max_length=638,
            max_news_query_tokens=1919,
            max_news_response_tokens=155,
            max_news_length=2021,
        ),
    )


def _ppo(size: Size) -> PPOConfig:
    tree: dict[str, Any] = profile_tree("paper")
    tree["optim"] |= {"learning_rate": 3e-6, "lr_scheduler_type": "linear"}
    tree["sampling"] |= {"temperature": 0.7, "response_length": RESPONSE_LENGTH}
    tree |= {
        "total_episodes": 1_000_000,
        "batch_size": 512,
        "num_ppo_epochs": 4,
        "num_mini_batches": 1,
        "micro_batch_size": size.micro_batch_size,
        "rollout_micro_batch_size": size.rollout_micro_batch_size,
        "kl_coef": 0.05,
        "gamma": 1.0,
        "lam": 0.95,
        "cliprange": 0.2,
        "cliprange_value": 0.2,
        "vf_coef": 0.1,
        "autocast": "bfloat16",
        "save_steps": 50,
    }
    return PPOConfig.model_validate(tree)


def _recipe(stage: str, size: str) -> Callable[[], RunConfig]:
    def build() -> RunConfig:
        return tldr(stage, size)

    build.__doc__ = f"The paper's {size.upper()} run: {STAGES[stage]}."
    return build


TLDR_RECIPES = {f"tldr:{stage}-{size}": _recipe(stage, size) for stage in STAGES for size in SIZES}
