"""What a response is scored by, beside the reward model or instead of it."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from nplus.config.base import Config

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _named(text: str | None) -> str | None:
    if text is not None and not _FUNCTION.fullmatch(text):
        raise ValueError(f"{text!r}: needs MODULE:FUNCTION, as in my_rewards:ends_with_a_number")
    return text


class TermConfig(Config):
    """One more reward: a Python function `f(query, response, id) -> number`, or a reward model."""

    function: Annotated[str | None, AfterValidator(_named)] = None
    """MODULE:FUNCTION, importable from the working directory."""
    reward_model: str | None = None
    """Instead of a function, the folder of a trained reward model with the run's tokenizer, as
    another run's reward stage keeps it in `model`."""
    weight: float = 1.0
    """What its value counts for in the sum."""
    at_least: float | None = None
    """A constraint: where the value is lower, the response loses `penalty`."""
    penalty: float = Field(1.0, ge=0)

    @property
    def name(self) -> str:
        """What gives the value."""
        return self.function or str(self.reward_model)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.function is None) == (self.reward_model is None):
            raise ValueError(
                f"a term with function={self.function} and reward_model={self.reward_model}: name "
                "one of the two"
            )
        return self


class ScoringConfig(Config):
    """The score that policies are trained on: `reward_weight` times the run's reward model's, plus
    each term's weighted value, less the penalties of constraints that are not met."""

    reward_weight: float = 1.0
    """0 leaves the run's reward model out of the sum."""
    terms: tuple[TermConfig, ...] = ()
    timeout: float = Field(5.0, gt=0)
    """Seconds that a function may take for one response."""
    memory_mib: int = Field(1024, ge=64)
    """Address space of the process that a function runs in."""
    failed: float | None = None
    """The value of a response for which a function raised, took too long or gave no finite number,
    or a term's reward model none; None ends the run with a message."""

    @property
    def plain(self) -> bool:
        """Whether the score is the reward model's alone."""
        return not self.terms and self.reward_weight == 1.0

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.terms and self.reward_weight != 1.0:
            raise ValueError(
                f"reward_weight={self.reward_weight} without terms: there is nothing to weigh the "
                "reward model against; set terms, or reward_weight=1"
            )
        names = [term.name for term in self.terms]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))}: given twice in terms; name each once")
        return self
