"""The base of every config model: frozen, unknown keys are errors, field docstrings are help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Config(BaseModel):
    """A frozen component of a run's configuration."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


def unread(cfg: Config, readers: Mapping[str, tuple[object, str, str]]) -> Iterator[str]:
    """A line for each key that is not at its default while nothing reads it.

    readers: for each key, whether it is read, the setting beside it and the one that would have
    it read (`("scorer=reward", "scorer=ensemble")`).
    """
    for key, (is_read, beside, mend) in readers.items():
        value, default = getattr(cfg, key), type(cfg).model_fields[key].default
        if value != default and not is_read:
            yield f"{key}={value} with {beside}: nothing reads it; set {mend}, or {key}={default}"
