"""Where text comes from and how it becomes tokens (details A1 to A9)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nplus.config.base import Config

TLDR_TEMPLATE = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
CNNDM_TEMPLATE = "Article:\n{article}\n\nTL;DR:\n"
POST_TEMPLATE = "POST: {post}\n\nTL;DR:"
TEXT_CUTS = ("paragraph", "tokens", "filter")
CHAT_CUTS = ("history", "final_turn", "filter")
"""What `data.truncation` may be, by `data.format`."""


class WorldConfig(Config):
    """Rows of the embedded world, per split. Texts depend on (seed, split, index) only."""

    seed: int = Field(1, ge=0)
    """Seed of the world's texts."""
    pretrain: int = Field(20_000, ge=1)
    """Documents for pretraining a toy model."""
    train: int = Field(6_000, ge=1)
    """Posts with references for SFT; PPO reuses their queries (Detail E2)."""
    valid: int = Field(600, ge=1)
    """Validation posts: what tuning may look at."""
    test: int = Field(600, ge=1)
    """Posts of the verdict."""
    heldout: int = Field(300, ge=1)
    """Posts each for validation and test with slot values or wordings kept out of training."""
    news: int = Field(200, ge=0)
    """Articles of the second domain (plays CNN/DM), evaluation only."""


class ComparisonsConfig(Config):
    """Labelled comparisons, for `label.kind=data`; lengths in tokens, EOS included (Detail A8).

    Nothing is cut but a query: a longer row is an error, or dropped, as `data.overlong` says.
    """

    data: str | None = None
    """Comparisons in OpenAI's schema, or with `prompt` or `query`, `chosen` and `rejected`: a file,
    a folder or a hub dataset name (Detail A1)."""
    max_response_tokens: int | None = Field(None, ge=2)
    """Longest response; None has no limit. 169 in the paper's data."""
    max_length: int | None = Field(None, ge=10)
    """Longest query and response together; None has no limit. 638 in the paper's data."""
    max_news_query_tokens: int = Field(1919, ge=8)
    """Longest query of a news article (CNN/DM); longer ones are cut (Detail A3)."""
    max_news_response_tokens: int | None = Field(None, ge=2)
    """The same as `max_response_tokens`, for news: 155 in the paper's data."""
    max_news_length: int | None = Field(None, ge=10)
    """The same as `max_length`, for news: 2021 in the paper's data."""


class DataConfig(Config):
    """A dataset and its template."""

    source: Literal["world", "files"] = "world"
    """`world` writes the embedded world first; `files` reads `data`."""
    data: str | None = None
    """For `files`: a JSONL or Parquet file, a directory with train/valid/test files, or a hub
    dataset name."""
    world: WorldConfig = WorldConfig()
    """The embedded world's sizes."""
    format: Literal["text", "chat"] = "text"
    """What rows are: texts that `template` makes a query of, or conversations, which the
    tokenizer's chat template renders."""
    chat_template: str | None = None
    """For `chat`: a file with a Jinja template, in place of the tokenizer's own, or `llama3`, for
    Llama-3's base models, which have none."""
    faulty: Literal["error", "drop"] = "error"
    """For `chat`: what to do with a row that is no conversation of the standard format (roles that
    do not alternate, an empty turn, pairs that part before the last turn); `drop` counts them."""
    template: str | None = None
    """Query template naming columns in braces (Detail A2); None picks by the columns."""
    cut_field: str | None = None
    """The column that truncation shortens (Detail A3), as `post`; None picks by the template."""
    truncation: Literal["paragraph", "tokens", "filter", "history", "final_turn"] = "paragraph"
    """What happens to a longer query: cut by paragraph, then by character (Detail A3); cut hard
    after so many tokens, cue and all; or left out of the data (TRL). Of a conversation: its oldest
    turns go, a question with its answer, and a last question that is too long alone is an error
    (`history`), or loses its beginning (`final_turn`)."""
    query_padding: Literal["pad", "spaces"] = "pad"
    """Left padding of prompts: masked PAD, or attended spaces to the full width, as OpenAI did
    (Detail A4)."""
    join: Literal["ids", "text"] = "ids"
    """How query and response meet: as ids, or as one text without outer spaces that is tokenised
    again, as in the paper's code (Detail A5)."""
    leading_space: bool = True
    """One space before every response (Detail A6)."""
    max_query_tokens: int = Field(512, ge=8)
    """Longest query in tokens; see `truncation` for longer ones (Detail A3)."""
    max_response_tokens: int = Field(53, ge=2)
    """Longest reference in tokens, EOS included: a longer one is an error or dropped (Detail
    A8)."""
    max_length: int | None = Field(None, ge=10)
    """Longest query and reference together, EOS included; None has no limit. 562 in the paper's
    data (Detail A8)."""
    overlong: Literal["error", "drop", "cut"] = "error"
    """What to do with a row whose response is longer (Detail A8); `cut` loses its EOS."""
    max_rows: int | None = Field(None, ge=1)
    """Use only the first rows of the training split."""
    valid_fraction: float = Field(0.1, gt=0, lt=1)
    """For a single file: share of rows, by hash of the id, set aside for validation, and again
    for test."""
    comparisons: ComparisonsConfig = ComparisonsConfig()
    """What a reward model learns from where `label.kind=data`."""

    @model_validator(mode="after")
    def _of_one_format(self) -> Self:
        cuts = CHAT_CUTS if self.format == "chat" else TEXT_CUTS
        if self.truncation not in cuts:
            raise ValueError(
                f"truncation={self.truncation} with format={self.format}: set data.truncation to "
                f"one of {', '.join(cuts)}"
            )
        if self.format == "text":
            if self.chat_template is not None:
                raise ValueError("chat_template without format=chat: set data.format=chat too")
            return self
        other = {
            "source": (self.source, "files"),
            "join": (self.join, "ids"),
            "query_padding": (self.query_padding, "pad"),
            "template": (self.template, None),
        }
        for key, (given, mend) in other.items():
            if given != mend:
                said = "null" if mend is None else mend
                raise ValueError(f"{key}={given} with format=chat: set data.{key}={said}")
        return self


class TokenizerConfig(Config):
    """A tokenizer trained on the world, or the model's own."""

    vocab_size: int | None = Field(None, ge=300, le=1_000_000)
    """Train a byte-level BPE of this size on the world's texts; None takes the model's own."""
    pad_token: str = Field("[PAD]", min_length=1)
    """PAD, distinct from EOS (Detail A7)."""
    distinct_pad: bool = True
    """False pads with EOS after pretraining: every EOS is then masked (Detail A7)."""
