"""The LLM judge (Detail H2)."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from nplus.config.base import Config

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class JudgeConfig(Config):
    """A model behind an OpenAI-compatible endpoint that compares two summaries of a post."""

    model: str = Field("gpt-3.5-turbo-0125", min_length=1)
    """Detail H2: the paper's main judge. Judges are not interchangeable: compare win rates of one
    judge only."""
    base_url: str = "https://api.openai.com/v1"
    """Where the endpoint is, up to and with its version: `http://localhost:8000/v1` for a server of
    one's own."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """The environment variable that holds the key; null for a server that wants none. The key
    itself is never written anywhere."""
    order: Literal["random", "both"] = "random"
    """Which summary is shown first. `random`: drawn per item (Detail H2); `both`: ask twice, and
    call a disagreement a tie."""
    max_parallel: int = Field(8, ge=1, le=256)
    """Questions under way at a time."""
    retries: int = Field(5, ge=0, le=20)
    """Further tries of a question after a failure that may pass (no connection, 429, 5xx)."""
    timeout: float = Field(60.0, gt=0)
    """Seconds to wait for one answer."""

    @property
    def asked(self) -> dict[str, Any]:
        """Whom a verdict asks, and how, which its key covers; not how fast."""
        return self.model_dump(include={"model", "base_url", "order"})

    @field_validator("base_url")
    @classmethod
    def _no_secret_in_the_url(cls, value: str) -> str:
        try:
            url = urlsplit(value)
            whole = bool(url.hostname) and (url.port or 1) > 0
        except ValueError:
            whole = False
        if not whole or url.scheme not in ("http", "https") or not _is_one_word(value):
            raise ValueError(
                "must be an http:// or https:// address, as in http://localhost:8000/v1"
            )
        # It stands in manifest and report, so the message does not repeat it either.
        if url.username is not None or url.password is not None or url.query or url.fragment:
            raise ValueError(
                "must hold no user, password or query, since it is written to the manifest; give "
                "the key by the environment variable that judge.api_key_env names"
            )
        return value

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        if value is not None and not _VARIABLE.fullmatch(value):
            raise ValueError(
                "must be the name of an environment variable, as OPENAI_API_KEY, never the key "
                "itself (the value given is not shown)"
            )
        return value


def _is_one_word(text: str) -> bool:
    return text.isprintable() and not any(map(str.isspace, text))
