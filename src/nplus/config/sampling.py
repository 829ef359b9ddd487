"""How responses are drawn (details E4, E5, H1)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nplus.config.base import Config


class SamplingConfig(Config):
    """Sampling of one response."""

    temperature: float = Field(0.7, gt=0)
    """Logits are divided by `temperature + 1e-7` (Detail E5)."""
    response_length: int = Field(53, ge=1)
    """Longest response in tokens, EOS included (Detail E4)."""
    stop: Literal["eos", "length"] = "eos"
    """`eos`: a row leaves the batch after EOS; `length`: always `response_length` tokens (Detail
    E4)."""
