from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nplus.config.data import CNNDM_TEMPLATE, TLDR_TEMPLATE
from nplus.data.collate import (
    PairRow,
    check_seam,
    pair_batch,
    pair_rows,
    prompt_batch,
    sequence_rows,
    text_batch,
    token_batch,
)
from nplus.data.tldr import fill
from nplus.data.tokens import Codec, train_bpe
from nplus.records import Comparison, Demonstration, InputError, Prompt


@pytest.fixture
def demonstrations(sft_rows: list[dict[str, Any]]) -> list[Demonstration]:
    return [
        Demonstration(row["id"], fill(TLDR_TEMPLATE, row), row["summary"].strip())
        for row in sft_rows[2:]
    ]


@pytest.mark.detail("A4", "A9")
def test_prompts_are_padded_left_to_the_longest(
    codec: Codec, demonstrations: list[Demonstration]
) -> None:
    # Details A4 and A9.
    batch = prompt_batch(codec, demonstrations)
    rows = [codec.encode(d.query) for d in demonstrations]
    width = max(map(len, rows))
    assert batch.tokens_BP.shape == (len(rows), width)
    assert batch.keys == tuple(d.id for d in demonstrations)
    for tokens, mask, row in zip(batch.tokens_BP, batch.mask_BP, rows, strict=True):
        assert tokens.tolist() == [codec.pad_id] * (width - len(row)) + row
        assert mask.tolist() == [False] * (width - len(row)) + [True] * len(row)
    assert set(batch.tokens_BP[:, -1].tolist()) == {codec.encode("TL;DR:")[-1]}


def test_prompt_keys_can_be_given(codec: Codec) -> None:
    assert prompt_batch(codec, [Prompt("a", "hi")], keys=["k"]).keys == ("k",)


def test_an_empty_query_is_refused(codec: Codec) -> None:
    with pytest.raises(InputError, match="prompt 'b' has an empty query"):
        prompt_batch(codec, [Prompt("a", "hi"), Prompt("b", "")])


@pytest.mark.detail("A5")
def test_the_seam_holds_with_one_space(codec: Codec, demonstrations: list[Demonstration]) -> None:
    # Detail A5.
    for demo in demonstrations:
        joined = codec.encode(f"{demo.query} {demo.response}")
        assert codec.encode_query(demo.query) + codec.encode_response(demo.response)[:-1] == joined
        assert check_seam(codec, demo.query, demo.response)


def test_without_the_space_the_seam_breaks() -> None:
    codec = train_bpe(["TL;DR:) TL;DR:)"] * 9, 300)
    assert codec.encode("TL;DR:") + codec.encode(")") != codec.encode("TL;DR:)")
    assert check_seam(codec, "TL;DR:", ")")


def test_the_seam_check_sees_a_tokenizer_that_merges_across_spaces() -> None:
    letters = {"<eos>": 0, "a": 1, "b": 2, "Ġ": 3, "ab": 4, "abĠ": 5}
    core = Tokenizer(models.BPE(letters, [("a", "b"), ("ab", "Ġ")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    codec = Codec(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>"))
    assert not codec.splits_at_spaces
    assert not check_seam(codec, "ab", "ab")


def test_the_newline_of_cnndm_survives(codec: Codec) -> None:
    # Q9: the published code strips it and then masks one token too many.
    query = fill(CNNDM_TEMPLATE, {"article": "Storm."})
    demo = Demonstration("n", query, "Two boats sank.")
    ((query_ids, response_ids),) = sequence_rows(codec, [demo])
    assert codec.decode(query_ids) == query
    assert codec.decode(response_ids) == " Two boats sank."
    assert check_seam(codec, query, demo.response)


@pytest.mark.detail("A8")
def test_every_response_keeps_its_eos(codec: Codec, demonstrations: list[Demonstration]) -> None:
    # Detail A8.
    rows = sequence_rows(codec, demonstrations)
    batch = token_batch(rows, pad_id=codec.pad_id)
    for tokens, mask, (query, response) in zip(batch.tokens_BT, batch.mask_BT, rows, strict=True):
        real = tokens[mask].tolist()
        assert real == query + response
        assert real.count(codec.eos_id) == 1
        assert real[-1] == codec.eos_id


ROWS = [([11, 12, 13], [21, 0]), ([14], [22, 23, 24, 0]), ([15], [0])]


def test_sequences_are_padded_right_and_all_but_the_first_token_are_targets() -> None:
    batch = token_batch(ROWS, pad_id=9, query_weight=0.5, response_weight=2.0)
    assert batch.tokens_BT.tolist() == [[11, 12, 13, 21, 0], [14, 22, 23, 24, 0], [15, 0, 9, 9, 9]]
    assert batch.mask_BT.int().tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch.loss_mask_BT.int().tolist() == [[0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 1, 0, 0, 0]]
    assert batch.weight_BT.dtype == torch.float32
    weights = batch.weight_BT[batch.mask_BT].tolist()
    assert weights == [0.5, 0.5, 0.5, 2, 2, 0.5, 2, 2, 2, 2, 0.5, 2]


@pytest.mark.detail("A10")
def test_response_loss_covers_exactly_the_completion(
    codec: Codec, demonstrations: list[Demonstration]
) -> None:
    # Detail A10: the labels decode to the completion, EOS included.
    rows = sequence_rows(codec, demonstrations)
    batch = token_batch(rows, pad_id=codec.pad_id, loss_on="response")
    for tokens, mask, demo in zip(batch.tokens_BT, batch.loss_mask_BT, demonstrations, strict=True):
        labels = tokens[mask].tolist()
        assert labels[-1] == codec.eos_id
        assert codec.decode(labels[:-1]) == f" {demo.response}"


def test_a_document_without_query_has_no_target_in_front() -> None:
    batch = token_batch([([], [5, 6, 0])], pad_id=9, loss_on="response")
    assert batch.loss_mask_BT.tolist() == [[False, True, True]]


def test_pairs_share_a_width_and_mask_the_query(codec: Codec) -> None:
    pairs = [
        Comparison("a", "Q one:", ("first.", "the second, longer."), ("x", "y"), choice=1),
        Comparison("b", "Q:", ("left.", "right."), ("x", "y"), choice=0),
    ]
    rows = pair_rows(codec, pairs)
    batch = pair_batch(rows, pad_id=codec.pad_id)
    assert batch.chosen_NT.shape == batch.rejected_NT.shape
    assert batch.chosen_NT.shape[1] == max(len(r.query) + len(r.chosen) for r in rows)
    for i, pair in enumerate(pairs):
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            tokens = getattr(batch, f"{side}_NT")[i]
            mask = getattr(batch, f"{side}_mask_NT")[i]
            response = getattr(batch, f"{side}_response_mask_NT")[i]
            assert tokens[response].tolist() == codec.encode_response(text)
            assert tokens[mask & ~response].tolist() == codec.encode(pair.query)
            assert (tokens[~mask] == codec.pad_id).all()
            assert not mask[int(mask.sum()) :].any()
    assert batch.margin_N.tolist() == [0.0, 0.0]


def test_margins_reach_the_batch() -> None:
    batch = pair_batch([PairRow([1], [2, 0], [3, 0], margin=1.5)], pad_id=9)
    assert batch.margin_N.tolist() == [1.5]


def test_margins_and_designated_responses_of_comparisons(codec: Codec) -> None:
    sides = ("left.", "right."), ("sft", "reference")
    pairs = [
        Comparison("a", "Q:", *sides, choice=1, margin=0.5),
        Comparison("b", "Q:", *sides, choice=0),
    ]
    rows = pair_rows(codec, pairs, "reference")
    assert [row.margin for row in rows] == [0.5, 0.0]
    assert [row.designated for row in rows] == [(True, False), (False, True)]
    assert pair_batch(rows, pad_id=codec.pad_id).designated_N2.tolist() == [
        [True, False],
        [False, True],
    ]
    assert [row.designated for row in pair_rows(codec, pairs)] == [(False, False)] * 2


def test_a_response_that_was_cut_off_has_no_eos(codec: Codec) -> None:
    sides = ("left.", "right."), ("x", "y")
    pairs = [
        Comparison("a", "Q:", *sides, choice=1, ended=(False, True)),
        Comparison("b", "Q:", *sides, choice=0, ended=(False, True)),
        Comparison("c", "Q:", ("", "right."), ("x", "y"), choice=1, ended=(False, False)),
    ]
    left, right = map(codec.encode_response, ("left.", "right."))
    first, second, third = pair_rows(codec, pairs)
    assert (first.chosen, first.rejected) == (right, left[:-1])
    assert (second.chosen, second.rejected) == (left[:-1], right)
    assert third.chosen == right[:-1]
    assert len(third.rejected) > 0  # a pair needs a token of each
    whole = pair_rows(codec, pairs, always_eos=True)
    assert {ids[-1] for row in whole for ids in (row.chosen, row.rejected)} == {codec.eos_id}


def test_texts_for_a_scorer_end_in_eos_on_the_right(codec: Codec) -> None:
    tokens, mask = text_batch(
        codec, [("Q:", "yes."), ("Question:", " yes, of course."), ("Q:", "")]
    )
    assert not mask[2].all()
    for row, real in zip(tokens, mask, strict=True):
        assert row[real][-1] == codec.eos_id
        assert (row[~real] == codec.pad_id).all()
        assert not real[int(real.sum()) :].any()
    assert tokens[2][mask[2]].tolist() == [*codec.encode("Q:"), codec.eos_id]
