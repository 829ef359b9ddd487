"""Conversations within a length: the oldest turns go, and the user's last one stays whole.

Truncation is from the left (arXiv 2405.07863 trains its reward models so), by whole exchanges: a
question without its answer, or half a turn, would be no conversation.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from nplus.data.conversations import Message, Messages
from nplus.records import InputError

if TYPE_CHECKING:
    from nplus.data.tokens import Codec


def fit_conversation(
    messages: Messages, codec: Codec, limit: int, truncation: str, where: str
) -> tuple[Messages, str, int] | None:
    """What is left of a conversation, its rendered prompt and that one's tokens, at most `limit`.

    `truncation` is that of `DataConfig`; None where it is `filter` and the whole is longer. A
    system turn is never cut. InputError where the last turn alone is over the limit and is not to
    be cut, or where no cut of it is enough.
    """
    for left in _shortened(messages):
        text, tokens = _prompt(left, codec, where)
        if tokens <= limit:
            return left, text, tokens
        if truncation == "filter":
            return None
    if truncation != "final_turn":
        raise InputError(
            f"{where}: the last turn of the user, with the system's, has {tokens} tokens, over "
            f"data.max_query_tokens={limit}, and data.truncation={truncation} cuts no question; "
            "raise the limit, set data.overlong=drop, or data.truncation=final_turn to cut its "
            "beginning"
        )
    return _last_words(left, codec, limit, where)


def _shortened(messages: Messages) -> list[Messages]:
    """The conversation, and what is left as exchange after exchange goes."""
    head = messages[:1] if messages[0].role == "system" else ()
    spoken = messages[len(head) :]
    return [head + spoken[start:] for start in range(0, len(spoken), 2)]


def _prompt(messages: Messages, codec: Codec, where: str) -> tuple[str, int]:
    assert codec.chat is not None
    text = codec.chat.prompt(messages, where)
    return text, len(codec.encode_query(text))


def _last_words(
    messages: Messages, codec: Codec, limit: int, where: str
) -> tuple[Messages, str, int]:
    """As much of the end of the last turn as fits."""
    *before, last = messages

    def without(characters: int) -> Messages:
        return (*before, Message(last.role, last.content[characters:].lstrip()))

    def fits(characters: int) -> bool:
        return _prompt(without(characters), codec, where)[1] <= limit

    most = len(last.content.rstrip()) - 1
    start = bisect_left(range(most), True, key=fits)
    # A shorter text can have more tokens: bisection finds an edge, not that all behind it fits.
    while start < most and not fits(start):
        start += 1
    left = without(start)
    text, tokens = _prompt(left, codec, where)
    if tokens > limit:
        raise InputError(
            f"{where}: {tokens} tokens with one character of the last turn, over "
            f"data.max_query_tokens={limit}; shorten the system's turn or raise the limit"
        )
    return left, text, tokens
