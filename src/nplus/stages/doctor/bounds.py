"""How far two computations of the same number may lie apart, by precision."""

from __future__ import annotations

from nplus.config import RunConfig

LOGPROB = {"float64": 1e-5, "float32": 1e-3, "products": 0.1, "bfloat16": 0.15}
"""Root mean square of a token's difference in log-prob, in nats; `products` is float32 whose matrix
products are reduced. Measured between generation and training forward: 7e-6 in float32, 0.05 in
bfloat16 (Detail B4, "Putting RL back in RLHF"); log-probs are float32 even in a float64 model."""
SCORE = {"float64": 1e-5, "float32": 1e-3, "products": 5e-2, "bfloat16": 5e-2}
"""Difference of a score, in the unit of `models.golden.Golden.scale`."""
MANY_FAILED = 0.5
"""Share of a verifiable reward's calls without a value above which it is no reward."""


def precision_of(config: RunConfig, autocast: str = "none") -> str:
    """The coarsest precision that a forward of the run computes in: a key of the tables above."""
    if "bfloat16" in (config.model.dtype, autocast):
        return "bfloat16"
    if config.model.dtype == "float32" and config.compute.matmul_precision != "highest":
        return "products"
    return config.model.dtype


def precisions_of(config: RunConfig, stage: str) -> tuple[str, str]:
    """Of a stage's rollouts, and of its training forwards."""
    autocast = getattr(getattr(config, stage, None), "autocast", "none")
    return precision_of(config), precision_of(config, autocast)
