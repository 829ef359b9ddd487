from __future__ import annotations

import random
from typing import Any

import pytest

from nplus.config.data import CNNDM_TEMPLATE, TLDR_TEMPLATE
from nplus.data.tldr import fill, template_fields, truncate_query
from nplus.data.tokens import Codec
from nplus.records import InputError


@pytest.mark.detail("A2")
def test_the_tldr_template_is_openais(sft_rows: list[dict[str, Any]]) -> None:
    # Detail A2, literal.
    query = fill(TLDR_TEMPLATE, sft_rows[6])
    assert query == "SUBREDDIT: r/test\n\nTITLE: Lamp\n\nPOST: Short.\n\nTL;DR:"


def test_the_cnndm_template_ends_in_a_newline() -> None:
    assert fill(CNNDM_TEMPLATE, {"article": "Storm."}) == "Article:\nStorm.\n\nTL;DR:\n"


def test_braces_in_a_post_are_text() -> None:
    assert fill("{post}|", {"post": "{title} {0} }{ {{x}}"}) == "{title} {0} }{ {{x}}|"


def test_only_named_columns_are_needed() -> None:
    assert template_fields("{a} {{b}} {c} {a}") == ("a", "c")
    with pytest.raises(InputError, match=r"needs \['title'\].*found columns \['post'\]"):
        fill("{title} {post}", {"post": "x"})


@pytest.mark.parametrize("template", ["{0}", "{}", "{post.x}", "{post!r}", "{post:>9}"])
def test_a_template_holds_names_only(template: str) -> None:
    with pytest.raises(InputError, match="not a column name"):
        template_fields(template)


def test_a_broken_template_is_refused() -> None:
    with pytest.raises(InputError, match="is broken"):
        template_fields("{post")


# A3, with one character a token. The first three literals are the specification's.


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("aaaa\n\nbbbb\ncc", 9, "P:aaaa\n|"),
        ("aaaa\n\nbbbb\ncc", 7, "P:aaaa|"),
        ("abcdefghij", 8, "P:abcde|"),
        ("aaaa\n\nbbbb\ncc", 16, "P:aaaa\n\nbbbb\ncc|"),
        ("aaaa\n\nbbbb\ncc", 15, "P:aaaa\n\nbbbb|"),
        ("aaaa\n\nbbbb\ncc", 5, "P:aa|"),
        ("aaaa", 3, "P:|"),
    ],
)
def test_truncation_by_paragraph_then_by_character(text: str, limit: int, expected: str) -> None:
    assert truncate_query("P:{p}|", {"p": text}, "p", limit, list) == expected


def test_a_header_over_the_limit_is_an_error() -> None:
    with pytest.raises(InputError, match=r"posts\.jsonl, line 4: 3 tokens without any 'p'"):
        truncate_query("P:{p}|", {"p": "abc"}, "p", 2, list, where="posts.jsonl, line 4")


def test_the_cue_and_the_header_survive(codec: Codec, sft_rows: list[dict[str, Any]]) -> None:
    for row in sft_rows[:2]:
        query = truncate_query(TLDR_TEMPLATE, row, "post", 60, codec.encode, splits_at_spaces=True)
        assert query.startswith("SUBREDDIT: r/test\n\nTITLE: Lamp\n\nPOST: ")
        assert query.endswith("\n\nTL;DR:")
        assert len(codec.encode(query)) <= 60


def literally(template: str, fields: dict[str, str], name: str, limit: int, codec: Codec) -> str:
    """The rule as the specification words it, one step at a time."""
    text = fields[name]
    while len(codec.encode(template.format(**{**fields, name: text}))) > limit:
        text = text.rsplit("\n", 1)[0] if "\n" in text else text[:-1]
    return template.format(**{**fields, name: text})


@pytest.mark.parametrize("seed", range(40))
def test_skipping_ahead_changes_nothing(codec: Codec, seed: int) -> None:
    dice = random.Random(seed)
    pieces = [
        "boat",
        " ",
        "  ",
        "lamp broke",
        "'s",
        "日本",
        "!!",
        "9",
        "\t",
        " the harbour",
        "<|",
        ".",
    ]
    if seed % 4 == 0:
        pieces.append("\n")
    fields = {"title": "a lamp", "post": "".join(dice.choices(pieces, k=dice.randint(40, 160)))}
    template = dice.choice(["T {title} {post}\n\nTL;DR:", "{post}|", "{post} {title}", "x{post} y"])
    limit = dice.randint(20, 60)
    expected = literally(template, fields, "post", limit, codec)
    found = truncate_query(template, fields, "post", limit, codec.encode, splits_at_spaces=True)
    assert found == expected
    assert truncate_query(template, fields, "post", limit, codec.encode) == expected


def test_a_field_named_twice_is_cut_in_both_places(codec: Codec) -> None:
    fields = {"post": "the boat broke again " * 20}
    expected = literally("{post} or {post}", fields, "post", 40, codec)
    cut = truncate_query(
        "{post} or {post}", fields, "post", 40, codec.encode, splits_at_spaces=True
    )
    assert cut == expected


def test_skipping_ahead_saves_encodings(codec: Codec) -> None:
    calls = 0

    def counted(text: str) -> list[int]:
        nonlocal calls
        calls += 1
        return codec.encode(text)

    fields = {"post": "the boat broke again " * 400}
    truncate_query("{post}\n\nTL;DR:", fields, "post", 50, counted, splits_at_spaces=True)
    assert calls < 100
