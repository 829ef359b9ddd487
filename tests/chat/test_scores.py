"""Where a conversation's reward is read: at the end of the assistant's last turn, and no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from talk import chat_config, turns

from nplus.data.collate import pair_batch, pair_rows, text_batch
from nplus.data.comparisons import fit_comparisons
from nplus.data.conversations import preference
from nplus.data.tokens import Codec, TextRules
from nplus.models.scalar import ScalarModel
from nplus.records import Comparison
from nplus.stages.forwards import pair_logprobs, pair_scores
from nplus.stages.scorers import RewardScorer

PAIRS = [
    {"chosen": turns("Hi", "Ho"), "rejected": turns("Hi", "Go away, please")},
    {
        "chosen": turns("Hi", "Ho", "Why?", "So. Because of that."),
        "rejected": turns("Hi", "Ho", "Why?", "No"),
    },
]


@pytest.fixture(scope="module")
def comparisons(codec: Codec) -> list[Comparison]:
    rows = [preference(f"f, line {n}", pair) for n, pair in enumerate(PAIRS, 1)]
    data = chat_config(max_query_tokens=200)
    return fit_comparisons({"train": rows}, codec, data)[0]


@pytest.fixture(scope="module")
def model(codec: Codec, llama: Any) -> ScalarModel:
    return ScalarModel.from_causal(llama(), pad_id=codec.pad_id, seed=1).eval()


def by_hand(model: ScalarModel, codec: Codec, query: str, response: str) -> float:
    """One row without padding; the output at its last id, which ends the turn."""
    ids = torch.tensor([codec.encode_query(query) + codec.encode_response(response)])
    assert int(ids[0, -1]) == codec.eos_id
    with torch.no_grad():
        hidden = model.network.base_model(input_ids=ids).last_hidden_state[0, -1]
        return float(hidden @ model.network.score.weight[0])


def test_scores_are_read_at_the_last_turn_s_end(
    model: ScalarModel, codec: Codec, comparisons: list[Comparison]
) -> None:
    found = RewardScorer(model, codec).pairs(comparisons)
    shared = RewardScorer(model, codec, shared=True).pairs(comparisons)
    for row, pair, beside in zip(comparisons, found, shared, strict=True):
        expected = [by_hand(model, codec, row.query, text) for text in row.responses]
        assert pair == pytest.approx(expected, abs=1e-5)
        assert beside == pytest.approx(expected, abs=1e-5)
        assert abs(expected[0] - expected[1]) > 1e-3


def test_training_reads_what_is_judged(
    model: ScalarModel, codec: Codec, comparisons: list[Comparison]
) -> None:
    batch = pair_batch(pair_rows(codec, comparisons), pad_id=codec.pad_id)
    with torch.no_grad():
        found = pair_scores(model, batch).tolist()
    expected = [by_hand(model, codec, row.query, row.chosen) for row in comparisons]
    expected += [by_hand(model, codec, row.query, row.rejected) for row in comparisons]
    assert found == pytest.approx(expected, abs=1e-5)


def test_with_pad_for_eos_every_end_of_turn_would_be_gone(
    codec: Codec, comparisons: list[Comparison]
) -> None:
    """What a PAD of its own is for: without one no end of a turn is seen, the last included."""
    trap = codec.with_rules(TextRules(chat=True, distinct_pad=False))
    row = comparisons[1]
    for tried, ends in ((codec, 5), (trap, 0)):
        tokens_BT, mask_BT = text_batch(tried, [(row.query, row.chosen)])
        assert int((tokens_BT[mask_BT] == codec.eos_id).sum()) == ends


def test_dpo_sums_the_last_turn_alone(
    codec: Codec, comparisons: list[Comparison], llama: Any
) -> None:
    policy = llama()
    batch = pair_batch(pair_rows(codec, comparisons), pad_id=codec.pad_id)
    with torch.no_grad():
        found = pair_logprobs(policy, batch).tolist()
    expected = []
    for side in ("chosen", "rejected"):
        for row in comparisons:
            query = codec.encode_query(row.query)
            response = codec.encode_response(getattr(row, side))
            with torch.no_grad():
                logits = policy(input_ids=torch.tensor([query + response])).logits[0]
            logprobs = logits.log_softmax(-1)
            places = range(len(query), len(query) + len(response))
            expected.append(sum(float(logprobs[at - 1, (query + response)[at]]) for at in places))
    assert found == pytest.approx(expected, rel=1e-4)
