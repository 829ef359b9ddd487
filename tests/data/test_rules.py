"""Text rules that switch details A4 to A8, on hand-made texts."""

import pytest

from nplus.config import DataConfig, TokenizerConfig
from nplus.data.collate import (
    pair_batch,
    pair_rows,
    prompt_batch,
    sequence_rows,
    shared_pair_batch,
    token_batch,
)
from nplus.data.tokens import TextRules
from nplus.records import Comparison, Demonstration

QUERY = "POST: The cat left.\n\nTL;DR:"
CNNDM = "Article:\nThe cat left.\n\nTL;DR:\n"


def demonstration(query=QUERY, response="Cat gone"):
    return Demonstration("d1", query, response, {}, "train")


def test_the_rules_of_a_configuration():
    assert TextRules.of(DataConfig(), TokenizerConfig()) == TextRules()
    data = DataConfig(
        leading_space=False,
        join="text",
        query_padding="spaces",
        max_query_tokens=40,
        overlong="cut",
        max_response_tokens=9,
    )
    assert TextRules.of(data, TokenizerConfig(distinct_pad=False)) == TextRules(
        leading_space=False, join="text", spaces_to=40, cut_to=9, distinct_pad=False
    )


@pytest.mark.detail("A6")
def test_without_the_leading_space(codec):
    bare = codec.with_rules(TextRules(leading_space=False))
    assert bare.encode_response("Cat gone") == [*codec.encode("Cat gone"), codec.eos_id]
    assert codec.encode_response("Cat gone") == [*codec.encode(" Cat gone"), codec.eos_id]


@pytest.mark.detail("A5")
def test_joined_as_text_a_final_newline_is_lost(codec):
    as_text = codec.with_rules(TextRules(join="text"))
    for query in (QUERY, CNNDM):
        (ids, response), (query_t, response_t) = (
            c.encode_pairs([query], ["Cat gone"])[0] for c in (codec, as_text)
        )
        stripped = codec.encode(query.strip() + " Cat gone")
        assert [*query_t, *response_t] == [*stripped, codec.eos_id]
        assert ([*ids, *response] == [*query_t, *response_t]) == (query == QUERY)
        # Quirk Q9: the query keeps its length, so a lost newline takes a token of the response.
        assert len(query_t) == len(ids)


@pytest.mark.detail("A8")
def test_cut_responses_lose_their_eos(codec):
    cut = codec.with_rules(TextRules(cut_to=3))
    whole = codec.encode_response("The cat left and nobody said why")
    assert cut.encode_response("The cat left and nobody said why") == whole[:3]
    assert codec.eos_id not in whole[:3]


@pytest.mark.detail("A4")
def test_queries_filled_with_attended_spaces(codec):
    spaced = codec.with_rules(TextRules(spaces_to=60))
    ids = codec.encode(QUERY)
    batch = prompt_batch(spaced, [demonstration()])
    space = codec.encode(" ")[0]
    assert batch.tokens_BP.tolist() == [[space] * (60 - len(ids)) + ids]
    assert batch.mask_BP.all()


@pytest.mark.detail("A7")
def test_a_pad_that_is_eos_masks_every_eos(codec):
    blind = codec.with_rules(TextRules(distinct_pad=False))
    assert blind.pad_id == blind.eos_id == codec.eos_id
    rows = sequence_rows(blind, [demonstration()])
    batch = token_batch(rows, pad_id=blind.pad_id)
    real = sum(map(len, rows[0])) - 1
    assert batch.mask_BT.sum() == real
    assert not batch.loss_mask_BT[0, real:].any()
    comparison = Comparison("d1", QUERY, ("Cat gone", "No cat"), ("ref", "x"), choice=0)
    rows = pair_rows(blind, [comparison])
    apart = pair_batch(rows, pad_id=blind.pad_id)
    assert apart.chosen_mask_NT.sum() == len(rows[0].query) + len(rows[0].chosen) - 1
    together = shared_pair_batch(rows, pad_id=blind.pad_id)
    ends = together.tokens_BT.flatten()[together.ends_N]
    assert ends.tolist() == [rows[0].chosen[-2], rows[0].rejected[-2]]
    # Sound: with a PAD of its own nothing real is masked.
    sound = token_batch(sequence_rows(codec, [demonstration()]), pad_id=codec.pad_id)
    assert sound.mask_BT.all()
