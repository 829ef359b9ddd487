"""The paper's Llama-3-8B run against its printed numbers (arXiv 2405.07863)."""

import pytest

from nplus.config.batch_plan import supervised_plan
from nplus.config.load import load_config
from nplus.recipes import recipe, summary
from nplus.recipes.online import MIX2

GPUS = 8
PAPER = {
    # Section 3.1 and the SFT script: 1 epoch, 2e-5, cosine, batch 32, warm-up 0.03, packed 8192,
    # no prompt masked, no decay.
    "model.model_name_or_path": "meta-llama/Meta-Llama-3-8B",
    "sft.epochs": 1,
    "sft.optim.learning_rate": 2e-5,
    "sft.optim.weight_decay": 0.0,
    "sft.batch.batch_size": 32,
    "sft.packing": True,
    "sft.max_length": 8192,
    "sft.loss_on": "all",
    # Bradley-Terry (section 2.2, and the published script): 2e-6, batch 512, 1 epoch, decay 0.001,
    # at most 4,096 tokens cut from the left; the score at the last token, which PAD never is; no
    # margin, nothing that centres.
    "data.comparisons.data": "hendrydong/preference_700K",
    "label.kind": "data",
    "label.pairs": 700_000,
    "reward.epochs": 1,
    "reward.optim.learning_rate": 2e-6,
    "reward.optim.weight_decay": 0.001,
    "reward.batch.batch_size": 512,
    "reward.init": "sft",
    "reward.read_at": "eos",
    "reward.margin": "none",
    "reward.center_rewards_coefficient": 0.0,
    "reward.normalise": "none",
    "data.comparisons.max_length": 4096,
    "data.truncation": "history",
    "data.faulty": "drop",
    "tokenizer.distinct_pad": True,
    # Offline DPO: 1 epoch, batch 128, 5e-7.
    "dpo.epochs": 1,
    "dpo.optim.learning_rate": 5e-7,
    "dpo.batch.batch_size": 128,
    "dpo.beta": 0.1,
    "dpo.loss_type": "sigmoid",
    # Algorithm 2 and section 3.2.
    "online.rounds": 3,
    "online.prompts": 20_000,
    "online.prompts_data": "RLHFlow/prompt-collection-v0.1",
    "online.samples": 8,
    "online.draw": ("current@1.0", "current@0.7"),
    "online.response_length": 2048,
    "online.scorer": "reward",
    "online.length_penalty": 0.0,
    "online.length_unit": "characters",
    "online.pairing": "best_worst",
    "online.min_margin": 0.0,
    "online.reference": "sft",
    "online.init": "previous",
    "online.history": "accumulate",
    "online.choose": "best",
    # Table 7.
    "online.train.epochs": 2,
    "online.train.beta": 0.1,
    "online.train.loss_type": "sigmoid",
    "online.train.label_smoothing": 0.0,
    "online.train.optim.name": "adamw",
    "online.train.optim.learning_rate": 5e-7,
    "online.train.batch.batch_size": 128,
    "online.train.batch.micro_batch_size": 2,
    # AlpacaEval 2: 805 prompts, judged by GPT-4-Preview (11/06).
    "evaluate.judge": "llm",
    "evaluate.max_rows": 805,
    "evaluate.response_length": 2048,
    "judge.model": "gpt-4-1106-preview",
}
ACCUMULATED = {"sft": 4, "reward": 64, "dpo": 8, "preference": 16}
"""Micro-batches a step on eight GPUs: in the SFT, reward and pairwise scripts, and in Table 7."""


def value(cfg, key):
    for name in key.split("."):
        cfg = getattr(cfg, name)
    return cfg


@pytest.mark.parametrize("name", ["online:llama3-8b", "online:llama3-8b-pairwise"])
def test_every_number_is_the_papers(name):
    cfg, own = recipe(name), {"online.pairing": "knockout"} if "pairwise" in name else {}
    expected = PAPER | own
    assert {key: value(cfg, key) for key in expected} == expected


@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "preference", "online.train"])
def test_what_every_schedule_shares(name):
    optim = value(recipe("online:llama3-8b-pairwise"), name).optim
    assert (optim.lr_scheduler_type, optim.warmup_ratio, optim.warmup_steps) == ("cosine", 0.03, 0)
    assert (optim.adam_beta1, optim.adam_beta2, optim.adam_epsilon) == (0.9, 0.999, 1e-8)


def test_the_pairwise_model_is_optional():
    """Batch 128, 5e-6, 1 epoch; by itself, best and worst of n by knock-out."""
    assert recipe("online:llama3-8b").preference is None
    found = recipe("online:llama3-8b-pairwise").preference
    assert found is not None
    assert (found.epochs, found.batch.batch_size, found.init) == (1, 128, "sft")
    assert (found.optim.learning_rate, found.optim.weight_decay) == (5e-6, 0.0)


@pytest.mark.parametrize(("stage", "accumulated"), ACCUMULATED.items())
def test_eight_gpus_accumulate_as_the_authors_do(stage, accumulated):
    batch = getattr(recipe("online:llama3-8b-pairwise"), stage).batch
    plan = supervised_plan(batch, rows=10_000, world_size=GPUS)
    assert plan.micro_batches == accumulated


def test_the_length_penalised_variant_is_one_key():
    """0.001 a character (section 4.2)."""
    cfg = load_config(recipe("online:llama3-8b"), sets=["online.length_penalty=0.001"])
    assert cfg.online.length_penalty == 0.001


def test_the_stages_are_the_papers():
    names = recipe("online:llama3-8b").stage_names()
    outside = [name for name in names if not name.startswith("round")]
    assert outside == ["data", "prompts", "sft", "label", "dpo", "reward", "online", "evaluate"]
    assert names[names.index("reward") + 1] == "round0_validate"


def test_the_assumed_lengths_are_means_of_table_5():
    """Weighted by pairs, by hand; the prompts' of five of the six sources, by prompts."""
    budget = recipe("online:llama3-8b").budget
    assert budget is not None
    assert sum(one.pairs for one in MIX2.values()) == 848_965
    chosen = (
        115_396 * 82.2 + 93_301 * 173.6 + 37_131 * 116.4 + 26_874 * 70.4 + 340_025 * 279.5
        + 161_927 * 396.6 + 50_156 * 427.6 + 2_418 * 276.5 + 6_926 * 165.4 + 14_811 * 348.4
    ) / 848_965  # fmt: skip
    assert budget.pair_chosen == pytest.approx(chosen, abs=0.05)
    prompts = (
        63_591 * 161.5 + 8_592 * 530 + 6_791 * 153.3 + 76_086 * 507.4 + 14_740 * 634.5
    ) / 169_800
    assert budget.prompt == pytest.approx(prompts, abs=0.05)
    assert (budget.gpus, budget.response) == (8, 656)


def test_a_line_each():
    lines = [summary(name) for name in ("online:llama3-8b", "online:llama3-8b-pairwise")]
    assert all(40 < len(line) < 110 for line in lines)
