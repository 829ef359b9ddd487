"""Lengths of many texts in tokens, exactly and fast."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nplus.data.tokens import Codec

Count = Callable[[Sequence[str]], list[int]]

BOUNDARY = re.compile(r"(?<=\S)(?= )")
TWO = re.compile(r"\s ")
TWO_ASCII = re.compile(r"[\t-\r\x1c- ] ")
"""A space after white space: it starts no piece."""
MOST_PIECES = 1 << 20


def characters(texts: Sequence[str]) -> list[int]:
    """Lengths in characters."""
    return [len(text) for text in texts]


class TokenCounter:
    """Lengths in tokens, as `Codec.encode_batch` has them, without a list of ids for each text.

    Where each space after a non-space starts a token (`Codec.splits_at_spaces`), the tokens of a
    text are those of its pieces between such spaces, and a piece is nearly always a word that has
    been counted before. Elsewhere the tokenizer counts the texts in its own threads.
    """

    def __init__(self, codec: Codec) -> None:
        from tokenizers import Tokenizer

        core = Tokenizer.from_str(codec.tokenizer.backend_tokenizer.to_str())
        core.no_truncation()
        core.no_padding()
        core.encode_special_tokens = True  # as in `Codec.encode_batch`: a marker in a text is text
        self._core = core
        self._heads: dict[str, int] = {}
        self._words: dict[str, int] = {}
        self._by_word = codec.splits_at_spaces

    def __call__(self, texts: Sequence[str]) -> list[int]:
        if self._by_word:
            return self._counted(texts)
        distinct = list(dict.fromkeys(texts))
        found = dict(zip(distinct, self._encoded(distinct), strict=True))
        return [found[text] for text in texts]

    def _counted(self, texts: Sequence[str]) -> list[int]:
        heads, words = self._heads, self._words
        if len(words) > MOST_PIECES:
            words.clear()
            heads.clear()
        split = [pieces(text) for text in texts]
        # Not `set - keys()`, which walks through all keys that are known.
        fresh = [head for head in {head for head, _ in split} if head not in heads]
        heads.update(zip(fresh, self._encoded(fresh), strict=True))
        found = set(chain.from_iterable(rest for _, rest in split))
        fresh = [word for word in found if word not in words]
        spaced = self._encoded([f" {word}" for word in fresh])
        words.update(zip(fresh, spaced, strict=True))
        look_up = words.__getitem__
        return [heads[head] + sum(map(look_up, rest)) for head, rest in split]

    def _encoded(self, texts: list[str]) -> Iterable[int]:
        return map(len, self._core.encode_batch_fast(texts, add_special_tokens=False))


class RenderedCounter:
    """Lengths in tokens of rendered conversations, whose special tokens are tokens."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def __call__(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._codec.encode_queries(texts)]


def pieces(text: str) -> tuple[str, list[str]]:
    """The text parted before each space that follows a non-space: its head, and the other parts
    without the space that each begins with."""
    two = TWO_ASCII if text.isascii() else TWO
    if two.search(text):
        head, *rest = BOUNDARY.split(text)
        return head, [part[1:] for part in rest]
    head, *rest = text.split(" ")
    return head, rest
