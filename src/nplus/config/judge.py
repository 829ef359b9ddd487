"""The LLM judge (Detail H2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nplus.config.base import Config


class JudgeConfig(Config):
    """A model behind an OpenAI-compatible endpoint that compares two summaries of a post."""

    model: str = Field("gpt-3.5-turbo-0125", min_length=1)
    """Detail H2: the paper's main judge. Judges are not interchangeable: compare win rates of one
    judge only."""
    base_url: str = Field("https://api.openai.com/v1", pattern=r"^https?://")
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
