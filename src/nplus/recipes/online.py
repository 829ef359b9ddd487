"""The online family: iterative preference learning on the embedded world, and as in the paper
(RLHF Workflow, arXiv 2405.07863)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nplus.config import (
    BatchConfig,
    BudgetConfig,
    ComparisonsConfig,
    ComputeConfig,
    DataConfig,
    DPOConfig,
    EvaluateConfig,
    JudgeConfig,
    LabelConfig,
    ModelConfig,
    OnlineConfig,
    OptimConfig,
    PreferenceConfig,
    RewardConfig,
    RunConfig,
    SFTConfig,
)
from nplus.recipes.real import real
from nplus.recipes.toy import RESPONSE_LENGTH, toy

ROUNDS, PROMPTS, TEST = 3, 400, 1_500

# Validation posts chose these (docs/lab-log.md): an ensemble of five, since reward models of this
# size differ much by their seed; smoothed labels and clipped steps; and each side's learning rate.
LOSS = {
    "batch": BatchConfig(batch_size=16, micro_batch_size=16),
    "beta": 0.1,
    "label_smoothing": 0.2,
    "layout": "shared",
}


def _toy_dpo(learning_rate: float, **more: object) -> DPOConfig:
    optim = OptimConfig(learning_rate=learning_rate, warmup_steps=10, max_grad_norm=1.0)
    return DPOConfig.model_validate({"optim": optim, **LOSS, **more})


def online() -> RunConfig:
    """The toy road with three rounds of online DPO beside offline DPO of as many pairs and steps
    (arXiv 2405.07863)."""
    base = toy()
    return base.model_copy(
        update={
            "recipe": "toy:online",
            "ppo": None,
            "model": base.model.model_copy(update={"attn_implementation": "batched"}),
            # Differences of a few points are told apart by no fewer posts.
            "data": base.data.model_copy(
                update={"world": base.data.world.model_copy(update={"test": TEST})}
            ),
            "reward": base.reward.model_copy(update={"members": 5}),
            # Rounds train on 400, 800 and 1,200 pairs: 2,400 pairs of steps, as offline.
            "dpo": _toy_dpo(4e-4, epochs=2, max_rows=ROUNDS * PROMPTS),
            "online": OnlineConfig(
                rounds=ROUNDS,
                prompts=PROMPTS,
                response_length=RESPONSE_LENGTH,
                micro_batch_size=128,
                piece=256,
                draw=("current@0.8", "current@0.5"),
                scorer="ensemble",
                missing_eos_penalty=1.0,
                train=_toy_dpo(1e-4, epochs=1),
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
            "model": base.model.model_copy(update={"attn_implementation": "batched"}),
            # The second is for KL, which near-greedy responses have none of.
            "evaluate": base.evaluate.model_copy(update={"temperatures": (0.01, 0.7)}),
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
                    layout="shared",
                ),
            ),
        }
    )


# --- Llama-3-8B, as in the paper ------------------------------------------------------------------


class Source(NamedTuple):
    """A preference set of the paper's second mix (Table 5): how many, and mean tokens."""

    prompts: int
    pairs: int
    prompt: float
    chosen: float
    rejected: float


MIX2 = {
    "HH-RLHF": Source(115_092, 115_396, 160.4, 82.2, 73.6),
    "SHP": Source(31_003, 93_301, 186.2, 173.6, 88.8),
    "HelpSteer": Source(8_592, 37_131, 530.0, 116.4, 89.3),
    "PKU-SafeRLHF-30K": Source(6_975, 26_874, 21.5, 70.4, 74.6),
    "UltraFeedback": Source(63_591, 340_025, 161.5, 279.5, 211.1),
    "UltraInteract": Source(76_086, 161_927, 507.4, 396.6, 416.7),
    "CodeUltraFeedback": Source(9_938, 50_156, 172.8, 427.6, 400.6),
    "Argilla-Math": Source(2_352, 2_418, 36.5, 276.5, 265.3),
    "OpenOrca": Source(6_791, 6_926, 153.3, 165.4, 260.5),
    "Capybara": Source(14_740, 14_811, 634.5, 348.4, 401.9),
}
PROMPT_SOURCES = ("UltraFeedback", "HelpSteer", "OpenOrca", "UltraInteract", "Capybara")
"""Whose prompts the rounds draw from (section 3.2); of DIBT-10K, the sixth, no length is told."""
ARENA_TOKENS = 656
"""Mean response of the paper's final model to Chat-Arena-Hard (Table 4)."""
NECTAR = 182_954
"""Prompts of the set that the paper's offline DPO was trained on."""


def _mean(weights: Iterable[int], lengths: Iterable[float]) -> float:
    counts = [*weights]
    total = sum(n * length for n, length in zip(counts, lengths, strict=True))
    return round(total / sum(counts), 1)


def _optim(learning_rate: float, weight_decay: float = 0.0) -> OptimConfig:
    """What all stages share: cosine after a warm-up of 3%; transformers' defaults for what the
    paper does not tell (epsilon, clipping, no decay)."""
    return OptimConfig(
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_ratio=0.03,
        adam_epsilon=1e-8,
        weight_decay=weight_decay,
        max_grad_norm=1.0,
    )


PAIRS = BatchConfig(batch_size=128, micro_batch_size=2)
"""Of DPO: 2 rows a GPU, accumulated 8 times on 8 GPUs (Table 7)."""


def llama3_8b() -> RunConfig:
    """The paper's road on Llama-3-8B: SFT, reward model, offline DPO, three rounds of 20K prompts.

    The numbers are those of eight processes. Where the authors' scripts depart from their paper,
    the paper's stand; a comment names the departure.
    """
    return RunConfig(
        recipe="online:llama3-8b",
        data=_conversations(),
        model=ModelConfig(model_name_or_path="meta-llama/Meta-Llama-3-8B", dtype="float32"),
        # Master weights in float32: in bfloat16 a step of 5e-7 is lost in rounding.
        compute=ComputeConfig(
            autocast="bfloat16", matmul_precision="high", activation_checkpointing=True
        ),
        # The authors' second release: 2 epochs of batch 128 with loss_on=assistant (its settings
        # say 3 epochs and a warm-up of 0.05); the script of the first packs 4,096 tokens.
        sft=SFTConfig(
            epochs=1,
            optim=_optim(2e-5),
            batch=BatchConfig(batch_size=32, micro_batch_size=1),
            loss_on="all",
            packing=True,
            max_length=8192,
            save_steps=500,
        ),
        label=LabelConfig(kind="data", pairs=700_000, valid_pairs=5_000),
        reward=RewardConfig(
            epochs=1,
            optim=_optim(2e-6, weight_decay=0.001),
            batch=BatchConfig(batch_size=512, micro_batch_size=1),
            init="sft",
            layout="separate",
            normalise="none",
            save_steps=200,
        ),
        dpo=DPOConfig(
            epochs=1,
            optim=_optim(5e-7),
            batch=PAIRS,
            beta=0.1,
            loss_type="sigmoid",
            max_rows=NECTAR,
            save_steps=200,
        ),
        online=_loop(),
        ppo=None,
        # AlpacaEval 2's judge and number of prompts (Table 6).
        evaluate=EvaluateConfig(
            temperatures=(0.01,),
            response_length=2048,
            max_rows=805,
            micro_batch_size=32,
            judge="llm",
        ),
        judge=JudgeConfig(model="gpt-4-1106-preview"),
        budget=_budget(),
    )


def llama3_8b_pairwise() -> RunConfig:
    """The same with the pairwise preference model, which finds best and worst by knock-out."""
    base = llama3_8b()
    assert base.online is not None
    # The authors' script packs rows of 3,072 tokens and warms up for 40 steps.
    pairwise = PreferenceConfig(
        epochs=1,
        optim=_optim(5e-6),
        batch=BatchConfig(batch_size=128, micro_batch_size=1),
        init="sft",
        save_steps=200,
    )
    return base.model_copy(
        update={
            "recipe": "online:llama3-8b-pairwise",
            "preference": pairwise,
            # Both models are there while responses are scored: fewer of these at once.
            "online": base.online.model_copy(
                update={"pairing": "knockout", "micro_batch_size": 12}
            ),
        }
    )


def _conversations() -> DataConfig:
    """One limit holds for all stages: 2,048 tokens of prompt and as many of response, together the
    reward model's 4,096. The authors' DPO cuts prompts to 1,000 tokens and pairs to 2,048."""
    return DataConfig(
        source="files",
        # The paper mixes nine public sets; this is the authors' second version of the mix.
        data="RLHFlow/RLHFlow-SFT-Dataset-ver2",
        format="chat",
        chat_template="llama3",
        faulty="drop",
        truncation="history",
        max_query_tokens=2048,
        max_response_tokens=2048,
        overlong="drop",
        valid_fraction=0.005,
        comparisons=ComparisonsConfig(
            data="hendrydong/preference_700K", max_response_tokens=2048, max_length=4096
        ),
    )


def _loop() -> OnlineConfig:
    """Algorithm 2. The authors' scripts take the last policy for reference, draw at temperature 1.0
    alone, drop the pairs of earlier rounds, choose no round and do not warm up; the paper also
    says 16 responses in one place."""
    return OnlineConfig(
        rounds=3,
        prompts=20_000,
        prompts_data="RLHFlow/prompt-collection-v0.1",
        samples=8,
        draw=("current@1.0", "current@0.7"),
        response_length=2048,
        micro_batch_size=32,
        piece=64,
        scorer="reward",
        length_penalty=0.0,
        length_unit="characters",
        pairing="best_worst",
        min_margin=0.0,
        reference="sft",
        init="previous",
        history="accumulate",
        train=DPOConfig(
            epochs=2,
            optim=_optim(5e-7),
            batch=PAIRS,
            beta=0.1,
            loss_type="sigmoid",
            save_steps=100,
        ),
        valid_prompts=500,
        choose="best",
    )


def _budget() -> BudgetConfig:
    """Eight A100, as the authors report for their reward models; means of Table 5 over pairs, and
    of the prompts' sources over prompts."""
    mix, asked = [*MIX2.values()], [MIX2[name] for name in PROMPT_SOURCES]
    pairs = [one.pairs for one in mix]
    return BudgetConfig(
        gpu="a100-80gb",
        gpus=8,
        pair_prompt=_mean(pairs, [one.prompt for one in mix]),
        pair_chosen=_mean(pairs, [one.chosen for one in mix]),
        pair_rejected=_mean(pairs, [one.rejected for one in mix]),
        prompt=_mean([one.prompts for one in asked], [one.prompt for one in asked]),
        response=ARENA_TOKENS,
    )


ONLINE_RECIPES = {
    "online:llama3-8b": llama3_8b,
    "online:llama3-8b-pairwise": llama3_8b_pairwise,
}
