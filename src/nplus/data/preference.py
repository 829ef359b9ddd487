"""Two responses in one prompt, and the letter of the better one (arXiv 2405.07863, section 2.2).

The prompt ends where the letter begins, in training and in reading alike: no header comes between
that one of them would know and the other not. On conversations the whole comparison is one turn of
the user, the conversation in it as a transcript, and the letter is what the assistant says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nplus.data.conversations import Message
from nplus.data.tokens import Codec
from nplus.records import Comparison, InputError
from nplus.seeding import uniforms

BEFORE = ("\n\n### Response A\n", "\n\n### Response B\n", "\n\n### Better response\n")
"""What stands before each response, and before the letter."""
LETTERS = ("A", "B")


class LetterRow(NamedTuple):
    """Ids of a prompt with two responses, and of the letter of the better one."""

    prompt: list[int]
    letter: list[int]


def letter_ids(codec: Codec) -> tuple[int, int]:
    """The ids of `A` and `B`. InputError where a letter is no token of its own."""
    found = [codec.encode(letter) for letter in LETTERS]
    if any(len(ids) != 1 for ids in found) or found[0] == found[1]:
        raise InputError(
            f"this tokenizer writes A as {len(found[0])} and B as {len(found[1])} tokens, so no "
            "single token names the better response; leave `preference` out (preference=null)"
        )
    return found[0][0], found[1][0]


def pair_prompts(
    codec: Codec, queries: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> list[list[int]]:
    """Ids of each query with two responses, the first as A. Parts are joined by ids, so that a
    text that holds a marker of the template stays text."""
    head, second, ask = (codec.encode(part) for part in BEFORE)
    opened, closed = _turn(codec)
    asked = _transcripts(codec, queries)
    texts = codec.encode_batch([text.strip() for pair in pairs for text in pair])
    return [
        [*opened, *query, *head, *texts[2 * i], *second, *texts[2 * i + 1], *ask, *closed]
        for i, query in enumerate(asked)
    ]


def _turn(codec: Codec) -> tuple[list[int], list[int]]:
    """What the chat template writes before and after a user's only turn, up to where the assistant
    speaks; nothing without a template."""
    if codec.chat is None:
        return [], []
    content = "X"
    opened, _, closed = codec.chat.prompt([Message("user", content)]).rpartition(content)
    return codec.encode_query(opened), codec.encode_query(closed + codec.chat.before)


def _transcripts(codec: Codec, queries: Sequence[str]) -> list[list[int]]:
    """Ids of each query; of a conversation without special tokens, each turn's end a new line."""
    found = codec.encode_queries(queries)
    if codec.chat is None:
        return found
    chat, line = codec.chat, codec.encode("\n")
    return [
        [
            piece
            for token in ids
            for piece in (line if token == chat.end_id else [token])
            if piece not in chat.special_ids
        ]
        for ids in found
    ]


def chosen_first(seed: int, comparison: Comparison, number: int) -> bool:
    """Whether the preferred response stands as A: a coin named by the comparison and its place."""
    return bool(uniforms(seed, "preference side", comparison.id, number, n=1)[0] < 0.5)


def letter_rows(codec: Codec, comparisons: Sequence[Comparison], seed: int) -> list[LetterRow]:
    """Training rows, each comparison once, on a side of its own."""
    letters = letter_ids(codec)
    first = [chosen_first(seed, row, number) for number, row in enumerate(comparisons)]
    pairs = [
        (row.chosen, row.rejected) if a else (row.rejected, row.chosen)
        for row, a in zip(comparisons, first, strict=True)
    ]
    prompts = pair_prompts(codec, [row.query for row in comparisons], pairs)
    return [
        LetterRow(prompt, [letters[0 if a else 1]])
        for prompt, a in zip(prompts, first, strict=True)
    ]


def has_room(row: Sequence[int], most: int | None) -> bool:
    """Whether a prompt and its letter fit into `most` positions; None has no bound."""
    return most is None or len(row) + 1 <= most


def require_room(rows: Sequence[Sequence[int]], ids: Sequence[str], most: int | None) -> None:
    """InputError for a prompt that is longer than the model's positions."""
    for row, name in zip(rows, ids, strict=True):
        if most is not None and not has_room(row, most):
            raise InputError(
                f"comparison {name!r}: query and two responses are {len(row)} tokens, the model "
                f"takes {most - 1}; lower data.max_query_tokens or data.max_response_tokens"
            )


def require_match_room(
    codec: Codec, queries: Mapping[str, str], response_length: int, most: int | None
) -> None:
    """InputError for a query, by its id, that leaves no room for two responses of that length."""
    if most is None:
        return
    empty = pair_prompts(codec, [*queries.values()], [("", "")] * len(queries))
    for name, row in zip(queries, empty, strict=True):
        if len(row) + 2 * response_length + 1 > most:
            raise InputError(
                f"prompt {name!r}: its query is {len(row)} tokens in the pairwise model's prompt, "
                f"and two responses are up to {2 * response_length} more; the model takes "
                f"{most - 1}; lower online.response_length or data.max_query_tokens"
            )
