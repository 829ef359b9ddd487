"""Configuration: frozen pydantic models, one file per component; imports no torch."""

from nplus.config.base import Config
from nplus.config.budget import BudgetConfig
from nplus.config.checkpoint import CheckpointConfig
from nplus.config.curve import CurveConfig
from nplus.config.data import ComparisonsConfig, DataConfig, TokenizerConfig, WorldConfig
from nplus.config.doctor import DoctorConfig
from nplus.config.dpo import DPOConfig
from nplus.config.groups import GroupConfig
from nplus.config.judge import JudgeConfig
from nplus.config.model import ComputeConfig, ModelConfig
from nplus.config.on_policy import OnPolicyConfig
from nplus.config.online import OnlineConfig
from nplus.config.online_dpo import OnlineDPOConfig
from nplus.config.optim import BatchConfig, OptimConfig
from nplus.config.ppo import PPOConfig
from nplus.config.preference import PreferenceConfig
from nplus.config.reinforce import ReinforceConfig
from nplus.config.run import RunConfig
from nplus.config.sampling import SamplingConfig
from nplus.config.scoring import ScoringConfig, TermConfig
from nplus.config.stages import (
    EvaluateConfig,
    LabelConfig,
    PretrainConfig,
    RewardConfig,
    SampleConfig,
    SFTConfig,
)

__all__ = [
    "BatchConfig",
    "BudgetConfig",
    "CheckpointConfig",
    "ComparisonsConfig",
    "ComputeConfig",
    "Config",
    "CurveConfig",
    "DPOConfig",
    "DataConfig",
    "DoctorConfig",
    "EvaluateConfig",
    "GroupConfig",
    "JudgeConfig",
    "LabelConfig",
    "ModelConfig",
    "OnPolicyConfig",
    "OnlineConfig",
    "OnlineDPOConfig",
    "OptimConfig",
    "PPOConfig",
    "PreferenceConfig",
    "PretrainConfig",
    "ReinforceConfig",
    "RewardConfig",
    "RunConfig",
    "SFTConfig",
    "SampleConfig",
    "SamplingConfig",
    "ScoringConfig",
    "TermConfig",
    "TokenizerConfig",
    "WorldConfig",
]
