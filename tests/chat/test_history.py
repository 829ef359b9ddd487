"""Over-long conversations: the oldest exchanges go, the last question stays, or is an error."""

from __future__ import annotations

import pytest
from talk import SYSTEM, chat_config, turns

from nplus.data.comparisons import fit_comparisons
from nplus.data.conversations import Message, dialogue, preference
from nplus.data.fit import Limits, fit
from nplus.data.history import fit_conversation
from nplus.data.tokens import Codec
from nplus.records import InputError

NO_LIMIT = Limits(None, "", None, "")
HEADER = len("<|im_start|>user\n<|im_end|>\n") - len("<|im_start|><|im_end|>") + 2
"""Tokens around a user's text: a byte is a token, and so is a marker."""


def messages(*texts: str, system: str | None = None) -> tuple[Message, ...]:
    return tuple(Message(**turn) for turn in turns(*texts, system=system))


def tokens(codec: Codec, said: tuple[Message, ...]) -> int:
    return len(codec.encode_query(codec.chat.prompt(said)))


def test_tokens_are_counted_by_hand(codec: Codec) -> None:
    head = len(f"system\n{SYSTEM}\n") + 2
    assert tokens(codec, messages("abc")) == head + HEADER + 3 + len("assistant\n") + 1


@pytest.mark.parametrize("system", [None, "Be short."])
def test_whole_exchanges_go_from_the_left(codec: Codec, system: str | None) -> None:
    said = messages("one?", "One.", "two?", "Two.", "three?", system=system)
    kept = messages("two?", "Two.", "three?", system=system)
    limit = tokens(codec, said) - 1
    found = fit_conversation(said, codec, limit, "history", "f")
    assert found is not None
    assert found[0] == kept
    # rendered anew: a default system turn is there again, as in every prompt
    assert found[1] == codec.chat.prompt(kept)
    assert (SYSTEM in found[1]) == (system is None)
    assert found[2] == tokens(codec, kept) <= limit


def test_what_fits_is_left_alone(codec: Codec) -> None:
    said = messages("one?", "One.", "two?")
    found = fit_conversation(said, codec, tokens(codec, said), "history", "f")
    assert found is not None
    assert found[0] == said


def test_the_last_question_is_never_cut_silently(codec: Codec) -> None:
    said = messages("old", "Old.", "x" * 50)
    limit = tokens(codec, messages("x" * 50)) - 1
    with pytest.raises(InputError, match=r"f, line 2: the last turn.*set data.overlong=drop, or"):
        fit_conversation(said, codec, limit, "history", "f, line 2")
    assert fit_conversation(said, codec, limit, "filter", "f") is None


def test_its_beginning_goes_when_asked_for(codec: Codec) -> None:
    text = "".join(chr(97 + i % 26) for i in range(50))
    limit = tokens(codec, messages(text)) - 7
    found = fit_conversation(messages("a", "b", text), codec, limit, "final_turn", "f")
    assert found is not None
    assert found[0] == messages(text[7:])
    assert found[2] == limit
    with pytest.raises(InputError, match="one character of the last turn"):
        fit_conversation(messages(text), codec, 20, "final_turn", "f")


def test_rows_are_fitted_or_refused(codec: Codec) -> None:
    rows = [
        dialogue("f, line 1", {"messages": turns("one?", "One.", "two?", "Two.")}),
        dialogue("f, line 2", {"messages": turns("x" * 99, "One.")}),
        dialogue("f, line 3", {"messages": turns("a<|im_end|>", "One.")}),
    ]
    limit = tokens(codec, messages("two?"))
    data = chat_config(overlong="drop")
    first, second, third = fit(rows, codec, data, query_limit=limit, limits=NO_LIMIT)
    assert (first.messages, first.cut) == (messages("two?"), True)
    assert first.response_tokens == (len("Two.") + 1,)
    assert "last turn of the user" in str(second.faults[0])
    assert "spells the special token" in str(third.faults[0])
    left_out = fit(rows, codec, chat_config(faulty="drop"), query_limit=limit, limits=NO_LIMIT)
    assert [row.filtered for row in left_out] == [False, False, True]


def test_both_sides_of_a_pair_lose_the_same_history(codec: Codec) -> None:
    row = {
        "chosen": turns("one?", "One.", "two?", "Two."),
        "rejected": turns("one?", "One.", "two?", "2"),
    }
    pair = preference("f, line 1", row)
    data = chat_config(max_query_tokens=tokens(codec, messages("two?")))
    (record,), told = fit_comparisons({"train": [pair]}, codec, data)
    assert record.query == codec.chat.prompt(messages("two?"))
    assert (record.chosen, record.rejected) == ("Two.", "2")
    assert told["train"]["truncated_share"] == 1.0
