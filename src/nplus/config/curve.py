"""The road to a policy: every policy that a run has kept, judged the same way."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from nplus.config.base import Config


def _rising(values: tuple[int, ...]) -> tuple[int, ...]:
    if list(values) != sorted({*values}):
        raise ValueError("each has to be above the one before, as in [1, 2, 4, 8]")
    return values


class CurveConfig(Config):
    """Win rate, KL and rollouts of the policies along a run (`keep_policy_steps`, and the rounds of
    the online loop), and of best-of-n from the SFT policy."""

    split: Literal["valid", "test"] = "valid"
    """The posts that are answered."""
    max_rows: int | None = Field(None, ge=1)
    """Use only the first posts."""
    temperature: float = Field(0.7, gt=0)
    """All policies are sampled at it, and KL is that of the distributions at it."""
    best_of: Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(_rising)] = ()
    """Numbers of the SFT policy's responses of which the reward model takes the best."""
