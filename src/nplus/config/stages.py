"""The other stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from nplus.config.base import Config
from nplus.config.optim import BatchConfig, OptimConfig


def _different(values: tuple[float, ...]) -> tuple[float, ...]:
    if len({*values}) < len(values):
        raise ValueError("a temperature is given twice; name each once")
    return values


Temperatures = Annotated[
    tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1), AfterValidator(_different)
]


class PretrainConfig(Config):
    """Next-token training of a toy model from scratch."""

    epochs: int = Field(1, ge=1)
    optim: OptimConfig = OptimConfig(name="muon", learning_rate=3e-3, warmup_steps=20)
    batch: BatchConfig = BatchConfig(batch_size=64, micro_batch_size=64)
    summary_weight: float = Field(4.0, gt=0)
    """Loss weight of a summary token beside a post token (weight 1)."""
    save_steps: int = Field(0, ge=0)
    """Checkpoint every so many steps; 0 only at the end."""


class SFTConfig(Config):
    """Supervised fine-tuning on demonstrations (section C)."""

    epochs: int = Field(1, ge=1)
    optim: OptimConfig = OptimConfig()
    batch: BatchConfig = BatchConfig(batch_size=128, micro_batch_size=16)
    loss_on: Literal["all", "response", "assistant"] = "all"
    """Detail C2: the loss covers query tokens too. `assistant`: of a conversation, every turn of
    the assistant with the token that ends it, and nothing else."""
    packing: bool = False
    """Several sequences in a row, each blind to the others: the same loss with less padding.
    `batch_size` then counts rows."""
    max_length: int | None = Field(None, ge=10)
    """Width of a packed row in tokens; None: `data.max_query_tokens` and
    `data.max_response_tokens` together. 8192 in the online RLHF paper."""
    max_rows: int | None = Field(None, ge=1)
    """Use only the first demonstrations."""
    copy_gate: float = Field(0.0, ge=0, le=1)
    """World only: least share of stated facts that must be right, greedily, before later stages
    may run."""
    save_steps: int = Field(0, ge=0)
    """Checkpoint every so many steps; 0 only at the end."""


class SampleConfig(Config):
    """Draws responses from trained policies, to be labelled."""

    prompts: int = Field(2_000, ge=1)
    """How many training queries to sample for."""
    valid_prompts: int = Field(400, ge=1)
    """How many validation queries to sample for."""
    temperatures: Temperatures = (0.3, 0.7, 1.0)
    """One response per prompt at each."""
    response_length: int = Field(53, ge=1)
    micro_batch_size: int = Field(128, ge=1)


class LabelConfig(Config):
    """Builds comparisons."""

    kind: Literal["world", "contrast", "data"] = "world"
    """`world`: simulated labellers compare policies; `contrast`: the author's TL;DR
    against another post's and against a shuffled one; `data`: people's, from
    `data.comparisons`."""
    pairs: int = Field(8_000, ge=1)
    """Training comparisons; of `data`, at most so many, drawn by the seed."""
    valid_pairs: int = Field(1_000, ge=1)
    """Validation comparisons; of `data`, at most so many of each kind of text."""


class RewardConfig(Config):
    """Bradley-Terry reward model (section D)."""

    epochs: int = Field(1, ge=1)
    optim: OptimConfig = OptimConfig()
    batch: BatchConfig = BatchConfig(batch_size=64, micro_batch_size=8)
    init: Literal["sft", "base"] = "sft"
    """Whose trunk it starts from: the SFT policy's or the base model's (Detail D1)."""
    head_init: Literal["normal", "uniform", "zero"] = "normal"
    """Head weights: N(0, 1/(hidden + 1)) (Detail D2), torch's default for linear layers, or 0."""
    read_at: Literal["eos", "before_eos"] = "eos"
    """The token whose output is the score (Detail D4); `before_eos` is a known mistake."""
    center_rewards_coefficient: float = Field(0.0, ge=0)
    """Weight of the squared sum of a pair's scores, which keeps them around 0 (Detail D3; TRL)."""
    margin: Literal["none", "data"] = "none"
    """`data`: the comparison's margin is taken from the scores' difference before the loss, which
    has to be larger then (Llama 2, equation 2). In your own data it is the column `margin`, or
    `score_chosen` less `score_rejected`."""
    layout: Literal["separate", "shared"] = "separate"
    """`separate`: two sequences a pair, pairs in random order, as in the paper. `shared`: the pairs
    of a query stand side by side and read it once; the same scores for less work."""
    normalise: Literal["mean", "mean_std", "none"] = "mean"
    """Detail D5: shift the scores so that training demonstrations average 0; `mean_std` also scales
    them to a standard deviation of 1 (OpenAI 2019)."""
    normalise_rows: int = Field(2_000, ge=1)
    """At most this many demonstrations for the shift; the paper takes all."""
    members: int = Field(1, ge=1, le=99)
    """Reward models that are trained alike, each on an order and a head of its own: an ensemble, of
    which `reward` is the first."""
    save_steps: int = Field(0, ge=0)
    """Checkpoint every so many steps; 0 only at the end."""


class EvaluateConfig(Config):
    """The verdict (section H)."""

    temperatures: Temperatures = (0.01, 0.7)
    """Detail H1: 0.01 is the paper's; the others are reported beside it."""
    response_length: int = Field(53, ge=1)
    split: Literal["valid", "test"] = "test"
    """Posts judged: `test` for the verdict, `valid` while tuning."""
    max_rows: int | None = Field(None, ge=1)
    """Judge only the first posts."""
    micro_batch_size: int = Field(128, ge=1)
    use_stemmer: bool = False
    """ROUGE on word stems; the paper compares words as they are (Detail C3)."""
    length_bins: int = Field(10, ge=2)
    """Quantile bins of the length ratio in the length-controlled comparison (Detail H3)."""
    calibration_width: float = Field(0.5, gt=0)
    """Width of the reward model's calibration bins, in score (Detail D8)."""
    token_view_rows: int = Field(6, ge=0)
    """Responses shown token by token: what alignment changed (Detail H5)."""
    token_view_top: int = Field(4, ge=2)
    """k of the token view: of the base model's choices, the first is unchanged, the second to k-1st
    marginal, the k-th and later shifted (Detail H5, quirk Q13)."""
    judge: Literal["gold", "reward", "llm"] = "gold"
    """`gold`: the world's scorer; `reward`: the reward model, for text without a gold scorer;
    `llm`: a language model that compares two summaries, see `judge` (Detail H2)."""
