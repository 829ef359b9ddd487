"""A whole run: what a recipe returns."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from nplus.config.base import Config
from nplus.config.budget import BudgetConfig
from nplus.config.checkpoint import CheckpointConfig
from nplus.config.curve import CurveConfig
from nplus.config.data import DataConfig, TokenizerConfig
from nplus.config.doctor import DoctorConfig
from nplus.config.dpo import DPOConfig
from nplus.config.judge import JudgeConfig
from nplus.config.model import ComputeConfig, ModelConfig
from nplus.config.online import OnlineConfig
from nplus.config.online_dpo import OnlineDPOConfig
from nplus.config.ppo import PPOConfig
from nplus.config.preference import PreferenceConfig
from nplus.config.reinforce import ReinforceConfig
from nplus.config.scoring import ScoringConfig
from nplus.config.stages import (
    EvaluateConfig,
    LabelConfig,
    PretrainConfig,
    RewardConfig,
    SampleConfig,
    SFTConfig,
)

ONLINE = ("ppo", "reinforce", "online_dpo")
"""Stages that train a policy on its own scored responses."""


class RunConfig(Config):
    """Every stage's settings; a stage set to None is left out."""

    recipe: str
    """`family` or `family:member`, as given on the command line."""
    seed: int = Field(1, ge=0)
    """Names all training and sampling randomness."""
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    compute: ComputeConfig = ComputeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    pretrain: PretrainConfig | None = None
    sft: SFTConfig = SFTConfig()
    sample: SampleConfig | None = None
    label: LabelConfig = LabelConfig()
    reward: RewardConfig = RewardConfig()
    preference: PreferenceConfig | None = None
    scoring: ScoringConfig = ScoringConfig()
    ppo: PPOConfig | None = PPOConfig()
    reinforce: ReinforceConfig | None = None
    online_dpo: OnlineDPOConfig | None = None
    dpo: DPOConfig | None = None
    online: OnlineConfig | None = None
    curve: CurveConfig | None = None
    evaluate: EvaluateConfig = EvaluateConfig()
    judge: JudgeConfig = JudgeConfig()
    doctor: DoctorConfig = DoctorConfig()
    budget: BudgetConfig | None = None
    until: str | None = None
    """The last stage; None runs all."""

    def stage_names(self) -> tuple[str, ...]:
        """The stages this run has, in order."""
        rounds = tuple(step.name for step in self.online.steps()) if self.online else ()
        # A stage stands before what it does not need, so that a run can end there.
        first = ("data", "prompts", "pretrain", "sft", "sample", "label", "dpo", "preference")
        last = ("online", *ONLINE, "curve", "evaluate")
        names = (*first, *reward_stages(self.reward), *rounds, *last)
        optional = ("pretrain", "sample", "dpo", "preference", "online", *ONLINE, "curve")
        absent = {name for name in optional if getattr(self, name) is None}
        if self.online is None or self.online.prompts_data is None:
            absent.add("prompts")
        there = tuple(name for name in names if name not in absent)
        return there[: there.index(self.until) + 1] if self.until in there else there

    @model_validator(mode="after")
    def _opinions(self) -> Self:
        ensemble = self.online is not None and self.online.scorer == "ensemble"
        if ensemble and self.reward.members < 2:
            raise ValueError(
                f"online.scorer=ensemble with reward.members={self.reward.members}: an ensemble "
                "has at least two reward models; set reward.members=3"
            )
        knockout = self.online is not None and self.online.pairing == "knockout"
        if knockout and self.preference is None:
            raise ValueError(
                "online.pairing=knockout without preference: there is no pairwise model to ask; "
                "set preference={}, or another online.pairing"
            )
        return self

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        if self.pretrain is not None and self.model.size is None:
            raise ValueError("pretrain trains toy models only: set model.size, or pretrain=null")
        if self.pretrain is None and self.model.size is None and not self.model.model_name_or_path:
            raise ValueError("no model: set model.size or model.model_name_or_path")
        if self.model.size is not None and self.model.model_name_or_path is not None:
            raise ValueError(
                f"model.size={self.model.size} and model.model_name_or_path="
                f"{self.model.model_name_or_path}: each names a network; set one of them to null"
            )
        if self.pretrain is None and self.model.size is not None:
            raise ValueError(
                f"model.size={self.model.size} without pretrain: a toy network begins at random; "
                "give the recipe's pretrain back, or set model.size=null and "
                "model.model_name_or_path=DIRECTORY"
            )
        if self.model.size is not None and self.tokenizer.vocab_size is None:
            raise ValueError(
                f"model.size={self.model.size} without tokenizer.vocab_size: a toy network has no "
                "tokenizer of its own; set tokenizer.vocab_size, as in tokenizer.vocab_size=2048"
            )
        if self.label.kind == "world" and self.sample is None:
            raise ValueError(
                "label.kind=world without sample: the labellers compare what the policy has "
                "written; give the recipe's sample back, or set label.kind=contrast"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.data.source == "files" and not self.data.data:
            raise ValueError(
                "data.data is empty: name a JSONL or Parquet file, a directory or a hub dataset, "
                "as in --set data=posts.jsonl"
            )
        if self.data.source != "world":
            needs = (
                ("label.kind", self.label.kind, "world", "contrast"),
                ("evaluate.judge", self.evaluate.judge, "gold", "reward"),
            )
            wrong = [(key, value, mend) for key, given, value, mend in needs if given == value]
            if wrong:
                given = " and ".join(f"{key}={value}" for key, value, _ in wrong)
                mends = " and ".join(f"{key}={mend}" for key, _, mend in wrong)
                raise ValueError(
                    f"{given}: only the embedded world (data.source=world) has the facts for it; "
                    f"set {mends}, or start from the recipe `real`"
                )
        if (self.label.kind == "data") != bool(self.data.comparisons.data):
            raise ValueError(
                f"label.kind={self.label.kind} with data.comparisons.data="
                f"{self.data.comparisons.data}: name the comparisons in data.comparisons.data and "
                "set label.kind=data, or neither"
            )
        self._of_conversations()
        self._of_layouts()
        if self.until is not None and self.until != self.stage_names()[-1]:
            raise ValueError(
                f"until={self.until}: not a stage of this run; name one of "
                f"{', '.join(self.stage_names())}"
            )
        return self

    @model_validator(mode="after")
    def _room(self) -> Self:
        lengths = {"evaluate.response_length": self.evaluate.response_length}
        for name in ONLINE:
            if (stage := getattr(self, name)) is not None:
                lengths[f"{name}.sampling.response_length"] = stage.sampling.response_length
        if self.online is not None:
            lengths["online.response_length"] = self.online.response_length
        for key, length in lengths.items():
            if length < self.data.max_response_tokens:
                raise ValueError(
                    f"{key}={length} is below data.max_response_tokens="
                    f"{self.data.max_response_tokens}: the policy could not end a response of "
                    "the references' length; raise it"
                )
        return self

    def _of_layouts(self) -> None:
        for name in ("reinforce", "online_dpo"):
            stage = getattr(self, name)
            if stage is not None and stage.shared and self.model.positions == "slots":
                raise ValueError(
                    f"{name}.layout=shared with model.positions=slots: behind a shared prompt "
                    f"there is no padding to count; set {name}.layout=separate"
                )

    def _of_conversations(self) -> None:
        sft = self.sft
        if sft.loss_on == "assistant" and self.data.format != "chat":
            raise ValueError(
                "sft.loss_on=assistant: only conversations (data.format=chat) have turns; set "
                "sft.loss_on=response"
            )
        if sft.max_length is not None and not sft.packing:
            raise ValueError(
                f"sft.max_length={sft.max_length} without sft.packing: it is the width of packed "
                "rows; set sft.packing=true, or sft.max_length=null"
            )
        if sft.packing and not self.tokenizer.distinct_pad:
            raise ValueError(
                "sft.packing with tokenizer.distinct_pad=false: every EOS inside a row would be "
                "masked; set tokenizer.distinct_pad=true"
            )


def reward_stages(cfg: RewardConfig) -> tuple[str, ...]:
    """The stages that train the reward model and the other members of its ensemble."""
    return ("reward", *(f"reward_{number}" for number in range(2, cfg.members + 1)))


def member_of(stage: str) -> int | None:
    """Which member of the reward ensemble a stage trains, from 1; None for another stage."""
    head, _, number = stage.partition("_")
    if head != "reward":
        return None
    return int(number) if number else 1
