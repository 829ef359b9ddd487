"""nplus: the complete, trustworthy RLHF system (SFT, reward models, PPO and the evidence)."""

__version__ = "0.1.0"
