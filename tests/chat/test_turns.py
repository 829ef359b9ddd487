"""The loss of every turn of the assistant, its end-of-turn included, and of nothing else."""

from __future__ import annotations

import pytest
import torch
from talk import turns

from nplus.data.conversations import Message
from nplus.data.targets import target_batch, target_rows
from nplus.data.tokens import Codec
from nplus.records import Dialogue, InputError

TALKS = [
    turns("Hi", "Ho"),
    turns("Hi", "Ho", "Why?", "So. Or: not"),
    turns("a\nb", "c\n\nd", "assistant\n", "é 漢字", " x ", "y", system="Be kind."),
]


def record(codec: Codec, talk: list[dict[str, str]]) -> Dialogue:
    said = tuple(Message(**turn) for turn in talk)
    query = codec.chat.prompt(said[:-1])
    return Dialogue("0", query, said[-1].content, turns=codec.chat.turns(said[:-1]))


@pytest.mark.parametrize("talk", TALKS)
def test_targets_are_what_the_template_marks_as_generated(
    codec: Codec, talk: list[dict[str, str]]
) -> None:
    """Oracle: transformers' own reading of the template's generation marks."""
    theirs = codec.tokenizer.apply_chat_template(
        talk, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    (row,) = target_rows(codec, [record(codec, talk)], "assistant")
    n = len(row.tokens)
    assert row.tokens == theirs["input_ids"][:n]
    assert [int(t) for t in row.targets] == theirs["assistant_masks"][:n]
    # behind the last end-of-turn the template writes a newline, which nobody says
    assert not any(theirs["assistant_masks"][n:])


def test_targets_by_hand(codec: Codec) -> None:
    (row,) = target_rows(codec, [record(codec, TALKS[1])], "assistant")
    picked = [token for token, of_loss in zip(row.tokens, row.targets, strict=True) if of_loss]
    end = [codec.eos_id]
    assert picked == codec.encode("Ho") + end + codec.encode("So. Or: not") + end


def test_the_other_kinds_of_loss(codec: Codec) -> None:
    made = record(codec, TALKS[1])
    response = len(codec.encode_response(made.response))
    for loss_on, count in (("response", response), ("all", len(codec.encode_query(made.query)))):
        (row,) = target_rows(codec, [made], loss_on)
        assert sum(row.targets) == count + (response if loss_on == "all" else 0)


def test_the_batch_pads_right_and_predicts_no_first_token(codec: Codec) -> None:
    rows = target_rows(codec, [record(codec, talk) for talk in TALKS[:2]], "all")
    batch = target_batch(rows, pad_id=codec.pad_id)
    assert batch.mask_BT.sum(1).tolist() == [len(row.tokens) for row in rows]
    assert batch.loss_mask_BT.sum(1).tolist() == [len(row.tokens) - 1 for row in rows]
    assert not batch.loss_mask_BT[:, 0].any()
    assert torch.equal(batch.loss_mask_BT[:, 1:], batch.mask_BT[:, 1:])
    # <|im_end|> inside a row is no padding, although it was the tokenizer's PAD
    assert (batch.tokens_BT == codec.eos_id)[batch.mask_BT].sum() == sum(
        row.tokens.count(codec.eos_id) for row in rows
    )


def test_a_token_over_the_edge_of_a_turn_is_an_error(codec: Codec) -> None:
    made = record(codec, TALKS[2])
    (_, _), (start, stop) = made.turns
    shifted = (made.turns[0], (start, stop - 1))  # inside <|im_end|>
    with pytest.raises(InputError, match="reaches over the edge of the turn"):
        codec.encode_turns(made.query, shifted)
