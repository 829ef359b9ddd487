"""What `nplus check` assumes where it estimates tokens, GPU-hours and whether memory is enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from nplus.config.base import Config


@dataclass(frozen=True, slots=True)
class GPU:
    """A device as its maker's data sheet has it; products of dense matrices."""

    bfloat16: float
    """Floating-point operations a second, at most."""
    tf32: float
    float32: float
    bandwidth: float
    """Bytes a second between memory and chip, at most."""
    memory: float
    """GiB."""


GPUS = {
    "a100-80gb": GPU(312e12, 156e12, 19.5e12, 2.039e12, 80.0),
    "h100-80gb": GPU(989e12, 494e12, 67e12, 3.35e12, 80.0),
    "h200-141gb": GPU(989e12, 494e12, 67e12, 4.8e12, 140.0),
}
"""NVIDIA's data sheets of the SXM modules."""


class BudgetConfig(Config):
    """Assumptions of an estimate: no stage reads them, and no result hangs on them.

    Lengths are means in tokens; where one is None, the longest that the run allows stands for it.
    """

    gpu: Literal["a100-80gb", "h100-80gb", "h200-141gb"] = "a100-80gb"
    gpus: int = Field(1, ge=1)
    """Processes that share each batch, one a GPU, unless `--world-size` says so."""
    mfu: float = Field(0.4, gt=0, le=1)
    """Share of the GPU's peak that forwards and backwards reach, counted as 6 or 2 operations a
    parameter and token."""
    mbu: float = Field(0.6, gt=0, le=1)
    """Share of the memory's bandwidth that drawing tokens reaches, where each step reads all
    weights and the cache."""
    sft_tokens: int | None = Field(None, ge=1)
    """Tokens of all demonstrations; None leaves SFT out of the sum."""
    pair_prompt: float | None = Field(None, gt=0)
    """Length of the prompt of a comparison."""
    pair_chosen: float | None = Field(None, gt=0)
    pair_rejected: float | None = Field(None, gt=0)
    prompt: float | None = Field(None, gt=0)
    """Length of a prompt of the online loop."""
    response: float | None = Field(None, gt=0)
    """Length of what the policy writes in the loop."""
